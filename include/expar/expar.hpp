// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything that needs a C++20 compiler alone. Adapters to MPI and to the tensors of others are
/// included by name: <expar/comm/mpi.hpp>, <expar/comm/mpi_node.hpp>; so are chains of hops,
/// <expar/exchange/hops.hpp>, rows that are packed on their way, <expar/exchange/wire.hpp>,
/// <expar/laws.hpp>, for tests, and router/research/.
#include <expar/balance/sum_counts.hpp>
#include <expar/caller_threads.hpp>
#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/communicator.hpp>
#include <expar/context.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/expert_parallel.hpp>
#include <expar/huge_pages.hpp>
#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>
#include <expar/permute/quantize.hpp>
#include <expar/permute/tokens.hpp>
#include <expar/permute/weights.hpp>
#include <expar/plan/capacity.hpp>
#include <expar/plan/drop.hpp>
#include <expar/plan/keep_choice.hpp>
#include <expar/plan/local_routes.hpp>
#include <expar/plan/plan.hpp>
#include <expar/plan/renormalize_kept.hpp>
#include <expar/plan/reroute.hpp>
#include <expar/report.hpp>
#include <expar/router/draw_numbers.hpp>
#include <expar/router/expert_choice.hpp>
#include <expar/router/expert_scale_backward.hpp>
#include <expar/router/jitter.hpp>
#include <expar/router/logits/cosine_scale.hpp>
#include <expar/router/logits/normalize_rows.hpp>
#include <expar/router/losses.hpp>
#include <expar/router/models.hpp>
#include <expar/router/noise.hpp>
#include <expar/router/replay.hpp>
#include <expar/router/route.hpp>
#include <expar/router/shared_experts.hpp>
#include <expar/router/sinkhorn.hpp>
#include <expar/router/sparsemixer.hpp>
#include <expar/router/state/bias_update.hpp>
#include <expar/router/state/quantile_balance.hpp>
#include <expar/router/state/quantile_histogram.hpp>
#include <expar/router/transform_logits.hpp>
#include <expar/router/variable_routes.hpp>
#include <expar/tensor.hpp>
#include <expar/version.hpp>

// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything that needs a C++20 compiler alone. Adapters to MPI and to the tensors of others are
/// included by name: <expar/comm/mpi.hpp>.
#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/communicator.hpp>
#include <expar/config.hpp>
#include <expar/context.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/exchange/routed_batch.hpp>
#include <expar/exchange/window.hpp>
#include <expar/executor.hpp>
#include <expar/expert_batch.hpp>
#include <expar/expert_parallel.hpp>
#include <expar/expert_shape.hpp>
#include <expar/laws.hpp>
#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>
#include <expar/permute/fill.hpp>
#include <expar/permute/quantize.hpp>
#include <expar/permute/tokens.hpp>
#include <expar/permute/weights.hpp>
#include <expar/plan/layout.hpp>
#include <expar/plan/placement.hpp>
#include <expar/plan/plan.hpp>
#include <expar/report.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/losses.hpp>
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>
#include <expar/router/routes.hpp>
#include <expar/tensor.hpp>
#include <expar/version.hpp>

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What losses are given as logits is what the score of the router gets: the logits after the
// router's transforms, see transform_logits().

#include <expar/router/choice_totals.hpp>          // counts of many micro-batches
#include <expar/router/count_choices.hpp>          // routes per expert, which losses of load read
#include <expar/router/device_balance_loss.hpp>    // DeepSeek-V2
#include <expar/router/entropy_loss.hpp>           // Dynamic_MoE
#include <expar/router/importance_loss.hpp>        // Shazeer, V-MoE
#include <expar/router/load_balance_loss.hpp>      // GShard, Switch
#include <expar/router/load_loss.hpp>              // Shazeer, V-MoE
#include <expar/router/normalized_score.hpp>       // what sigmoid routers balance
#include <expar/router/sequence_balance_loss.hpp>  // DeepSeek-V2, DeepSeek-V3
#include <expar/router/sequences.hpp>              // how tokens fall into sequences
#include <expar/router/smooth_load.hpp>            // Shazeer, V-MoE
#include <expar/router/z_loss.hpp>                 // ST-MoE

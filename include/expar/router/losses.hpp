// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/count_choices.hpp>      // routes per expert, which the first loss reads
#include <expar/router/load_balance_loss.hpp>  // GShard, Switch
#include <expar/router/z_loss.hpp>             // ST-MoE

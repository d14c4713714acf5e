// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <expar/expar.hpp>

/// Routes some tokens, in this file's own vectors, and adds up what came out. Of this file alone.
static int sum_of_ids() {
  constexpr int tokens = 50, experts = 96;
  std::vector<float> numbers(tokens * experts);
  for (std::size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<float>(i * 7919 % 10007) / 1000;
  expar::routes<float> routes(tokens, 6);
  expar::route(expar::host_context{}, expar::models::qwen2_moe({experts, 6}),
               expar::make_view(numbers.data(), tokens, experts), routes);
  int sum = 0;
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < 6; ++j) sum += (t + 1) * (j + 1) * routes.ids(t, j);
  return sum;
}

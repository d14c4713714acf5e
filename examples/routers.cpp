// SPDX-License-Identifier: Apache-2.0
// A published router by its name, one that is trained with a loss, and one of one's own.
#include <cstdint>
#include <cstdio>
#include <vector>

#include <expar/expar.hpp>

using matrix = expar::tensor_view<float, 2>;

//! [published]
void choose_experts(expar::host_context const& ctx, matrix logits, std::vector<float> const& bias,
                    expar::routes<float>& routes) {
  auto const router = expar::models::deepseek_v3();
  expar::route(ctx, router, logits, bias, routes);
}
//! [published]

//! [balanced]
void choose_and_balance(expar::host_context const& ctx, matrix logits,
                        std::vector<std::uint8_t> const& valid, expar::routes<float>& routes,
                        matrix d_weights, matrix d_logits) {
  auto const router = expar::models::mixtral();
  expar::route(ctx, router, logits, routes);
  expar::route_backward(ctx, router, logits, routes, d_weights, d_logits);  // d_logits = ...
  auto const tokens = expar::only(valid, logits);                           // without padding
  expar::z_loss_backward(ctx, tokens, {.coefficient = 1e-3}, expar::add_to(d_logits));  // += ...
}
//! [balanced]

//! [own]
struct squared_relu_score {
  EXPAR_HD void operator()(auto const* z, auto* s, int experts) const {
    for (int e = 0; e < experts; ++e) s[e] = z[e] > 0 ? z[e] * z[e] : 0;
  }
  EXPAR_HD void vjp(auto const* z, auto const*, auto const* ds, auto* dz, int experts) const {
    for (int e = 0; e < experts; ++e) dz[e] = z[e] > 0 ? 2 * z[e] * ds[e] : 0;
  }
};
constexpr expar::router mine({.experts = 256, .top_k = 8}, expar::soft_cap{20},
                             squared_relu_score{}, expar::biased_key{}, expar::renormalize{});
//! [own]

int main() {
  constexpr int tokens = 4, experts = 256;
  expar::host_context const ctx;
  std::vector<float> numbers(tokens * experts), bias(experts, 0.f);
  for (std::size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<float>(i * 37 % 101) / 25 - 2;
  auto const logits = expar::make_view(numbers.data(), tokens, experts);
  expar::routes<float> routes(tokens, 8);

  choose_experts(ctx, logits, bias, routes);
  std::printf("DeepSeek-V3 sends token 0 to experts %d and %d first\n", routes.ids(0, 0),
              routes.ids(0, 1));
  expar::route(ctx, mine, logits, bias, routes);
  std::printf("my router sends token 0 to experts %d and %d first\n", routes.ids(0, 0),
              routes.ids(0, 1));

  auto const eight = expar::make_view(numbers.data(), tokens, 8);
  std::vector<float> gradient(tokens * 8), of_weights(tokens * 2, 1.f);
  std::vector<std::uint8_t> const valid{1, 1, 1, 0};
  expar::routes<float> two(tokens, 2);
  choose_and_balance(ctx, eight, valid, two, expar::make_view(of_weights.data(), tokens, 2),
                     expar::make_view(gradient.data(), tokens, 8));

  float sum = 0;
  for (int j = 0; j < 8; ++j) sum += routes.weights(0, j);
  return sum > .999f && sum < 1.001f ? 0 : 1;
}

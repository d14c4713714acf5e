// SPDX-License-Identifier: Apache-2.0
// A file of nvcc's that routes on the host, by each way of selecting. Compiled, never run.
#include <vector>

#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

void route_on_host(expar::tensor_view<float const, 2> logits, std::vector<float> const& bias,
                   expar::tensor_view<float const, 2> d_weights, expar::routes<float>& routes,
                   expar::tensor_view<float, 2> d_logits);

void route_on_host(expar::tensor_view<float const, 2> logits, std::vector<float> const& bias,
                   expar::tensor_view<float const, 2> d_weights, expar::routes<float>& routes,
                   expar::tensor_view<float, 2> d_logits) {
  expar::host_context const ctx;
  auto const softmax = expar::models::qwen2_moe({64, 6});
  expar::route(ctx, softmax, logits, routes);
  expar::route_backward(ctx, softmax, logits, routes, d_weights, d_logits);
  expar::route(ctx, expar::models::deepseek_v3(), logits, bias, routes);
}

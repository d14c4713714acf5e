// SPDX-License-Identifier: Apache-2.0
// A file of nvcc's that routes on the host, by each way of selecting, and moves rows of each type.
// Compiled, never run.
#include <vector>

#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>
#include <expar/permute/quantize.hpp>
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

namespace {

template <class T>
void move_rows(expar::route_plan const& plan, expar::tensor_view<T, 2> tokens,
               expar::tensor_view<T, 2> rows, expar::tensor_view<float, 2> weights) {
  expar::host_context const ctx;
  expar::encode(ctx, plan, tokens, weights, rows);
  expar::decode(ctx, plan, rows, weights, tokens);
  expar::encode_backward(ctx, plan, rows, tokens, weights, expar::add_to(tokens), weights);
  expar::decode_backward(ctx, plan, tokens, rows, weights, rows, weights);
}

}  // namespace

void move_on_host(expar::route_plan const& plan, expar::tensor_view<float, 2> f,
                  expar::tensor_view<double, 2> d, expar::tensor_view<expar::half, 2> h,
                  expar::tensor_view<expar::bfloat16, 2> b,
                  expar::tensor_view<expar::float8_e4m3, 2> q);

void move_on_host(expar::route_plan const& plan, expar::tensor_view<float, 2> f,
                  expar::tensor_view<double, 2> d, expar::tensor_view<expar::half, 2> h,
                  expar::tensor_view<expar::bfloat16, 2> b,
                  expar::tensor_view<expar::float8_e4m3, 2> q) {
  move_rows(plan, f, f, f);
  move_rows(plan, d, d, f);
  move_rows(plan, h, h, f);
  move_rows(plan, b, b, f);
  expar::decode_quantized(expar::host_context{}, plan, q, f, f, b);
}

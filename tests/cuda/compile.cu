// SPDX-License-Identifier: Apache-2.0
// All host headers as nvcc sees them, and kernels that use by value what is made for kernels.
// Compiled, never run.
#include <expar/expar.hpp>

namespace {

template <class T>
__global__ void convert(expar::tensor_view<T const, 2> from, expar::tensor_view<float, 2> to) {
  for (expar::index_t i = 0; i < from.extent(0); ++i)
    for (expar::index_t j = 0; j < from.extent(1); ++j)
      to(i, j) = static_cast<float>(expar::widen(from.row(i)[j]));
}

template <class Router>
__global__ void route_tokens(Router router, expar::tensor_view<float const, 2> logits,
                             float const* bias, expar::tensor_view<float, 2> scratch,
                             expar::tensor_view<std::int32_t, 2> ids,
                             expar::tensor_view<float, 2> weights,
                             expar::tensor_view<float, 2> d_logits) {
  expar::index_t const t = blockIdx.x;
  router.forward(logits.row(t), bias, scratch.row(t), ids.row(t), weights.row(t));
  float const* const d_weights = weights.row(t);
  router.vjp(logits.row(t), static_cast<std::int32_t const*>(ids.row(t)), d_weights, scratch.row(t),
             d_logits.row(t));
}

__global__ void find_rows(expar::plan_view plan, expar::block_placement placement,
                          expar::index_t* places) {
  expar::index_t const t = blockIdx.x;
  places[t] = placement.owner(0) + placement.first(0) + plan.row(t, 0) +
              expar::capacity_of(expar::fixed_capacity{}, plan.tokens, plan.experts, plan.top_k, 1);
}

}  // namespace

void launch_all(expar::tensor_view<float, 2> f, expar::tensor_view<expar::bfloat16, 2> b,
                expar::tensor_view<std::int32_t, 2> ids, expar::route_plan const& plan,
                expar::index_t* places);
void launch_all(expar::tensor_view<float, 2> f, expar::tensor_view<expar::bfloat16, 2> b,
                expar::tensor_view<std::int32_t, 2> ids, expar::route_plan const& plan,
                expar::index_t* places) {
  convert<float><<<1, 1>>>(f, f);
  convert<expar::bfloat16><<<1, 1>>>(b, f);
  convert<double><<<1, 1>>>({}, f);
  convert<expar::half><<<1, 1>>>({}, f);
  expar::router const plain({8, 2}, expar::softmax_score{}, expar::score_key{});
  expar::router const composed({8, 2}, expar::sigmoid_score{}, expar::biased_key{},
                               expar::renormalize{1e-20}, expar::scale{2.5});
  route_tokens<<<1, 1>>>(plain, f, nullptr, f, ids, f, f);
  route_tokens<<<1, 1>>>(composed, f, f.data, f, ids, f, f);
  expar::block_placement const placement{8, 2};
  find_rows<<<1, 1>>>(plan.view(), placement, places);
}

// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<torch/csrc/autograd/custom_function.h>)
#error "expar/interop/torch_layer.hpp needs libtorch: find_package(Torch), and link TORCH_LIBRARIES"
#endif
// In this order Clang takes what libtorch 1.13 has for C++20, and in no other.
#include <torch/csrc/autograd/custom_function.h>
//
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <utility>
#include <vector>

#include <expar/expert_parallel.hpp>
#include <expar/interop/torch.hpp>
#include <expar/router/route.hpp>

namespace expar::inline v0 {
namespace torch {
namespace detail {

using expar::detail::expects;
using ::torch::autograd::AutogradContext;
using ::torch::autograd::variable_list;

/// What the forward pass leaves to the backward pass.
template <class Kept>
Kept& kept(AutogradContext* graph) {
  return static_cast<Kept&>(*graph->saved_data["kept"].toCapsule());
}

template <class W>
struct routes {
  tensor_view<std::int64_t, 2> ids;
  tensor_view<W, 2> weights;

  routes(at::Tensor const& i, at::Tensor const& w)
      : ids(view<std::int64_t, 2>(i)), weights(view<W, 2>(w)) {}
};

template <class T, class Router>
struct route_function : ::torch::autograd::Function<route_function<T, Router>> {
  struct call : ::torch::CustomClassHolder {
    call(host_context const& c, Router const& r) : ctx(c), router(r) {}
    host_context ctx;
    Router router;
  };

  template <class Bias>
  static variable_list forward(AutogradContext* graph, at::Tensor const& logits,
                               c10::intrusive_ptr<call> const& c, Bias const& bias) {
    at::Tensor const ids = at::empty({logits.size(0), c->router.top_k}, at::kLong);
    at::Tensor const weights = at::empty(ids.sizes(), dtype<T>);
    expar::route(c->ctx, c->router, view<T const, 2>(logits), bias, routes<T>(ids, weights));
    graph->saved_data["kept"] = at::IValue::make_capsule(c);
    graph->save_for_backward({logits, ids});
    graph->mark_non_differentiable({ids});
    return {ids, weights};
  }
  static variable_list backward(AutogradContext* graph, variable_list const& d) {
    auto const& c = kept<call>(graph);
    auto const saved = graph->get_saved_variables();
    at::Tensor const d_weights = d[1].contiguous(), d_logits = at::empty_like(saved[0]);
    route_backward(c.ctx, c.router, view<T const, 2>(saved[0]), routes<T>(saved[1], d_weights),
                   view<T const, 2>(d_weights), view<T, 2>(d_logits));
    return {d_logits, {}, {}};
  }
};

template <class T, class W, class Layer>
struct layer_function : ::torch::autograd::Function<layer_function<T, W, Layer>> {
  struct call : ::torch::CustomClassHolder {
    call(host_context const& c, Layer& l) : ctx(c), layer(l) {}
    host_context ctx;
    Layer& layer;
    expert_batch<T, W> batch;
    at::Tensor weights, rows, y;  // y with the graph of the experts, which begins at the rows
    variable_list parameters;
    bool trains = at::GradMode::is_enabled();
  };

  template <class Experts>
  static at::Tensor forward(AutogradContext* graph, at::Tensor const& tokens, at::Tensor const& ids,
                            at::Tensor const& weights, at::TensorList,
                            c10::intrusive_ptr<call> const& c, Experts& experts) {
    auto& batch = c->batch;
    c->layer.prepare(c->ctx, routes<W>(ids, weights), batch);
    c->rows = at::empty({batch.row_count(), c->layer.shape().hidden}, dtype<T>);
    c->layer.dispatch(c->ctx, view<T const, 2>(tokens), batch, view<T, 2>(c->rows));
    {
      at::AutoGradMode const mode(c->trains);
      c->y = experts(c->rows.requires_grad_(c->trains), std::as_const(batch)).contiguous();
    }
    at::Tensor const out = at::empty({tokens.size(0), c->y.size(1)}, dtype<T>);
    c->layer.combine(c->ctx, batch, view<T const, 2>(c->y), view<T, 2>(out));
    c->weights = weights;
    graph->saved_data["kept"] = at::IValue::make_capsule(c);
    return out;
  }

  static variable_list backward(AutogradContext* graph, variable_list const& d) {
    auto& c = kept<call>(graph);
    expects(c.y.defined(), "torch::layer: its graph serves one backward pass, and this is another");
    at::Tensor const y = std::exchange(c.y, {}), rows = std::exchange(c.rows, {});
    at::Tensor const d_out = d[0].contiguous(), d_y = at::empty_like(y);
    at::Tensor const d_weights = at::empty_like(c.weights);
    c.layer.combine_backward(c.ctx, c.batch, view<T const, 2>(d_out), view<T const, 2>(y),
                             view<T, 2>(d_y), view<W, 2>(d_weights));

    variable_list gradients(1 + c.parameters.size());
    if (y.requires_grad()) {
      variable_list inputs{rows};
      inputs.insert(inputs.end(), c.parameters.begin(), c.parameters.end());
      gradients = ::torch::autograd::grad({y}, inputs, {d_y}, false, false, true);
    }
    at::Tensor const d_rows =
        gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(rows);
    at::Tensor const d_tokens = at::empty({d_out.size(0), rows.size(1)}, dtype<T>);
    c.layer.dispatch_backward(c.ctx, c.batch, view<T const, 2>(d_rows), view<T, 2>(d_tokens));

    variable_list all{d_tokens, {}, d_weights};
    all.insert(all.end(), gradients.begin() + 1, gradients.end());
    all.resize(all.size() + 2);  // of what is no tensor
    return all;
  }
};

}  // namespace detail

/// `route<T>(ctx, router, logits, bias)`: ids [T,k] (int64) and weights [T,k] of the router's
/// choices, whose gradient goes on to the logits [T, experts]. T is the type of logits and weights;
/// the bias, a tensor of expar, may be left out where the router takes none.
template <class T = float, class Router, class Bias = no_bias_t>
std::pair<at::Tensor, at::Tensor> route(host_context const& ctx, Router const& router,
                                        at::Tensor const& logits, Bias const& bias = {}) {
  using function = detail::route_function<T, Router>;
  auto const out = function::apply(logits.contiguous(),
                                   c10::make_intrusive<typename function::call>(ctx, router), bias);
  return {out[0], out[1]};
}

/// `layer<T, W>(ctx, moe, tokens, ids, weights, experts, parameters)`: the tokens [T,H] through the
/// experts of all ranks, as one function of autograd: dispatch, experts(rows, batch), combine, and
/// back. Returns out [T, hidden_out].
///   moe: an expert_parallel whose weights apply at decode; it outlives the graph
///   tokens, out: of type T; weights [T,k]: of type W; ids [T,k]: int64, -1 for no expert
///   experts: experts(rows, batch) makes y [N, hidden_out] of rows [N,H] by means of libtorch
///   alone;
///            slot l has the rows from batch.slot_offsets()[l] on, of expert batch.expert_of(l)
///   parameters: of the experts; only what is named here is trained
/// Collective, forward and backward: all ranks call it in the same order, and go backward in the
/// same order, whether they have tokens or not. One backward pass for each call. Of no second
/// order.
template <class T, class W = float, class Layer, class Experts>
at::Tensor layer(host_context const& ctx, Layer& moe, at::Tensor const& tokens,
                 at::Tensor const& ids, at::Tensor const& weights, Experts&& experts,
                 std::vector<at::Tensor> const& parameters) {
  using function = detail::layer_function<T, W, Layer>;
  auto const call = c10::make_intrusive<typename function::call>(ctx, moe);
  call->parameters = parameters;
  return function::apply(tokens.contiguous(), ids.contiguous(), weights.contiguous(),
                         at::TensorList(parameters), call, experts);
}

}  // namespace torch
}  // namespace expar::inline v0

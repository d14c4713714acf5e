// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models/shapes.hpp>

namespace expar::inline v0::models {

// The routers of training and inference systems, which serve many models. z are the logits.

/// Groups as Megatron-LM and Transformer Engine take them.
constexpr group_limited megatron_groups(grouped_shape shape) {
  return {shape.groups, shape.top_groups,
          shape.top_groups > 0 ? shape.top_k / shape.top_groups : 0};
}

/// Megatron-LM, softmax before top-k: p = softmax(z), w = scale * p[ids].
/// Source: megatron/core/transformer/moe/moe_utils.py, topk_routing_with_score_function.
constexpr auto megatron_softmax(scaled_shape shape) {
  return router(shape, softmax_score{}, score_key{}, scale{shape.scale});
}
/// The same in groups of experts, of which each counts as the sum of its top_k / top_groups largest
/// probabilities; top_k is at least top_groups.
constexpr auto megatron_softmax_grouped(grouped_shape shape) {
  return router(shape, softmax_score{}, score_key{}, megatron_groups(shape), scale{shape.scale});
}
/// Megatron-LM, softmax after top-k: w = scale * softmax(z[ids]).
constexpr auto megatron_post_softmax(scaled_shape shape) {
  return router(shape, logit_score{}, score_key{}, softmax_weights{}, scale{shape.scale});
}
/// Megatron-LM, sigmoid: s = sigmoid(z), selected by s + bias, w = scale * s[ids] / (sum(s[ids]) +
/// 1e-20), for k = 1 undivided. Score: sqrt_softplus_score for "sqrtsoftplus".
template <class Score = sigmoid_score>
constexpr auto megatron_sigmoid(scaled_shape shape, Score score = {}) {
  return router(shape, score, biased_key{}, renormalize{.epsilon = 1e-20, .single = false},
                scale{shape.scale});
}
/// The same in groups of experts, of which each counts as the sum of its top_k / top_groups largest
/// keys; top_k is at least top_groups.
template <class Score = sigmoid_score>
constexpr auto megatron_grouped(grouped_shape shape, Score score = {}) {
  return router(shape, score, biased_key{}, megatron_groups(shape),
                renormalize{.epsilon = 1e-20, .single = false}, scale{shape.scale});
}
/// Megatron-LM, Sinkhorn (S-BASE): selected by the plan of sinkhorn(), w = sigmoid(z)[ids] for k =
/// 1. In evaluation selected by the logits: leave the plan out.
template <class T>
constexpr auto megatron_sinkhorn_top1(int experts, given_keys<T> plan) {
  return router({.experts = experts, .top_k = 1}, sigmoid_score{}, plan);
}
constexpr auto megatron_sinkhorn_top1(int experts) {
  return router({.experts = experts, .top_k = 1}, sigmoid_score{}, score_key{});
}
/// The same for k > 1: w = softmax(z)[ids].
template <class T>
constexpr auto megatron_sinkhorn(router_shape shape, given_keys<T> plan) {
  return router(shape, softmax_score{}, plan);
}
constexpr auto megatron_sinkhorn(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}
/// Megatron-LM, quantile balancing: selected by z + bias, where the bias is -beta, which
/// quantile_bias() makes; weights as of megatron_softmax().
constexpr auto megatron_quantile(scaled_shape shape) {
  return router(shape, softmax_score{}, biased_logit_key{}, scale{shape.scale});
}
/// The same with weights as of megatron_sigmoid().
template <class Score = sigmoid_score>
constexpr auto megatron_quantile_sigmoid(scaled_shape shape, Score score = {}) {
  return router(shape, score, biased_logit_key{}, renormalize{.epsilon = 1e-20, .single = false},
                scale{shape.scale});
}
/// Transformer Engine's quantile-balancing router: the formula of glm_4_5; what balances is a
/// histogram of the distance from the cutoff, the (k + 1)-th key. Source:
/// transformer_engine, fused_router.h, pytorch/router.py.
constexpr auto transformer_engine_quantile(scaled_shape shape) {
  return router(shape, sigmoid_score{}, biased_key{}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}

/// torchtitan: s = sigmoid(z), or softmax_score, selected by s + bias, w = scale * s[ids] /
/// (sum(s[ids]) + 1e-20). Source: torchtitan, models/moe.py, with route_norm.
template <class Score = sigmoid_score>
constexpr auto torchtitan(scaled_shape shape, Score score = {}) {
  return router(shape, score, biased_key{}, renormalize{.epsilon = 1e-20}, scale{shape.scale});
}
/// The same in groups of experts, of which each counts as the sum of its two largest keys.
template <class Score = sigmoid_score>
constexpr auto torchtitan_grouped(grouped_shape shape, Score score = {}) {
  return router(shape, score, biased_key{}, group_limited{shape.groups, shape.top_groups, 2},
                renormalize{.epsilon = 1e-20}, scale{shape.scale});
}
/// MaxText: p = softmax(z), w = p[ids], or divided by their sum (norm_topk_prob): qwen3_moe().
/// Source: maxtext, layers/moe.py.
constexpr auto maxtext(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}
/// OLMo-core: p = softmax(z), w = p[ids], or divided by their norm of order `norm`: dbrx(). Source:
/// OLMo-core, nn/moe/router.py.
constexpr auto olmo_core(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}
/// OLMo-core, sigmoid: w = s[ids], s = sigmoid(z) + 1e-7, selected by s + bias.
constexpr auto olmo_core_sigmoid(router_shape shape) {
  return router(shape, sigmoid_score{}, biased_key{}, offset{1e-7});
}

/// FlashInfer's RoutingMethodType (include/flashinfer/trtllm/fused_moe/runner.h): Default: w =
/// softmax(z)[ids].
constexpr auto flashinfer_default(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}
/// Renormalize, and RenormalizeNaive: w = softmax(z[ids]).
constexpr auto flashinfer_renormalize(router_shape shape) {
  return router(shape, logit_score{}, score_key{}, softmax_weights{});
}
/// DeepSeekV3: as deepseek_v3(), which divides before it scales.
constexpr auto flashinfer_deepseek_v3(grouped_shape shape) {
  return router(shape, sigmoid_score{}, biased_key{},
                group_limited{shape.groups, shape.top_groups, 2}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}
/// Llama4: w = sigmoid(z[ids]), k = 1, on the tokens that the experts get.
constexpr auto flashinfer_llama4(int experts) {
  return router({.experts = experts, .top_k = 1}, logit_score{}, score_key{}, sigmoid_weights{},
                on_input{});
}
/// SigmoidRenorm: w = s[ids] / max(sum(s[ids]), 1e-20), s = sigmoid(z).
constexpr auto flashinfer_sigmoid_renorm(router_shape shape) {
  return router(shape, sigmoid_score{}, score_key{},
                renormalize{.epsilon = 1e-20, .kind = renormalize::guard::at_least});
}
/// MiniMax2: as glm_4_5().
constexpr auto flashinfer_minimax2(scaled_shape shape) {
  return router(shape, sigmoid_score{}, biased_key{}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}
/// Sigmoid: w = sigmoid(z)[ids].
constexpr auto flashinfer_sigmoid(router_shape shape) {
  return router(shape, sigmoid_score{}, score_key{});
}
/// TopKSigmoid: w = sigmoid(z[ids]).
constexpr auto flashinfer_top_k_sigmoid(router_shape shape) {
  return router(shape, logit_score{}, score_key{}, sigmoid_weights{});
}
/// TopK: w = z[ids].
constexpr auto flashinfer_top_k(router_shape shape) {
  return router(shape, logit_score{}, score_key{});
}

/// Megatron-LM's forced load balancing (apply_random_logits): normal numbers in place of the
/// logits; see random_logits. With a bias of each expert on top (apply_biased_logits), an add_rows
/// of one row behind them. Any router does: this one is softmax of the selected.
template <class Random>
constexpr auto forced_random(router_shape shape, Random numbers) {
  return router(shape, numbers, logit_score{}, score_key{}, softmax_weights{});
}
/// torchtitan's debug load balancing: experts in turn, w = sigmoid(z)[ids].
/// Source: torchtitan, models/moe.py, debug_force_load_balance.
constexpr auto forced_round_robin(router_shape shape) {
  return router(shape, sigmoid_score{}, round_robin{});
}
/// Router replay (Megatron-LM, vLLM): the experts that were recorded, with weights of the logits at
/// hand, w = p[ids] / sum(p[ids]). Any router does: put given_ids where its selection stands.
/// Source: megatron/core/transformer/moe/moe_utils.py, RouterReplay.
constexpr auto replayed(router_shape shape, given_ids recorded) {
  return router(shape, softmax_score{}, recorded, renormalize{});
}

}  // namespace expar::inline v0::models

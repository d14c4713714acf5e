// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/router.hpp>

namespace expar {
inline namespace v0 {

/// The routers of published models and systems, as values. Each is one composition of policies:
/// copy and change it where yours differs. z are the logits, k is top_k.
namespace models {

/// Mixtral 8x7B and 8x22B: softmax over all experts, top k, divided by their sum. No epsilon, no
/// scale. w = p[ids] / sum(p[ids]), p = softmax(z). Source: Hugging Face transformers, mixtral,
/// MixtralSparseMoeBlock.
constexpr auto mixtral(router_shape shape) {
  return router(shape, softmax_score{}, score_key{}, renormalize{});
}

/// Switch Transformer: the most probable expert, weighted by its probability. w = max(softmax(z)).
/// No epsilon, no scale. Source: Mesh TensorFlow, moe.py, _switch_gating.
constexpr auto switch_top1(int experts) {
  return router({.experts = experts, .top_k = 1}, softmax_score{}, score_key{});
}

/// GShard's two experts, of which the second is always kept: w = p[ids] / (sum(p[ids]) + 1e-9),
/// p = softmax(z). No scale. Source: Mesh TensorFlow, moe.py, _top_2_gating with second policy
/// "all".
constexpr auto gshard_top2(int experts) {
  return router({.experts = experts, .top_k = 2}, softmax_score{}, score_key{},
                renormalize{.epsilon = 1e-9});
}

/// Qwen1.5-MoE, Qwen2-MoE, OLMoE, DeepSeek-V1: softmax over all experts, top k, and the weights are
/// the probabilities as they are. w = softmax(z)[ids]. No epsilon, no scale. Source: Hugging Face
/// transformers, qwen2_moe with norm_topk_prob = False.
constexpr auto qwen2_moe(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}

/// Qwen3-MoE: as qwen2_moe, and then divided by their sum. w = p[ids] / sum(p[ids]), p =
/// softmax(z). No epsilon, no scale. Source: Hugging Face transformers, qwen3_moe with
/// norm_topk_prob = True.
constexpr auto qwen3_moe(router_shape shape) {
  return router(shape, softmax_score{}, score_key{}, renormalize{});
}

/// Tutel's top-k gate: w = p[ids] / max(sum(p[ids]), epsilon), p = softmax(z), epsilon = 2^-23
/// (that of float); for k = 1 the probability itself. Weights are divided before any route is
/// dropped. No scale. Source: Tutel, impls/fast_dispatch.py, extract_critical with normalize_gate =
/// True.
constexpr auto tutel(router_shape shape) {
  return router(
      shape, softmax_score{}, score_key{},
      renormalize{.epsilon = 0x1p-23, .kind = renormalize::guard::at_least, .single = false});
}

struct biased_shape {
  int experts;
  int top_k;
  double scale = 1;  // the model's routed_scaling_factor
};

/// GLM-4.5, and what routes like it (dots.llm1, Moonlight, Nemotron-3): sigmoid scores, selected by
/// score + bias, weighted by score. s = sigmoid(z), ids = top k of s + bias,
/// w = scale * s[ids] / (sum(s[ids]) + 1e-20).
/// Source: Hugging Face transformers, glm4_moe.
constexpr auto glm_4_5(biased_shape shape) {
  return router({.experts = shape.experts, .top_k = shape.top_k}, sigmoid_score{}, biased_key{},
                renormalize{.epsilon = 1e-20}, scale{shape.scale});
}

/// Kimi K2 (384 experts, k = 8, scale 2.827): the formula and epsilon of glm_4_5.
/// Source: SGLang, kimi_k2_biased_topk_impl.
constexpr auto kimi_k2(biased_shape shape = {.experts = 384, .top_k = 8, .scale = 2.827}) {
  return glm_4_5(shape);
}

struct grouped_shape {
  int experts;
  int top_k;
  int groups;
  int top_groups;
  double scale = 1;  // the model's routed_scaling_factor
};

/// DeepSeek-V3, R1, V3.1 and V3.2 (256 experts, k = 8, 4 of 8 groups, scale 2.5): the formula and
/// epsilon of glm_4_5, among the experts of the groups whose two largest keys have the largest sum.
/// Source: Hugging Face transformers, deepseek_v3; DeepSeek-V3, inference/model.py, Gate.
constexpr auto deepseek_v3(
    grouped_shape shape = {
        .experts = 256, .top_k = 8, .groups = 8, .top_groups = 4, .scale = 2.5}) {
  return router({.experts = shape.experts, .top_k = shape.top_k}, sigmoid_score{}, biased_key{},
                group_limited{shape.groups, shape.top_groups, 2}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}

}  // namespace models
}  // namespace v0
}  // namespace expar

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models/shapes.hpp>

namespace expar::inline v0::models {

// A score for each expert by itself, s = sigmoid(z) unless another is named; the experts with the
// largest s + bias; weights from s alone. z are the logits.

/// DeepSeek-V3, R1, V3.1 and V3.2, Ling-1T and Ring-1T, A.X K1 (192 experts): among the experts of
/// the groups whose two largest keys have the largest sum, w = scale * s[ids] / (sum(s[ids]) +
/// 1e-20). Source: Hugging Face transformers, deepseek_v3, axk1; DeepSeek-V3, inference/model.py,
/// Gate (which has no epsilon).
constexpr auto deepseek_v3(
    grouped_shape shape = {
        .experts = 256, .top_k = 8, .groups = 8, .top_groups = 4, .scale = 2.5}) {
  return router(shape, sigmoid_score{}, biased_key{},
                group_limited{shape.groups, shape.top_groups, 2}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}

/// A.X K2 with groups: the same, but experts of other groups have key 0, and so come before those
/// of the best groups whose s + bias is below 0. Without groups, as A.X K2 Light, biased_sigmoid().
/// Source: Hugging Face transformers, axk2.
constexpr auto a_x_k2(grouped_shape shape) {
  return router(shape, sigmoid_score{}, biased_key{},
                group_limited{shape.groups, shape.top_groups, 2, true},
                renormalize{.epsilon = 1e-20}, scale{shape.scale});
}

/// GLM-4.5 and 4.6: w = scale * s[ids] / (sum(s[ids]) + 1e-20).
/// Source: Hugging Face transformers, glm4_moe.
constexpr auto glm_4_5(scaled_shape shape = {.experts = 160, .top_k = 8, .scale = 2.5}) {
  return router(shape, sigmoid_score{}, biased_key{}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}
/// Kimi K2: the formula of glm_4_5. Source: SGLang, kimi_k2_biased_topk_impl.
constexpr auto kimi_k2(scaled_shape shape = {.experts = 384, .top_k = 8, .scale = 2.827}) {
  return glm_4_5(shape);
}
/// Moonlight: the formula of glm_4_5. Source: Moonshot AI, Moonlight-16B-A3B, configuration.
constexpr auto moonlight(scaled_shape shape = {.experts = 64, .top_k = 6, .scale = 2.446}) {
  return glm_4_5(shape);
}
/// dots.llm1: the formula of glm_4_5. Source: Hugging Face transformers, dots1.
constexpr auto dots_llm1(scaled_shape shape = {.experts = 128, .top_k = 6, .scale = 2.5}) {
  return glm_4_5(shape);
}
/// Nemotron-3 (Nano; Super and Ultra have 512 experts and k = 22): the formula of glm_4_5.
/// Source: Hugging Face transformers, nemotron_h.
constexpr auto nemotron_3(scaled_shape shape = {.experts = 128, .top_k = 6, .scale = 2.5}) {
  return glm_4_5(shape);
}
/// MiMo-V2-Flash, EXAONE-MoE, Step-3.5, A.X K2 Light and what else has the formula of glm_4_5.
/// Source: Hugging Face transformers, the models of these names.
constexpr auto biased_sigmoid(scaled_shape shape) {
  return glm_4_5(shape);
}

/// MiniMax-M2: w = s[ids] / sum(s[ids]). Source: Hugging Face transformers, minimax_m2.
constexpr auto minimax_m2(router_shape shape = {.experts = 256, .top_k = 8}) {
  return router(shape, sigmoid_score{}, biased_key{}, renormalize{});
}
/// AfMoE (Trinity): the formula of glm_4_5. Source: Hugging Face transformers, afmoe.
constexpr auto afmoe(scaled_shape shape) {
  return glm_4_5(shape);
}
/// LFM2-MoE: w = scale * s[ids] / (sum(s[ids]) + 1e-6). Source: Hugging Face transformers,
/// lfm2_moe.
constexpr auto lfm2_moe(scaled_shape shape) {
  return router(shape, sigmoid_score{}, biased_key{}, renormalize{.epsilon = 1e-6},
                scale{shape.scale});
}

/// DeepSeek-V4: s = sqrt(log(1 + exp(z))), w = scale * s[ids] / (sum(s[ids]) + 1e-20).
/// Source: Hugging Face transformers, deepseek_v4.
constexpr auto deepseek_v4(scaled_shape shape = {.experts = 256, .top_k = 6, .scale = 1.5}) {
  return router(shape, sqrt_softplus_score{}, biased_key{}, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}
/// The first layers of DeepSeek-V4: the same score and weights of the experts that a table names
/// for the token's vocabulary id. Source: Hugging Face transformers, deepseek_v4, HashRouter.
constexpr auto deepseek_v4_hash(scaled_shape shape, table_ids experts_of) {
  return router(shape, sqrt_softplus_score{}, experts_of, renormalize{.epsilon = 1e-20},
                scale{shape.scale});
}

/// Laguna: z = cap * tanh(z / cap) first, unless the cap is 0, then w = scale * s[ids] /
/// sum(s[ids]), where s is the sigmoid, or sqrt_softplus_score. Source: Hugging Face transformers,
/// laguna, whose moe_router_logit_softcapping is 0 unless a model says otherwise.
template <class Score = sigmoid_score>
constexpr auto laguna(scaled_shape shape = {.experts = 256, .top_k = 8}, double cap = 0,
                      Score score = {}) {
  return router(shape, soft_cap{cap}, score, biased_key{}, renormalize{}, scale{shape.scale});
}

/// Kolibri 1: selected by z + bias, w = s[ids] / sum(s[ids]). Source: Hugging Face transformers,
/// kolibri1, with norm_topk_prob.
constexpr auto kolibri_1(router_shape shape = {.experts = 384, .top_k = 6}) {
  return router(shape, sigmoid_score{}, biased_logit_key{}, renormalize{});
}

/// Klear-46B: w = s[ids] / sum(s[ids]). Shared and routed experts are mixed by a softmax of two
/// numbers that a linear map makes of the token. Source: mlx-lm, klear.py, with norm_topk_prob.
constexpr auto klear(router_shape shape = {.experts = 256, .top_k = 8}) {
  return router(shape, sigmoid_score{}, biased_key{}, renormalize{});
}

}  // namespace expar::inline v0::models

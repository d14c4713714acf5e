// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models/shapes.hpp>

namespace expar::inline v0::models {

// Softmax over all experts, then the k most probable. p = softmax(z), z are the logits. No epsilon
// and no scale unless they are named.

/// Mixtral 8x7B and 8x22B, MiniMax-Text-01: w = p[ids] / sum(p[ids]), which is softmax(z[ids]) and
/// computed so: k exponentials instead of one for each expert, and no sum that is too small. In
/// training, Hugging Face multiplies the tokens themselves by noise of U(1 - e, 1 + e); see
/// jitter(). Source: Hugging Face transformers, mixtral, MixtralSparseMoeBlock; minimax.
constexpr auto mixtral(router_shape shape = {.experts = 8, .top_k = 2}) {
  return router(shape, logit_score{}, score_key{}, softmax_weights{});
}

/// Qwen1.5-MoE, Qwen2-MoE, DeepSeek-V1, DeepSeek-V2-Lite, OLMoE, FlexOlmo: w = p[ids].
/// Source: Hugging Face transformers, qwen2_moe with norm_topk_prob = False; deepseek_v2; olmoe.
constexpr auto qwen2_moe(router_shape shape = {.experts = 60, .top_k = 4}) {
  return router(shape, softmax_score{}, score_key{});
}

/// Qwen3-MoE, Qwen3-Coder, Qwen3-Next, Qwen3.5: the formula of mixtral().
/// Source: Hugging Face transformers, qwen3_moe with norm_topk_prob = True.
constexpr auto qwen3_moe(router_shape shape = {.experts = 128, .top_k = 8}) {
  return mixtral(shape);
}

/// Snowflake Arctic: w = p[ids] / sum(p[ids]), and for k = 1 the probability as it is.
/// Source: Hugging Face transformers, arctic.
constexpr auto arctic(router_shape shape = {.experts = 128, .top_k = 2}) {
  return router(shape, softmax_score{}, score_key{}, renormalize{.single = false});
}

/// Jamba: w = p[ids]. Source: Hugging Face transformers, jamba.
constexpr auto jamba(router_shape shape = {.experts = 16, .top_k = 2}) {
  return router(shape, softmax_score{}, score_key{});
}

/// Grok-1: w = p[ids]. Source: xai-org/grok-1, model.py.
constexpr auto grok_1(router_shape shape = {.experts = 8, .top_k = 2}) {
  return router(shape, softmax_score{}, score_key{});
}

/// Grok-2: the same after z = cap * tanh(z / cap), cap = 30. Source: SGLang, layers/moe/router.py.
constexpr auto grok_2(router_shape shape = {.experts = 8, .top_k = 2}, double cap = 30) {
  return router(shape, soft_cap{cap}, softmax_score{}, score_key{});
}

/// Grok-2 with SGLang's correction bias, which is one row: p = softmax(cap * tanh(z / cap) + bias),
/// so that weights have it too. Source: SGLang, layers/moe/router.py.
template <class T>
constexpr auto grok_2_biased(router_shape shape, add_rows<T> bias, double cap = 30) {
  return router(shape, soft_cap{cap}, bias, softmax_score{}, score_key{});
}

/// DBRX: w = p[ids] / norm(p[ids]), the norm of order `norm`, of which 1 is the released one.
/// Source: databricks/dbrx, modeling_dbrx.py.
constexpr auto dbrx(router_shape shape = {.experts = 16, .top_k = 4}, double norm = 1) {
  return router(shape, softmax_score{}, score_key{}, normalize{norm});
}

/// MegaBlocks' LearnedRouter without moe_normalize_expert_weights: w = p[ids]; with it, dbrx().
/// Source: databricks/megablocks, layers/router.py.
constexpr auto megablocks(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}

/// DeepSeek-V2 (236B): among the 3 of 8 groups with the largest probability of one expert,
/// w = 16 * p[ids]. Source: Hugging Face transformers, deepseek_v2, group_limited_greedy.
constexpr auto deepseek_v2(
    grouped_shape shape = {.experts = 160, .top_k = 6, .groups = 8, .top_groups = 3, .scale = 16}) {
  return router(shape, softmax_score{}, score_key{},
                group_limited{shape.groups, shape.top_groups, 1}, scale{shape.scale});
}

/// Mistral 4: among the experts of the groups whose two largest probabilities have the largest sum
/// (others have key 0), w = scale * p[ids] / (sum(p[ids]) + 1e-20). The released model has one
/// group. Source: Hugging Face transformers, mistral4.
constexpr auto mistral_4(grouped_shape shape = {
                             .experts = 128, .top_k = 4, .groups = 1, .top_groups = 1}) {
  return router(shape, softmax_score{}, score_key{},
                group_limited{shape.groups, shape.top_groups, 2, true},
                renormalize{.epsilon = 1e-20}, scale{shape.scale});
}

/// ERNIE-4.5 (text): selected by p + bias, w = p[ids] / max(sum(p[ids]), 1e-12).
/// Source: Hugging Face transformers, ernie4_5_moe.
constexpr auto ernie_4_5(router_shape shape = {.experts = 64, .top_k = 6}) {
  return router(shape, softmax_score{}, biased_key{},
                renormalize{.epsilon = 1e-12, .kind = renormalize::guard::at_least});
}

/// ERNIE-4.5-VL: the same among the experts of the token's modality, whose gate is its own: the
/// logits of all modalities stand side by side. Score: sigmoid_score for moe_gate_act "sigmoid".
/// Source: Hugging Face transformers, ernie4_5_vl_moe; PaddlePaddle ERNIE, the family of
/// top2_gate.py.
template <class Score = softmax_score>
constexpr auto ernie_4_5_vl(router_shape shape, experts_of_class modality, Score score = {}) {
  return router(shape, modality, score, biased_key{},
                renormalize{.epsilon = 1e-12, .kind = renormalize::guard::at_least});
}

/// LongCat-Flash: 512 experts, and 256 identities behind them that take part in the softmax and in
/// the choice; selected by p + bias, w = 6 * p[ids]. A route to an id >= 512 gives w * token.
/// Source: Hugging Face transformers, longcat_flash.
constexpr auto longcat_flash(scaled_shape shape = {.experts = 768, .top_k = 12, .scale = 6}) {
  return router(shape, softmax_score{}, biased_key{}, scale{shape.scale});
}

/// Gemma 4: w = p[ids] / sum(p[ids]) * factors[ids], factors [experts] are learned.
/// Source: Hugging Face transformers, gemma4, Gemma4TextRouter.
template <class T>
constexpr auto gemma_4(router_shape shape, expert_scale<T> factors) {
  return router(shape, softmax_score{}, score_key{}, renormalize{}, factors);
}

/// Pangu Pro (mixture of grouped experts): k / groups experts of every group, w = p[ids].
/// Source: arXiv:2505.21411.
constexpr auto pangu_pro(router_shape shape = {.experts = 64, .top_k = 8}, int groups = 8) {
  return router(shape, softmax_score{}, score_key{}, top_k_per_group{groups});
}

/// Hunyuan-Large: w = p[ids] / max(sum(p[ids]), 2^-23), and for k = 1 the probability as it is.
/// Source: Tencent-Hunyuan-Large, models/modeling_hunyuan.py.
constexpr auto hunyuan_large(router_shape shape = {.experts = 16, .top_k = 1}) {
  return router(
      shape, softmax_score{}, score_key{},
      renormalize{.epsilon = 0x1p-23, .kind = renormalize::guard::at_least, .single = false});
}

/// HunYuan-A13B: the formula of hunyuan_large; an expert takes capacities::hunyuan() routes.
/// Source: Hugging Face transformers, hunyuan_v1_moe.
constexpr auto hunyuan_a13b(router_shape shape) {
  return hunyuan_large(shape);
}

/// ZAYA1: selected by p + bias, w = p[id], and 0 for the last expert, which is none: 16 experts and
/// that one. Source: Hugging Face transformers, zaya.
constexpr auto zaya(router_shape shape = {.experts = 17, .top_k = 1}) {
  return router(shape, softmax_score{}, biased_key{},
                zero_weights_of{shape.experts - 1, shape.experts});
}

/// GroveMoE: selected by sigmoid(z), w = p[ids] / sum(p[ids]).
/// Source: llama.cpp, build_moe_ffn.
constexpr auto grove_moe(router_shape shape = {.experts = 128, .top_k = 8}) {
  return router(shape, softmax_score{}, scored_key{sigmoid_score{}}, renormalize{});
}

/// MoE++: w = p[ids], 0 for the zero experts [first, last), then w / sum(w). The logits are those
/// of the layer, perhaps divided by their deviation (normalize_rows()), plus a map of the layer
/// before, which add_rows adds; the layer's input is multiplied by k elsewhere. Source:
/// SkyworkAI/MoE-plus-plus, moe_plus_plus_layer.py.
constexpr auto moe_plus_plus(router_shape shape, zero_weights_of zero_experts) {
  return router(shape, softmax_score{}, score_key{}, zero_experts, renormalize{});
}
template <class T>
constexpr auto moe_plus_plus(router_shape shape, zero_weights_of zero_experts,
                             add_rows<T> logits_before) {
  return router(shape, logits_before, softmax_score{}, score_key{}, zero_experts, renormalize{});
}

}  // namespace expar::inline v0::models

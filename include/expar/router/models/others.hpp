// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/expert_choice.hpp>
#include <expar/router/shared_experts.hpp>
#include <expar/router/sparsemixer.hpp>

namespace expar::inline v0::models {

// What is a router, but not made of policies: two stages with an adjoint of their own, experts that
// choose tokens, experts that every token takes.

/// Phi-3.5-MoE and Phi-mini-MoE at inference: sparse_mixer, for route(). Source: Hugging Face
/// transformers, phimoe, router_jitter_noise = 0.01.
constexpr auto phi_3_5_moe(int experts = 16, double jitter = 0.01) {
  return sparse_mixer(experts, jitter);
}
/// The same in training, with numbers for both choices and for Heun's method.
template <class First, class Second, class Uniform>
constexpr auto phi_3_5_moe(int experts, double jitter, First first, Second second,
                           Uniform uniform) {
  return sparse_mixer_training(experts, jitter, first, second, uniform);
}

/// Expert choice of flaxformer (ExpertsChooseMaskedRouter) and V-MoE: each expert takes the
/// `capacity` tokens with the largest p, p = softmax over experts; w = p. For choose_tokens().
constexpr expert_choice expert_choice_flaxformer(int experts, int capacity) {
  return {.experts = experts,
          .capacity = capacity,
          .axis = expert_choice::softmax::over_experts,
          .divide_by_experts = false};
}
/// Expert choice of Mesh TensorFlow (_expert_selection_gating): p = softmax over tokens; w = p
/// divided by the number of experts that took the token. For choose_tokens().
constexpr expert_choice expert_choice_mesh_tensorflow(int experts, int capacity) {
  return {.experts = experts,
          .capacity = capacity,
          .axis = expert_choice::softmax::over_tokens,
          .divide_by_experts = true};
}

/// Shared experts behind the routed ones, weight 1 (FlashInfer, routing_deepseek.cu). For
/// append_shared().
constexpr shared_experts shared_experts_flashinfer(int experts, int count) {
  return {.experts = experts, .count = count, .kind = shared_experts::weight::one};
}
/// The same with weight 1 / scale, for SGLang, which multiplies the output by the scale later: the
/// sum of the routed weights over the scale where they are normalized, else 1 over the scale
/// (topk.py, remap_topk_for_per_rank_shared_slots).
constexpr shared_experts shared_experts_sglang(int experts, int count, double scale) {
  return {.experts = experts, .count = count, .kind = shared_experts::weight::one, .scale = scale};
}

}  // namespace expar::inline v0::models

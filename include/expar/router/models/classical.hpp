// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models/shapes.hpp>

namespace expar::inline v0::models {

// Switch, GShard and their descendants: one expert or two, and then a capacity. p = softmax(z), z
// are the logits. What drops routes works on ids and weights behind route(): see plan/. Noise is a
// transform policy; without it, as in evaluation, leave it out.

/// Switch Transformer: w = max(p). In training the token is multiplied by noise before the gate
/// (jitter()). Source: Mesh TensorFlow, transformer/moe.py, _switch_gating; Hugging Face
/// transformers, switch_transformers. Switch-max (_switch_max_gating) is the same, with routes
/// dropped by probability.
constexpr auto switch_top1(int experts) {
  return router({.experts = experts, .top_k = 1}, softmax_score{}, score_key{});
}
/// The same with an expert that is drawn: noise is Gumbel's, on the logits that are compared; the
/// weight is the probability without it. Source: Mesh TensorFlow, _switch_gating with policy
/// "sample"; DeepSpeed, sharded_moe.py, top1gating with RSample.
template <class Noise>
constexpr auto switch_sampled(int experts, Noise noise) {
  return router({.experts = experts, .top_k = 1}, softmax_score{}, perturbed_key{noise});
}

/// No Token Left Behind: k candidates, of which a token takes the first that has room; w = p of
/// that one. Source: Mesh TensorFlow, _ntlb_gating.
constexpr auto ntlb(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}

/// GShard: w = p[ids] / (sum(p[ids]) + 1e-9), before any route is dropped; whether the second is
/// taken is for keep_choice(). Source: Mesh TensorFlow, _top_2_gating.
constexpr auto gshard_top2(int experts) {
  return router({.experts = experts, .top_k = 2}, softmax_score{}, score_key{},
                renormalize{.epsilon = 1e-9});
}

/// fairscale: w = p[ids], the second by Gumbel noise; divided by their sum after routes are
/// dropped. Source: fairscale/nn/moe/top2gate.py.
template <class Noise>
constexpr auto fairscale_top2(int experts, Noise noise) {
  return router({.experts = experts, .top_k = 2}, softmax_score{}, score_key{},
                perturbed_rest{noise});
}

/// DeepSpeed, k = 1: w = max(p). Source: deepspeed/moe/sharded_moe.py, top1gating.
constexpr auto deepspeed_top1(int experts) {
  return switch_top1(experts);
}
/// DeepSpeed, any k: w = p[ids], divided by max(sum, epsilon) after routes are dropped. Source:
/// top2gating, topkgating.
constexpr auto deepspeed_top_k(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}
/// DeepSpeed, k = 2 with the second by Gumbel noise. Source: top2gating.
template <class Noise>
constexpr auto deepspeed_top2(int experts, Noise noise) {
  return fairscale_top2(experts, noise);
}

/// NLLB-MoE with normalize_router_prob_before_dropping: w = p[ids] / max(sum(p[ids]), 2^-23).
/// Without it, deepspeed_top_k() and the division after routes are dropped. Source: Hugging Face
/// transformers, nllb_moe.
constexpr auto nllb_moe(int experts) {
  return router({.experts = experts, .top_k = 2}, softmax_score{}, score_key{},
                renormalize{.epsilon = 0x1p-23, .kind = renormalize::guard::at_least});
}
/// The same with the second by Gumbel noise (second_expert_policy "sampling").
template <class Noise>
constexpr auto nllb_moe(int experts, Noise noise) {
  return router({.experts = experts, .top_k = 2}, softmax_score{}, score_key{},
                perturbed_rest{noise},
                renormalize{.epsilon = 0x1p-23, .kind = renormalize::guard::at_least});
}

/// FastMoE's GShardGate: w = softmax(z[ids]), unchanged by what is dropped. Source:
/// fmoe/gates/gshard_gate.py.
constexpr auto fastmoe_gshard(int experts) {
  return router({.experts = experts, .top_k = 2}, logit_score{}, score_key{}, softmax_weights{});
}
/// FastMoE's SwitchGate: w = max(p) of z + U(1 - e, 1 + e). Source: fmoe/gates/switch_gate.py.
template <class Noise>
constexpr auto fastmoe_switch(int experts, Noise noise) {
  return router({.experts = experts, .top_k = 1}, noise, softmax_score{}, score_key{});
}
/// FastMoE's ZeroGate: everything to expert 0, w = 1. Source: fmoe/gates/zero_gate.py, k = 1.
constexpr auto fastmoe_zero(int experts) {
  return router({.experts = experts, .top_k = 1}, expert_range{0, 1}, softmax_score{}, score_key{},
                equal_weights{});
}

/// V-MoE: w = p[ids] of noisy logits, noise of N(0, (noise_std / experts)^2). Source:
/// google-research/vmoe, vmoe/nn/routing.py.
constexpr auto v_moe(router_shape shape) {
  return router(shape, softmax_score{}, score_key{});
}
template <class Noise>
constexpr auto v_moe(router_shape shape, Noise noise) {
  return router(shape, noise, softmax_score{}, score_key{});
}

/// Tutel's top-k gate: w = p[ids] / max(sum(p[ids]), epsilon), epsilon = 2^-23 (that of float); for
/// k = 1 the probability itself. Divided before any route is dropped. Noise: gate_noise / experts
/// times N(0, 1). The cosine gate (SwinV2-MoE) has the same router, on logits of normalize_rows().
/// Source: Tutel, impls/fast_dispatch.py, extract_critical with normalize_gate = True;
/// gates/cosine_top.py.
constexpr auto tutel(router_shape shape) {
  return router(
      shape, softmax_score{}, score_key{},
      renormalize{.epsilon = 0x1p-23, .kind = renormalize::guard::at_least, .single = false});
}
template <class Noise>
constexpr auto tutel(router_shape shape, Noise noise) {
  return router(
      shape, noise, softmax_score{}, score_key{},
      renormalize{.epsilon = 0x1p-23, .kind = renormalize::guard::at_least, .single = false});
}

/// ST-MoE of lucidrains: w = p[ids] / max(sum(p[ids]), 1e-9); experts after the first are kept by
/// keep_choice(). Source: lucidrains/st-moe-pytorch.
constexpr auto st_moe(router_shape shape) {
  return router(shape, softmax_score{}, score_key{},
                renormalize{.epsilon = 1e-9, .kind = renormalize::guard::at_least});
}

}  // namespace expar::inline v0::models

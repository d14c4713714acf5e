// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models/shapes.hpp>

namespace expar::inline v0::models {

// The k largest logits first, and weights from them alone. z are the logits.

/// gpt-oss 20b and 120b (128 experts): w = softmax(z[ids]). The linear map has a bias, which is in
/// the logits. Source: openai/gpt-oss, torch/model.py.
constexpr auto gpt_oss(router_shape shape = {.experts = 32, .top_k = 4}) {
  return router(shape, logit_score{}, score_key{}, softmax_weights{});
}
/// GraniteMoE: w = softmax(z[ids]). Source: Hugging Face transformers, granitemoe.
constexpr auto granite_moe(router_shape shape = {.experts = 32, .top_k = 8}) {
  return gpt_oss(shape);
}
/// JetMoE: w = softmax(z[ids]). Source: Hugging Face transformers, jetmoe.
constexpr auto jetmoe(router_shape shape = {.experts = 8, .top_k = 2}) {
  return gpt_oss(shape);
}
/// Aria: w = softmax(z[ids]). Source: Hugging Face transformers, aria.
constexpr auto aria(router_shape shape = {.experts = 64, .top_k = 6}) {
  return gpt_oss(shape);
}

/// Cohere2-MoE (Command A+): w = softmax(z[ids]). Source: Hugging Face transformers, cohere2_moe,
/// with expert_selection_fn "softmax".
constexpr auto cohere2_moe(router_shape shape = {.experts = 8, .top_k = 2}) {
  return gpt_oss(shape);
}
/// The same with expert_selection_fn "sigmoid" and norm_topk_prob: w = sigmoid(z[ids]) /
/// sum(sigmoid(z[ids])).
constexpr auto cohere2_moe_sigmoid(router_shape shape = {.experts = 8, .top_k = 2}) {
  return router(shape, logit_score{}, score_key{}, sigmoid_weights{}, renormalize{});
}

/// Yuan 2.0-M32: w = softmax(z[ids]), z from attention_logits(). Source: Yuan2,
/// ParallelAttention_router.
constexpr auto yuan_2(router_shape shape = {.experts = 32, .top_k = 2}) {
  return gpt_oss(shape);
}

/// Llama 4 Scout and Maverick (128 experts): w = sigmoid(z[ids]), multiplied with the tokens that
/// the experts get. Source: Hugging Face transformers, llama4.
constexpr auto llama_4(router_shape shape = {.experts = 16, .top_k = 1}) {
  return router(shape, logit_score{}, score_key{}, sigmoid_weights{}, on_input{});
}

/// FastMoE's NaiveGate: w = softmax(z[ids]). Source: fmoe/gates/naive_gate.py.
constexpr auto fastmoe_naive(router_shape shape) {
  return gpt_oss(shape);
}

/// Noisy top-k of Shazeer et al. 2017: w = softmax(h[ids]), h = z + noise; see learned_noise.
/// Source: arXiv:1701.06538; fmoe/gates/noisy_gate.py; Tensor2Tensor, expert_utils.py.
template <class Noise>
constexpr auto noisy_top_k(router_shape shape, Noise noise) {
  return router(shape, noise, logit_score{}, score_key{}, softmax_weights{});
}

/// SMoE-Dropout and THOR: random experts, w = softmax of the random numbers, which take the place
/// of the logits; see random_logits. Source: VITA-Group/Random-MoE-as-Dropout, CustomRandomGate.
template <class Random>
constexpr auto smoe_dropout(router_shape shape, Random numbers) {
  return router(shape, numbers, logit_score{}, score_key{}, softmax_weights{});
}

}  // namespace expar::inline v0::models

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models/shapes.hpp>

namespace expar::inline v0::models {

// As many experts as a token needs, fixed tables, assignments. z are the logits. Where the number
// of experts varies, top_k is the largest number of them; route_variable() keeps those that are.

/// Hash Layers: the experts that a table names for the token, w = 1 / k. Source: arXiv:2106.04426;
/// VITA-Group/Random-MoE-as-Dropout, CustomHashGate, whose table is by position.
constexpr auto hash_layers(router_shape shape, table_ids experts_of) {
  return router(shape, softmax_score{}, experts_of, equal_weights{});
}

/// Dense-to-Sparse (EvoMoE): w = p[ids], p = softmax((z + noise) / tau), k from
/// dense_to_sparse_k(). In evaluation qwen2_moe(). Source: VITA-Group/Random-MoE-as-Dropout,
/// CustomDTSGate.
template <class Noise>
constexpr auto dense_to_sparse(router_shape shape, Noise noise, double tau) {
  return router(shape, noise, temperature{tau}, softmax_score{}, score_key{});
}

/// Top-p (Dynamic_MoE): the most probable experts until they exceed p together, w =
/// softmax(z)[ids]. Source: ZhenweiAn/Dynamic_MoE, modeling/modeling_moe.py, p = 0.4.
constexpr auto top_p_moe(int experts, double p = 0.4) {
  return router({.experts = experts, .top_k = experts}, softmax_score{}, score_key{}, top_p{p});
}

/// DynMoE's top-any gate: every expert with sigmoid(z) + bias > 0, by ascending id, where z is the
/// scaled cosine and the bias is -sigmoid(tau * threshold); w = 1 / (how many), with a
/// straight-through gradient. That for the bias is, at each expert, the sum of d_weights / (how
/// many) over its routes. In evaluation (or_best) a token for which none fires takes the largest z.
/// Source: LINs-lab/DynMoE, sharded_moe.py.
constexpr auto dynmoe(int experts, bool or_best) {
  return router({.experts = experts, .top_k = experts}, sigmoid_score{}, biased_key{},
                positive_keys{or_best}, equal_weights{.straight_through = true});
}

/// ReMoE: every expert with z > 0, by ascending id, w = z. Source: thu-ml/ReMoE.
constexpr auto remoe(int experts) {
  return router({.experts = experts, .top_k = experts}, relu_score{}, score_key{}, positive_keys{});
}

/// BASE: the expert that balanced_assignment() gives the token, w = alpha = sigmoid(z)[id]; the
/// output is alpha * expert(x) + (1 - alpha) * x. In evaluation the largest z: leave the ids out.
/// Source: arXiv:2103.16716; fairseq/modules/base_layer.py.
constexpr auto base_layer(int experts, given_ids assigned) {
  return router({.experts = experts, .top_k = 1}, sigmoid_score{}, assigned);
}
constexpr auto base_layer(int experts) {
  return router({.experts = experts, .top_k = 1}, sigmoid_score{}, score_key{});
}

}  // namespace expar::inline v0::models

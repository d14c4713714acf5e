// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/router/cv_squared.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>

namespace expar::inline v0 {

struct score_importance_fn {
  template <score_policy Score, class Logits, class Sums>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Sums&& sums) const {
    detail::arguments a(ctx, "score_importance");
    auto const z = detail::logits_of_loss(a, "logits", logits);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    auto const s =
        detail::as_sums(a.written_any_vector("sums", sums, {{experts, "the number of experts"}}));
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::check_score(a, score, z);
    detail::sum_rows<A>(ctx, tokens, experts, z.valid, s, [&](int, index_t t, A* row) {
      A* const wide = row + experts;
      detail::widen_row(z.row(t), wide, experts);
      score(static_cast<A const*>(wide), row, static_cast<int>(experts));
    });
  }
};
/// `score_importance(ctx, score, logits, sums)`: how much each expert weighs in a batch, sums[e] =
/// sum over tokens of the score of e.
///   score: softmax_score for V-MoE and Tutel, which take the logits without noise
///   logits: [T, experts], any element type, or only(valid, logits). NaN and -inf have score 0
///   sums: [experts] of double, overwritten. They add up over ranks
/// The importance loss is cv_squared(ctx, sums, options).
inline constexpr score_importance_fn score_importance{};

struct score_importance_loss_backward_fn {
  template <score_policy Score, class Logits, class Sums, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Sums const& sums, cv_squared_options const& options, DLogits&& d_logits) const {
    detail::arguments a(ctx, "score_importance_loss_backward");
    auto const z = detail::logits_of_loss(a, "logits", logits);
    auto const s =
        detail::as_sums(a.read_any_vector("sums", sums, {{z.extents[1], "the number of experts"}}));
    auto const dz = detail::gradient_of_loss(a, z, d_logits);
    detail::check_score(a, score, z);
    detail::buffer<double> slopes(ctx.memory());
    detail::make_variation_slopes(a, s, options, slopes);
    detail::score_sum<Score> const term{score, slopes.data(), static_cast<int>(z.extents[1])};
    detail::loss_of_tokens(ctx, z, term, dz);
  }
};
/// `score_importance_loss_backward(ctx, score, logits, sums, options, d_logits)`: the gradient of
/// cv_squared(ctx, sums, options) to d_logits [T, experts], any element type, overwritten, or added
/// to by add_to(d_logits), where sums are score_importance() of this call's logits or of all
/// ranks'. That of tokens left out is 0.
inline constexpr score_importance_loss_backward_fn score_importance_loss_backward{};

struct weight_importance_fn {
  template <class Ids, class Weights, class Sums>
  void operator()(host_context const& ctx, Ids const& ids, Weights const& weights,
                  Sums&& sums) const {
    detail::arguments a(ctx, "weight_importance");
    auto const i = a.masked_ids("ids", ids);
    index_t const tokens = i.extents[0], k = i.extents[1];
    auto const w = a.read("weights", weights,
                          {{tokens, "the number of tokens"}, {k, "the number of choices"}});
    auto const s = detail::as_sums(a.written_any_vector("sums", sums));
    index_t const experts = s.extents[0];
    detail::check_expert_ids("weight_importance: ids", i, experts, i.valid);
    detail::sum_rows<double>(ctx, tokens, 0, i.valid, s, [&](int, index_t t, double* row) {
      for (index_t e = 0; e < experts; ++e) row[e] = 0;
      for (index_t j = 0; j < k; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0)
          row[id] += static_cast<double>(widen(w.row(t)[j]));
    });
  }
};
/// `weight_importance(ctx, ids, weights, sums)`: the same of the weights of routes, sums[e] = sum
/// of the weights of the routes to e (Shazeer; fastmoe's noisy gate).
///   ids: [T,k] of a signed integer type, -1 = no expert, or only(valid, ids)
///   weights: [T,k], any element type
inline constexpr weight_importance_fn weight_importance{};

struct weight_importance_loss_backward_fn {
  template <class Ids, class Sums, class DWeights>
  void operator()(host_context const& ctx, Ids const& ids, Sums const& sums,
                  cv_squared_options const& options, DWeights&& d_weights) const {
    detail::arguments a(ctx, "weight_importance_loss_backward");
    auto const i = a.masked_ids("ids", ids);
    index_t const tokens = i.extents[0], k = i.extents[1];
    auto const s = detail::as_sums(a.read_any_vector("sums", sums));
    auto const dw = a.gradient("d_weights", d_weights,
                               {{tokens, "the number of tokens"}, {k, "the number of choices"}});
    detail::check_expert_ids("weight_importance_loss_backward: ids", i, s.extents[0], i.valid);
    detail::buffer<double> slopes(ctx.memory());
    detail::make_variation_slopes(a, s, options, slopes);
    ctx.for_each_chunk(tokens, 1024, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; j < k; ++j) {
          std::int32_t const id = i.row(t)[j];
          dw.put(dw.row(t)[j], i.valid(t) && id >= 0 ? slopes[id] : 0);
        }
    });
  }
};
/// `weight_importance_loss_backward(ctx, ids, sums, options, d_weights)`: the gradient of
/// cv_squared(ctx, sums, options) to d_weights [T,k], any element type, overwritten, or added to by
/// add_to(d_weights), where sums are weight_importance(). That of tokens left out, and where there
/// is no expert, is 0. route_backward() takes it on to the logits.
inline constexpr weight_importance_loss_backward_fn weight_importance_loss_backward{};

}  // namespace expar::inline v0

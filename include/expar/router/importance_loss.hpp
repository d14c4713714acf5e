// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/count_choices.hpp>  // check_leading_ids
#include <expar/router/cv_squared.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct score_importance_fn {
  template <score_policy Score, class Logits, class Sums>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Sums&& sums) const {
    (*this)(ctx, score, logits, detail::every_token{}, sums);
  }
  template <score_policy Score, class Logits, class Valid, class Sums>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Valid const& valid, Sums&& sums) const {
    auto const z = detail::as_view<2>(ctx, logits);
    auto const s = detail::as_output<1>(ctx, sums);
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    index_t const tokens = z.extents[0], experts = z.extents[1];
    detail::check_loss_logits("score_importance: logits", z);
    detail::check_score("score_importance", score, experts, tokens);
    auto const marks = detail::marks_of("score_importance: valid", ctx, valid, tokens);
    detail::check_sums("score_importance: sums", s, experts);
    detail::sum_rows<A>(ctx, tokens, experts, experts, marks, s.data, [&](int, index_t t, A* row) {
      A* const wide = row + experts;
      detail::widen_row(z.row(t), wide, experts);
      score(static_cast<A const*>(wide), row, static_cast<int>(experts));
    });
  }
};
/// How much each expert weighs in a batch, sums[e] = sum over tokens of the score of e, as
/// score_importance(ctx, score, logits, [valid,] sums):
///   score: softmax_score for V-MoE and Tutel, which take the logits without noise
///   logits: [T, experts], any element type; NaN and -inf have score 0
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
///   sums: [experts] of double, overwritten. They add up over ranks
/// The importance loss is cv_squared(ctx, sums, options).
inline constexpr score_importance_fn score_importance{};

struct score_importance_loss_backward_fn {
  template <score_policy Score, class Logits, class Sums, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Sums const& sums, cv_squared_options const& options, DLogits&& d_logits) const {
    (*this)(ctx, score, logits, sums, detail::every_token{}, options, d_logits);
  }
  template <score_policy Score, class Logits, class Sums, class Valid, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Sums const& sums, Valid const& valid, cv_squared_options const& options,
                  DLogits&& d_logits) const {
    constexpr char const* op = "score_importance_loss_backward";
    auto const z = detail::as_view<2>(ctx, logits);
    auto const dz = detail::as_output<2>(ctx, d_logits);
    detail::check_loss_logits(detail::argument(op, "logits"), z);
    detail::check_score(op, score, z.extents[1], z.extents[0]);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::check_loss_gradient(detail::argument(op, "d_logits"), z, dz);
    detail::buffer<double> slopes(ctx.memory());
    detail::make_variation_slopes(op, ctx, sums, z.extents[1], options, slopes);
    detail::score_sum<Score> const term{score, slopes.data(), static_cast<int>(z.extents[1])};
    detail::add_gradients(ctx, z, marks, term, dz);
  }
};
/// ADDS the gradient of cv_squared(ctx, sums, options) to d_logits [T, experts], where sums are
/// score_importance(), of this call's logits or of all ranks', as
/// score_importance_loss_backward(ctx, score, logits, sums, [valid,] options, d_logits).
inline constexpr score_importance_loss_backward_fn score_importance_loss_backward{};

struct weight_importance_fn {
  template <class Ids, class Weights, class Sums>
  void operator()(host_context const& ctx, Ids const& ids, Weights const& weights,
                  Sums&& sums) const {
    (*this)(ctx, ids, weights, detail::every_token{}, sums);
  }
  template <class Ids, class Weights, class Valid, class Sums>
  void operator()(host_context const& ctx, Ids const& ids, Weights const& weights,
                  Valid const& valid, Sums&& sums) const {
    constexpr char const* op = "weight_importance";
    auto const i = detail::as_view<2>(ctx, ids);
    auto const w = detail::as_view<2>(ctx, weights);
    auto const s = detail::as_output<1>(ctx, sums);
    index_t const tokens = i.extents[0], k = i.extents[1], experts = s.extents[0];
    detail::argument const what(op, "weights");
    static_assert(element<detail::element_of<decltype(w)>>,
                  "expar: weights are of an element type; specialize expar::element_traits for it");
    detail::check_view(what, w);
    detail::check_extent(what, w, 0, tokens, "the number of tokens");
    detail::check_extent(what, w, 1, k, "the number of choices");
    detail::check_sums(detail::argument(op, "sums"), s, experts);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, tokens);
    if (k > 0) detail::check_leading_ids<index_t>(op, i, k, experts, marks);
    detail::sum_rows<double>(ctx, tokens, experts, 0, marks, s.data,
                             [&](int, index_t t, double* row) {
                               for (index_t e = 0; e < experts; ++e) row[e] = 0;
                               for (index_t j = 0; j < k; ++j)
                                 if (std::int32_t const id = i.row(t)[j]; id >= 0)
                                   row[id] += static_cast<double>(widen(w.row(t)[j]));
                             });
  }
};
/// The same of the weights of routes, sums[e] = sum of the weights of the routes to e (Shazeer;
/// fastmoe's noisy gate), as weight_importance(ctx, ids, weights, [valid,] sums):
///   ids: [T,k] std::int32_t, -1 = no expert
///   weights: [T,k], any element type
inline constexpr weight_importance_fn weight_importance{};

struct weight_importance_loss_backward_fn {
  template <class Ids, class Sums, class DWeights>
  void operator()(host_context const& ctx, Ids const& ids, Sums const& sums,
                  cv_squared_options const& options, DWeights&& d_weights) const {
    (*this)(ctx, ids, sums, detail::every_token{}, options, d_weights);
  }
  template <class Ids, class Sums, class Valid, class DWeights>
  void operator()(host_context const& ctx, Ids const& ids, Sums const& sums, Valid const& valid,
                  cv_squared_options const& options, DWeights&& d_weights) const {
    constexpr char const* op = "weight_importance_loss_backward";
    auto const i = detail::as_view<2>(ctx, ids);
    auto const dw = detail::as_output<2>(ctx, d_weights);
    using D = detail::element_of<decltype(dw)>;
    static_assert(element<D>,
                  "expar: gradients are of an element type; specialize expar::element_traits for "
                  "it");
    index_t const tokens = i.extents[0], k = i.extents[1];
    index_t const experts = detail::as_view<1>(ctx, sums).extents[0];
    detail::argument const what(op, "d_weights");
    detail::check_output(what, dw);
    detail::check_extent(what, dw, 0, tokens, "the number of tokens");
    detail::check_extent(what, dw, 1, k, "the number of choices");
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, tokens);
    if (k > 0) detail::check_leading_ids<index_t>(op, i, k, experts, marks);
    detail::buffer<double> slopes(ctx.memory());
    detail::make_variation_slopes(op, ctx, sums, experts, options, slopes);
    ctx.for_each_chunk(tokens, 1024, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; marks(t) && j < k; ++j)
          if (std::int32_t const id = i.row(t)[j]; id >= 0) {
            D& d = dw.row(t)[j];
            d = narrow<D>(widen(d) + static_cast<accumulator_t<D>>(slopes[id]));
          }
    });
  }
};
/// ADDS the gradient of cv_squared(ctx, sums, options) to d_weights [T,k], where sums are
/// weight_importance(), as weight_importance_loss_backward(ctx, ids, sums, [valid,] options,
/// d_weights). route_backward() takes it on to the logits.
inline constexpr weight_importance_loss_backward_fn weight_importance_loss_backward{};

}  // namespace expar::inline v0

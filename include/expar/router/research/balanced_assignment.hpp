// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/exp.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// How near to the best an assignment comes: epsilon = max(relative * (largest - smallest score),
/// least). The defaults are those of fairseq (clib/libbase/balanced_assignment.cpp).
struct assignment_options {
  double relative = .02;
  double least = 1e-4;
};

namespace detail {

/// The places of one expert that are taken, as a heap whose top has the lowest price.
struct assignment_place {
  double price;
  std::int32_t token;

  /// Of equal prices, the later token goes first.
  bool cheaper_than(assignment_place other) const {
    return price < other.price || (price == other.price && token > other.token);
  }
};

/// Puts `place` where the top of a heap of n places was.
inline void replace_top(assignment_place* heap, index_t n, assignment_place place) {
  index_t at = 0;
  for (index_t child = 1; child < n; child = 2 * at + 1) {
    if (child + 1 < n && heap[child + 1].cheaper_than(heap[child])) ++child;
    if (!heap[child].cheaper_than(place)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = place;
}
/// Adds a place behind n.
inline void push_place(assignment_place* heap, index_t n, assignment_place place) {
  index_t at = n;
  for (; at > 0 && place.cheaper_than(heap[(at - 1) / 2]); at = (at - 1) / 2)
    heap[at] = heap[(at - 1) / 2];
  heap[at] = place;
}

/// An auction in which tokens bid, one after the other, for places of experts that are alike
/// (Bertsekas and Castanon, "The auction algorithm for the transportation problem"). A token bids
/// for the expert whose score less its price, that of its cheapest place, is the largest. It offers
/// as much as makes that equal to the second best, and epsilon more; the token that had the place
/// bids again.
inline void hold_auction(double const* scores, index_t tokens, index_t experts, double epsilon,
                         host_context const& ctx, tensor_view<std::int32_t, 2> ids) {
  index_t const places = tokens / experts;
  buffer<assignment_place> heaps(ctx.memory());
  buffer<index_t> taken(ctx.memory());
  buffer<std::int32_t> bidders(ctx.memory());
  heaps.resize(tokens);
  taken.assign(static_cast<std::size_t>(experts), 0);
  bidders.resize(tokens);
  index_t waiting = tokens;
  for (index_t t = 0; t < tokens; ++t) bidders[t] = static_cast<std::int32_t>(tokens - 1 - t);
  while (waiting > 0) {
    std::int32_t const token = bidders[--waiting];
    double const* const row = scores + token * experts;
    double best = -detail::infinity<double>, second = -detail::infinity<double>;
    index_t at = 0;
    for (index_t e = 0; e < experts; ++e) {
      double const price = taken[e] < places ? 0 : heaps[e * places].price;
      double const value = row[e] - price;
      if (value > best)
        second = best, best = value, at = e;
      else if (value > second)
        second = value;
    }
    assignment_place* const heap = heaps.data() + at * places;
    // With one expert there is no second, and nobody is displaced.
    assignment_place const bid{experts == 1 ? 0 : row[at] - second + epsilon, token};
    if (taken[at] < places) {
      push_place(heap, taken[at]++, bid);
    } else {
      bidders[waiting++] = heap[0].token;
      replace_top(heap, places, bid);
    }
  }
  for (index_t e = 0; e < experts; ++e)
    for (index_t i = 0; i < places; ++i)
      ids(heaps[e * places + i].token, 0) = static_cast<std::int32_t>(e);
}

}  // namespace detail

struct balanced_assignment_fn {
  template <class Scores, class Ids>
  void operator()(host_context const& ctx, Scores const& scores, assignment_options const& options,
                  Ids&& ids) const {
    detail::arguments a(ctx, "balanced_assignment");
    auto const from = a.read("scores", scores);
    index_t const tokens = from.extents[0], experts = from.extents[1];
    auto const to = a.written_ids("ids", ids, experts,
                                  {{tokens, "the number of tokens"}, {1, "the number of choices"}});
    detail::expects(experts >= 1 && tokens % experts == 0, a, ": scores has ", tokens,
                    " tokens, which is no multiple of its ", experts, " experts");
    detail::expects(tokens <= INT32_MAX, a, ": scores has ", tokens, " tokens; at most ", INT32_MAX,
                    " are possible");
    detail::expects(options.relative >= 1e-9 && options.relative <= 1, a, ": relative is ",
                    options.relative, "; it lies between 1e-9 and 1");
    detail::expects(options.least > 0, a, ": least is ", options.least, "; it is above 0");
    if (tokens == 0) return;
    detail::buffer<double> finite(ctx.memory());
    finite.resize(tokens * experts);
    double const range = shift_to_zero(from, finite.data());
    detail::expects(detail::is_finite(range), a, ": the range of the scores is ", range,
                    "; it is finite");
    double const share = options.relative * range;
    detail::hold_auction(finite.data(), tokens, experts,
                         share > options.least ? share : options.least, ctx, to);
    to.store();
  }

 private:
  /// Scores less the smallest finite one, which the others become. Returns the largest.
  template <class T>
  static double shift_to_zero(tensor_view<T, 2> scores, double* out) {
    index_t const tokens = scores.extents[0], experts = scores.extents[1];
    double low = detail::infinity<double>, high = -detail::infinity<double>;
    for (index_t t = 0; t < tokens; ++t)
      for (index_t e = 0; e < experts; ++e) {
        double const x = static_cast<double>(widen(scores.row(t)[e]));
        out[t * experts + e] = x;
        if (!detail::is_finite(x)) continue;
        if (x < low) low = x;
        if (x > high) high = x;
      }
    for (index_t i = 0; i < tokens * experts; ++i)
      out[i] = detail::is_finite(out[i]) ? out[i] - low : 0;
    return high < low ? 0 : high - low;
  }
};
/// `balanced_assignment(ctx, scores, options, ids)` gives every token one expert, and every expert
/// equally many tokens, such that the sum of the scores is at most T * epsilon below the largest
/// possible.
///   scores: [T, experts], any element type; what is not finite counts as the smallest that is
///   ids: [T, 1] of any signed integer type, overwritten
/// The assignment has no gradient. The layers of BASE (arXiv:2103.16716; fairseq, base_layer.py)
/// train with it, and take the best expert at inference; both weigh by alpha = sigmoid(score), and
/// give alpha * f(x) + (1 - alpha) * x:
///   router({E, 1}, sigmoid_score{}, given_ids{ids})
///   router({E, 1}, sigmoid_score{})
/// One thread computes, in double; the result depends on the scores alone. O(experts + log T) for a
/// bid; tokens bid until all have a place, which takes longer the smaller epsilon is. Throws unless
/// T is a multiple of the number of experts.
inline constexpr balanced_assignment_fn balanced_assignment{};

}  // namespace expar::inline v0
EXPAR_IEEE_END

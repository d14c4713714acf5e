// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <expar/config.hpp>
#include <expar/router/detail/steps.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

struct router_shape {
  int experts;
  int top_k;
};

/// Logits to routes, as policies that are written in the order in which they run:
///
///   expar::router r({.experts = 256, .top_k = 8},
///                   expar::sigmoid_score{},           // scores = sigmoid(logits)
///                   expar::biased_key{},              // experts are compared by scores + bias,
///                   expar::group_limited{8, 4},       // in the 4 best of 8 groups alone
///                   expar::renormalize{1e-20},        // weights = scores[ids] / (sum + 1e-20)
///                   expar::scale{2.5});               // weights * 2.5
///
///   any number of  transform_policy    logits before they are scored
///   one            score_policy        what weights begin as
///   one or none    key_policy          what experts are compared by; none: score_key
///   any number of  limit_policy        which experts are out
///   one or none    selection_policy    which experts are in; none: top_k_selection
///   any number of  weight_policy       from the scores of the selected to their weights
///
/// A value that enters kernels. The members below work on one token; route() on many. A is float,
/// or double for logits of double. A policy of your own is a struct with the members that one of
/// these concepts names.
template <class... Steps>
struct router {
  using order = detail::step_order<Steps...>;
  static_assert(order::count(detail::stage::none) == 0,
                "expar: a router is made of policies, which expar::router lists");
  static_assert(order::ascending(),
                "expar: policies stand in the order in which they run, as expar::router lists");
  static_assert(order::count(detail::stage::score) == 1 && order::count(detail::stage::key) <= 1 &&
                    order::count(detail::stage::selection) <= 1,
                "expar: a router has one score, and at most one key and one selection");

  static_assert((detail::scratch_as_bound<Steps> && ...),
                "expar: a policy of a router and what its at() gives both have scratch(), or none");

  static constexpr int transform_count = order::count(detail::stage::transform);
  static constexpr int limit_count = order::count(detail::stage::limit);
  static constexpr int weight_count = order::count(detail::stage::weight);
  static constexpr bool has_key = order::count(detail::stage::key) == 1;
  static constexpr bool selects_top_k = order::count(detail::stage::selection) == 0;

  int experts;
  int top_k;
  detail::step_list<Steps...> steps;

  EXPAR_HD constexpr router(router_shape shape, Steps... s)
      : experts(shape.experts), top_k(shape.top_k), steps{{s}...} {}

  EXPAR_HD constexpr auto const& score() const { return detail::step_of<order::score_at>(steps); }
  EXPAR_HD constexpr auto key() const {
    if constexpr (has_key)
      return detail::step_of<order::key_at>(steps);
    else
      return score_key{};
  }
  template <int N>
  EXPAR_HD constexpr auto const& limit() const {
    return detail::step_of<order::limits_at + N>(steps);
  }
  EXPAR_HD constexpr auto selection() const {
    if constexpr (selects_top_k)
      return top_k_selection{};
    else
      return detail::step_of<order::selection_at>(steps);
  }

  using score_type = detail::step_type<detail::stage::score, score_key, Steps...>;
  using key_type = detail::step_type<detail::stage::key, score_key, Steps...>;

  static constexpr bool takes_bias = detail::bound<key_type>::takes_bias;
  /// Whether experts are compared by their logits; see score_key.
  static constexpr bool by_logit =
      detail::selects_by_logit<score_type, key_type> && limit_count == 0;
  /// Where the weights belong.
  static constexpr weight_site site = detail::site_of<Steps...>;

  /// The router of one token, whose policies know which it is.
  EXPAR_HD constexpr auto at(index_t token) const requires(detail::depends_on_token<Steps> || ...) {
    return detail::apply_steps(
        [&](auto const&... s) {
          return router<detail::bound<Steps>...>({experts, top_k}, detail::bind(s, token)...);
        },
        steps);
  }

  /// How many numbers of type A the scratch of forward() and vjp() holds.
  EXPAR_HD constexpr std::ptrdiff_t forward_scratch() const {
    int behind = detail::scratch_of(selection(), experts, top_k);
    detail::for_each_step<order::limits_at, limit_count>(
        [&](auto const& limit) {
          int const n = detail::scratch_of(limit, experts, top_k);
          behind = n > behind ? n : behind;
        },
        steps);
    return std::ptrdiff_t{2 + (transform_count > 0)} * experts + behind;
  }
  EXPAR_HD constexpr std::ptrdiff_t vjp_scratch() const {
    return std::ptrdiff_t{1 + (transform_count > 0)} * experts +
           std::ptrdiff_t{weight_count + 2} * top_k;
  }

  /// The routes of one token: logits z [experts] and bias [experts] or null to ids [top_k] and
  /// weights w [top_k]. Where fewer than top_k experts can be selected, there are ids of -1 with
  /// weight 0.
  template <class A>
  EXPAR_HD void forward(A const* z, A const* bias, A* scratch, std::int32_t* ids, A* w) const {
    A *const s = scratch, *const keys = s + experts;
    A const* x = z;
    A* behind = keys + experts;
    if constexpr (transform_count > 0) {
      transform(z, behind);
      x = behind, behind += experts;
    }
    score()(x, s, experts);
    if constexpr (by_logit) {
      selection().select(x, static_cast<A const*>(s), experts, top_k, ids, behind);
    } else {
      key()(x, static_cast<A const*>(s), bias, keys, experts);
      for (int e = 0; e < experts; ++e)
        if (detail::masked(x[e])) keys[e] = -detail::infinity<A>;
      detail::for_each_step<order::limits_at, limit_count>(
          [&](auto const& limit) { limit.limit(keys, experts, behind); }, steps);
      selection().select(static_cast<A const*>(keys), static_cast<A const*>(s), experts, top_k, ids,
                         behind);
    }
    gather(s, ids, w);
    weigh(ids, w);
  }

  /// The gradient of one token: overwrites dz [experts], given the gradient dw [top_k] for the
  /// weights. The selection is a constant; an id of -1 takes no part. dz is not z.
  template <class A>
  EXPAR_HD void vjp(A const* z, std::int32_t const* ids, A const* dw, A* scratch, A* dz) const {
    A *const s = scratch, *d = s + experts;
    A const* x = z;
    if constexpr (transform_count > 0) {
      transform(z, d);
      x = d, d += experts;
    }
    A* const values = d + top_k;
    score()(x, s, experts);
    gather(s, ids, values);
    for (int j = 0; j < top_k; ++j) d[j] = ids[j] < 0 ? A(0) : dw[j];
    weigh_vjp(ids, values, d);
    for (int e = 0; e < experts; ++e) dz[e] = 0;
    for (int j = 0; j < top_k; ++j)
      if (ids[j] >= 0) dz[ids[j]] = detail::add(dz[ids[j]], d[j]);
    score().vjp(x, static_cast<A const*>(s), static_cast<A const*>(dz), dz, experts);
    for (int e = 0; e < experts; ++e) {
      if (detail::masked(x[e]))
        dz[e] = 0;
      else if constexpr (transform_count > 0)
        dz[e] = detail::multiply(dz[e], slope(z[e], e));
    }
  }

  /// What the transforms make of the logits of one token, to x [experts]; masked ones become -inf.
  template <class A>
  EXPAR_HD void transform(A const* z, A* x) const {
    for (int e = 0; e < experts; ++e) {
      A value = z[e];
      if (detail::masked(value)) {
        x[e] = -detail::infinity<A>;
        continue;
      }
      detail::for_each_step<0, transform_count>([&](auto const& t) { value = t.of(value, e); },
                                                steps);
      x[e] = value;
    }
  }

  /// The weights w [top_k] of the selected experts, which are their scores, by all weight policies.
  template <class A>
  EXPAR_HD void weigh(std::int32_t const* ids, A* w) const {
    detail::for_each_step<order::weights_at, weight_count>(
        [&](auto const& step) { step(ids, w, top_k); }, steps);
  }
  /// Turns d [top_k], the gradient for the weights, into that for the scores of the selected, which
  /// the first top_k entries of values [(weight_count + 1) * top_k] hold.
  template <class A>
  EXPAR_HD void weigh_vjp(std::int32_t const* ids, A* values, A* d) const {
    weigh_vjp_from<0>(ids, values, d);
  }

 private:
  template <class A>
  EXPAR_HD void gather(A const* s, std::int32_t const* ids, A* w) const {
    for (int j = 0; j < top_k; ++j) w[j] = ids[j] < 0 ? A(0) : s[ids[j]];
  }
  template <class A>
  EXPAR_HD A slope(A z, int e) const {
    A value = z, all = 1;
    detail::for_each_step<0, transform_count>(
        [&](auto const& t) {
          all = detail::multiply(all, t.slope(value, e));
          value = t.of(value, e);
        },
        steps);
    return all;
  }
  template <int N, class A>
  EXPAR_HD void weigh_vjp_from(std::int32_t const* ids, A* values, A* d) const {
    if constexpr (N < weight_count) {
      auto const& step = detail::step_of<order::weights_at + N>(steps);
      A* const after = values + top_k;
      for (int j = 0; j < top_k; ++j) after[j] = values[j];
      step(ids, after, top_k);
      weigh_vjp_from<N + 1>(ids, after, d);
      step.vjp(ids, static_cast<A const*>(values), static_cast<A const*>(after), d, top_k);
    }
  }
};

template <class... Steps>
router(router_shape, Steps...) -> router<Steps...>;

}  // namespace expar::inline v0
EXPAR_IEEE_END

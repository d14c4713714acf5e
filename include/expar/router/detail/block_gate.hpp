// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/element.hpp>
#include <expar/router/detail/limit_lanes.hpp>
#include <expar/router/detail/put_rows.hpp>
#include <expar/router/detail/score_lanes.hpp>
#include <expar/router/detail/select_columns.hpp>
#include <expar/router/detail/select_rows.hpp>
#include <expar/router/detail/transpose.hpp>
#include <expar/router/detail/weigh_lanes.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/router.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

template <class Step>
inline constexpr bool limits_block = std::is_same_v<Step, group_limited>;

template <class Router, class A>
struct block_gate {
  static constexpr bool possible = false;
};

/// What router::forward() gives, for pack<A>::lanes tokens at once, in the same bits. For routers
/// whose score and key are made expert by expert, and whose policies do not depend on the token.
/// Where many experts are compared by their logits, it reads logits row by row; else by columns.
template <class... Steps, class A>
struct block_gate<router<Steps...>, A> {
  using router_type = router<Steps...>;
  using p = pack<A>;
  static constexpr int lanes = p::lanes;
  static constexpr bool possible =
      separable_score<typename router_type::score_type> &&
      separable_key<typename router_type::key_type> && router_type::transform_count == 0 &&
      router_type::selects_top_k && !(depends_on_token<Steps> || ...) &&
      router_type::limit_count == (int{limits_block<Steps>} + ... + 0);

  router_type const& r;
  A const* bias;

  /// How many numbers of scratch a block takes.
  index_t scratch() const {
    index_t const columns = selected_columns(r.experts);
    if constexpr (router_type::by_logit)
      return (by_rows() ? r.experts : columns) * lanes;
    else
      return (columns + (normalized ? columns : tile)) * lanes;
  }
  /// Whether a block can be made; else tokens go one by one.
  bool fits() const {
    bool limits_fit = true;
    for_steps<router_type::order::limits_at, router_type::limit_count>([&](auto const& step) {
      limits_fit = limits_fit && step.groups <= most_groups && step.best_of <= 2;
    });
    return limits_fit && (r.top_k <= 16 || r.experts <= most_slots);
  }

  /// The tokens of logits [any, experts].
  template <class Logit, class Weight>
  void operator()(tensor_view<Logit, 2> const& logits, A* scratch,
                  tensor_view<std::int32_t, 2> const& ids,
                  tensor_view<Weight, 2> const& weights) const {
    index_t const tokens = logits.extents[0];
    index_t first = 0;
    if constexpr (router_type::by_logit && std::is_same_v<A, float> &&
                  std::is_same_v<std::remove_const_t<Logit>, A> && std::is_same_v<Weight, A>)
      if (r.experts == 8 && r.top_k <= 2 && logits.strides[0] == 8 && ids.strides[0] == r.top_k &&
          weights.strides[0] == r.top_k) {
        std::make_integer_sequence<int, 8> const experts;
        first = tokens / lanes * lanes;
        if (r.top_k == 1)
          route_few<1>(experts, logits.data, first, ids.data, weights.data);
        else
          route_few<2>(experts, logits.data, first, ids.data, weights.data);
      }
    for (; first < tokens; first += lanes) {
      auto const block = [first, n = tokens - first](auto view) {
        view.data = view.row(first);
        view.extents[0] = n < lanes ? n : lanes;
        return view;
      };
      route(block(logits), scratch, block(ids), block(weights));
    }
  }

 private:
  /// A block, which has at most lanes tokens.
  template <class Logit, class Weight>
  void route(tensor_view<Logit, 2> const& logits, A* scratch,
             tensor_view<std::int32_t, 2> const& ids_out,
             tensor_view<Weight, 2> const& weights_out) const {
    alignas(64) std::int32_t ids[most_slots * lanes];
    alignas(64) A w[most_slots * lanes];
    auto const sums = choose(logits, scratch, static_cast<std::int32_t*>(ids), static_cast<A*>(w));
    int const k = r.top_k;
    if constexpr (!router_type::by_logit)
      for (int j = 0; j < k; ++j)
        for (int l = 0; l < lanes; ++l) {
          std::int32_t const id = ids[j * lanes + l];
          w[j * lanes + l] = id < 0 ? -infinity<A> : static_cast<A>(widen(row(logits, l)[id]));
        }
    weigh(static_cast<std::int32_t const*>(ids), static_cast<A*>(w), k, sums);
    put_rows<lanes>(static_cast<std::int32_t const*>(ids), k, ids_out);
    put_rows<lanes>(static_cast<A const*>(w), k, weights_out);
  }

  /// Tokens of so few experts that registers hold a block, all matrices without gaps.
  template <int K, int... E>
  void route_few(std::integer_sequence<int, E...>, A const* logits, index_t tokens,
                 std::int32_t* ids_out, A* weights_out) const {
    constexpr int experts = sizeof...(E);
    for (index_t t = 0; t < tokens; t += lanes) {
      alignas(64) A z[experts * lanes], w[K * lanes];
      alignas(64) std::int32_t ids[K * lanes];
      transpose_eights(logits + t * experts, static_cast<A*>(z));
      few_best<K> best;
      (best.enter(p::load(z + E * lanes), E), ...);
      best.store(static_cast<std::int32_t*>(ids), static_cast<A*>(w));
      normalizer sums;
      sums.set_most(best.key[0]);
      if constexpr (normalized) {
        p part[experts] = {term(p::load(z + E * lanes), sums.most, sums.plain)...};
        sums.inverse = inverse_of_sum(halved<experts>(static_cast<p*>(part)));
      }
      weigh(static_cast<std::int32_t const*>(ids), static_cast<A*>(w),
            std::integral_constant<int, K>{}, sums);
      put_rows<lanes>(static_cast<std::int32_t const*>(ids), K,
                      make_view(ids_out + t * K, lanes, K));
      put_rows<lanes>(static_cast<A const*>(w), K, make_view(weights_out + t * K, lanes, K));
    }
  }

  static constexpr bool normalized = router_type::score_type::normalized;
  static constexpr bool softmax_of_selected_logits =
      std::is_same_v<A, float> && router_type::by_logit &&
      std::is_same_v<typename router_type::score_type, logit_score> &&
      std::is_same_v<step_type<stage::weight, void, Steps...>, softmax_weights>;
  static constexpr int tile = 64;

  bool by_rows() const {
    return router_type::by_logit && std::is_same_v<A, float> &&
           (fills_fast ? r.experts > 32 && r.experts <= most_experts_of_rows : r.experts > 64);
  }

  /// What a score is normalized by.
  struct normalizer {
    p most = p::all(0), inverse = p::all(1);
    bool plain = true;  // no `most` is +inf

    void set_most(p x) {
      if constexpr (normalized) {
        most = x;
        plain = !any<A>(x.v == p::all(infinity<A>).v);
      }
    }
  };

  /// for_each_step(), for what is of the host alone.
  template <int First, int Count, class F>
  void for_steps([[maybe_unused]] F f) const {
    if constexpr (Count > 0) {
      f(step_of<First>(r.steps));
      for_steps<First + 1, Count - 1>(f);
    }
  }

  /// The logits w of the chosen to their weights.
  template <class K>
  EXPAR_ALWAYS_INLINE void weigh(std::int32_t const* ids, A* w, K k, normalizer const& sums) const {
    constexpr int weights_at = router_type::order::weights_at;
    constexpr bool softmax = softmax_of_selected_logits;
    if constexpr (softmax)
      descending_softmax(w, k);
    else
      for (int j = 0; j < k; ++j) score_of(p::load(w + j * lanes), sums).store(w + j * lanes);
    for_steps<weights_at + softmax, router_type::weight_count - softmax>(
        [&](auto const& step) { weigh_lanes(step, ids, w, k); });
  }

  /// A lane without a token repeats the last one.
  template <class Logit>
  static Logit* row(tensor_view<Logit, 2> const& logits, int lane) {
    return logits.row(lane < logits.extents[0] ? lane : logits.extents[0] - 1);
  }

  template <class Logit>
  normalizer choose(tensor_view<Logit, 2> const& logits, A* scratch, std::int32_t* ids,
                    A* keys_of_ids) const {
    normalizer sums;
    int const experts = r.experts, k = r.top_k;
    if constexpr (router_type::by_logit) {
      if constexpr (std::is_same_v<A, float>)
        if (by_rows()) return choose_by_rows(logits, scratch, ids, keys_of_ids);
      A* const z = scratch;
      load(logits, 0, experts, z);
      sums.set_most(select_columns(static_cast<A const*>(z), experts, k, ids, keys_of_ids));
      if constexpr (normalized) sums.inverse = inverse_of_sum(sum_of_terms(z, sums));
    } else {
      A *const keys = scratch, *const z = keys + selected_columns(experts) * lanes;
      if constexpr (normalized) {
        load(logits, 0, experts, z);
        sums.set_most(largest_column(static_cast<A const*>(z), experts));
        sums.inverse = inverse_of_sum(sum_of_terms(z, sums));
        make_keys(z, 0, experts, sums, keys);
      } else {
        for (int e = 0; e < experts; e += tile) {
          int const end = experts - e < tile ? experts : e + tile;
          load(logits, e, end, z);
          make_keys(z, e, end, sums, keys);
        }
      }
      for_steps<router_type::order::limits_at, router_type::limit_count>(
          [&](auto const& step) { limit_lanes(step, keys, r.experts); });
      select_columns(static_cast<A const*>(keys), experts, k, ids, keys_of_ids);
    }
    return sums;
  }

  /// Columns [first, last) of the logits to z.
  template <class Logit>
  void load(tensor_view<Logit, 2> const& logits, int first, int last, A* z) const {
    if constexpr (std::is_same_v<std::remove_const_t<Logit>, A>) {
      if (logits.extents[0] == lanes) {
        transpose(static_cast<A const*>(logits.data + first), logits.strides[0], last - first, z);
        return;
      }
    }
    alignas(64) A wide[lanes * tile];
    for (int e = first; e < last; e += tile) {
      int const n = last - e < tile ? last - e : tile;
      for (int l = 0; l < lanes; ++l) widen_row(row(logits, l) + e, wide + l * tile, n);
      transpose(static_cast<A const*>(wide), tile, n, z + index_t{e - first} * lanes);
    }
  }

  template <class Logit>
  normalizer choose_by_rows(tensor_view<Logit, 2> const& logits, A* scratch, std::int32_t* ids,
                            A* keys_of_ids) const {
    key_rows rows;
    rows.experts = r.experts;
    Logit* mine = logits.data;
    for (int l = 0; l < lanes; ++l) {
      if constexpr (std::is_same_v<std::remove_const_t<Logit>, A>) {
        rows.row[l] = mine;
      } else {
        A* const wide = scratch + index_t{l} * r.experts;
        widen_row(mine, wide, r.experts);
        rows.row[l] = wide;
      }
      if (l + 1 < logits.extents[0]) mine += logits.strides[0];
    }
    rows.make_tails();
    if (std::is_same_v<std::remove_const_t<Logit>, A> && logits.extents[0] == lanes)
      rows.next_block = static_cast<std::uintptr_t>(logits.strides[0]) * sizeof(A) * lanes;
    normalizer sums;
    sums.set_most(r.top_k <= 8 ? select_rows<16>(rows, r.top_k, ids, keys_of_ids)
                               : select_rows<32>(rows, r.top_k, ids, keys_of_ids));
    if constexpr (normalized) sums.inverse = inverse_of_sum(sums_of_rows(rows, sums));
    return sums;
  }

  /// interleaved_sum() of the terms of each lane.
  p sum_of_terms(A const* z, normalizer const& by) const {
    if (r.experts <= 8) return sum_of_terms<8>(z, by);
    if (r.experts <= 16) return sum_of_terms<16>(z, by);
    return sum_of_terms<32>(z, by);
  }
  template <int Parts>  // the others are 0
  p sum_of_terms(A const* z, normalizer const& by) const {
    auto const term_at = [&](int e) {
      return term(p::load(z + index_t{e} * lanes), by.most, by.plain);
    };
    p part[Parts];
    for (int i = 0; i < Parts; ++i) {
      part[i] = p::all(0);
      for (int e = i; e < r.experts; e += Parts) part[i] = add(part[i], term_at(e));
    }
    return halved<Parts>(part);
  }
  p sums_of_rows(key_rows const& rows, normalizer const& by) const {
    constexpr int width = key_rows::strip / lanes;
    alignas(64) A most[lanes], parts[lanes * lanes], columns[lanes * lanes];
    by.most.store(most);
    for (int l = 0; l < lanes; ++l) {
      p part[width];
      for (p& x : part) x = p::all(0);
      p const largest = p::all(most[l]);
      rows.for_each_strip(l, 0, r.experts, [&](A const* strip) {
        for (int i = 0; i < width; ++i)
          part[i] = add(part[i], term(p::load(strip + i * lanes), largest, by.plain));
      });
      halved<width>(part).store(parts + l * lanes);
    }
    transpose(static_cast<A const*>(parts), lanes, lanes, static_cast<A*>(columns));
    p part[lanes];
    for (int i = 0; i < lanes; ++i) part[i] = p::load(columns + i * lanes);
    return halved<lanes>(part);
  }
  template <int Parts>
  static p halved(p* part) {
    if constexpr (Parts > 1) {
      for (int i = 0; i < Parts / 2; ++i) part[i] = add(part[i], part[i + Parts / 2]);
      return halved<Parts / 2>(part);
    } else {
      return part[0];
    }
  }

  p term(p z, p most, bool plain) const {
    p const x = term_of(r.score(), z, most, plain);
    if constexpr (std::is_same_v<typename router_type::score_type, softmax_score> &&
                  std::is_same_v<A, float>)
      if (plain) return x;  // 0 where z is masked
    return zero_unless(z.v > p::all(-infinity<A>).v, x);
  }
  p score_of(p z, normalizer const& by) const {
    p const x = term(z, by.most, by.plain);
    return normalized ? multiply(x, by.inverse) : x;
  }

  /// Keys of the experts [first, last), whose logits are z.
  void make_keys(A const* z, int first, int last, normalizer const& by, A* keys) const {
    p const none = p::all(-infinity<A>);
    auto const key = r.key();
    for (int e = first; e < last; ++e) {
      p const x = p::load(z + index_t{e - first} * lanes);
      p const made = key_of(key, x, score_of(x, by), bias == nullptr ? A(0) : bias[e]);
      select(x.v > none.v, made, none).store(keys + index_t{e} * lanes);
    }
  }
};

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <expar/element.hpp>
#include <expar/router/detail/select_many.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/router.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// score.term() of the logits of one expert; `plain`: no lane's `most` is +inf.
template <class Score, class A>
inline pack<A> term_of(Score const& score, pack<A> z, [[maybe_unused]] pack<A> most,
                       [[maybe_unused]] bool plain) {
  if constexpr (std::is_same_v<Score, logit_score>) {
    return z;
  } else if constexpr (std::is_same_v<Score, sigmoid_score> && std::is_same_v<A, float>) {
    pack<A> const one = pack<A>::all(1);
    return divide(one, add(one, exponential(pack<A>{-z.v})));
  } else {
    if constexpr (std::is_same_v<Score, softmax_score> && std::is_same_v<A, float>)
      if (plain) return small_exponential(subtract(z, most));
    pack<A> out;
    for (int l = 0; l < pack<A>::lanes; ++l) out.v[l] = score.term(A(z.v[l]), A(most.v[l]));
    return out;
  }
}
template <class Key, class A>
inline pack<A> key_of(Key const& key, pack<A> z, pack<A> s, A bias) {
  if constexpr (std::is_same_v<Key, score_key>) {
    return s;
  } else if constexpr (std::is_same_v<Key, biased_key>) {
    return add(s, pack<A>::all(bias));
  } else {
    pack<A> out;
    for (int l = 0; l < pack<A>::lanes; ++l) out.v[l] = key.of(A(z.v[l]), A(s.v[l]), bias);
    return out;
  }
}

/// Lanes with an expert.
inline mask_of<float> chosen(std::int32_t const* ids) {
  mask_of<float> id;
  std::memcpy(&id, ids, sizeof id);
  return id >= 0;
}

/// One weight policy on the weights w [k][lanes].
template <class Step, class A>
void weigh_lanes(Step const& step, std::int32_t const* ids, A* w, int k) {
  constexpr int lanes = pack<A>::lanes;
  std::int32_t id[most_slots];
  A mine[most_slots];
  for (int l = 0; l < lanes; ++l) {
    for (int j = 0; j < k; ++j) id[j] = ids[j * lanes + l], mine[j] = w[j * lanes + l];
    step(static_cast<std::int32_t const*>(id), static_cast<A*>(mine), k);
    for (int j = 0; j < k; ++j) w[j * lanes + l] = mine[j];
  }
}
template <class A>
void weigh_lanes(scale const& step, std::int32_t const*, A* w, int k) {
  using p = pack<A>;
  for (int j = 0; j < k; ++j)
    multiply(p::load(w + j * p::lanes), p::all(static_cast<A>(step.factor)))
        .store(w + j * p::lanes);
}
template <class A>
void weigh_lanes(renormalize const& step, std::int32_t const*, A* w, int k) {
  using p = pack<A>;
  if (k == 1 && !step.single) return;
  p const epsilon = p::all(static_cast<A>(step.epsilon)), zero = p::all(0);
  p sum = zero;
  for (int j = 0; j < k; ++j) sum = add(sum, p::load(w + j * p::lanes));
  p const divisor = step.kind == renormalize::guard::add
                        ? add(sum, epsilon)
                        : select(sum.v < epsilon.v, epsilon, add(sum, zero));
  for (int j = 0; j < k; ++j) {
    p const mine = divide(p::load(w + j * p::lanes), divisor);
    zero_unless(divisor.v != zero.v, mine).store(w + j * p::lanes);
  }
}

inline void weigh_lanes(softmax_weights const& step, std::int32_t const* ids, float* w, int k) {
  using p = pack<float>;
  p const none = p::all(-infinity<float>), zero = p::all(0);
  p most = none, sum = zero;
  for (int j = 0; j < k; ++j)
    most = larger(select(chosen(ids + j * p::lanes), p::load(w + j * p::lanes), none), most);
  if (any<float>(most.v == p::all(infinity<float>).v))
    return weigh_lanes<softmax_weights, float>(step, ids, w, k);
  for (int j = 0; j < k; ++j) {
    p const mine = p::load(w + j * p::lanes);
    p const term = zero_unless(chosen(ids + j * p::lanes), small_exponential(subtract(mine, most)));
    term.store(w + j * p::lanes);
    sum = add(sum, term);
  }
  for (int j = 0; j < k; ++j) {
    p const mine = p::load(w + j * p::lanes);
    select(sum.v > zero.v, divide(mine, sum), mine).store(w + j * p::lanes);
  }
}

template <class Step>
inline constexpr bool limits_block = std::is_same_v<Step, group_limited>;

template <class Router, class A>
struct block_gate {
  static constexpr bool possible = false;
};

/// What router::forward() gives, for pack<A>::lanes tokens at once, in the same bits. For routers
/// whose score and key are made expert by expert, and whose policies do not depend on the token.
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
    return selected_columns(r.experts) * lanes * (router_type::by_logit ? 1 : 2);
  }
  /// Whether a block can be made; else tokens go one by one.
  bool fits() const {
    bool limits_fit = true;
    for_each_step<router_type::order::limits_at, router_type::limit_count>(
        [&](auto const& step) { limits_fit = step.groups <= most_groups && step.best_of <= 2; },
        r.steps);
    return limits_fit && (r.top_k <= 16 || r.experts <= most_slots);
  }

  /// The first `count` tokens of a block of logits, one row of `lanes` after the other.
  template <class Logit, class Weight>
  void operator()(tensor_view<Logit, 2> const& logits, index_t first, int count, A* scratch,
                  tensor_view<std::int32_t, 2> const& ids_out,
                  tensor_view<Weight, 2> const& weights_out) const {
    if constexpr (router_type::by_logit && std::is_same_v<A, float>)
      if (r.experts > (r.top_k <= 8 ? 16 : 32)) {
        by_rows(logits, first, count, scratch, ids_out, weights_out);
        return;
      }
    int const experts = r.experts, k = r.top_k;
    A* const z = scratch;
    A* const keys = router_type::by_logit ? z : z + selected_columns(experts) * lanes;
    load(logits, first, count, z);
    p most = p::all(0), sum = p::all(0);
    bool plain = true;
    alignas(64) std::int32_t ids[most_slots * lanes];
    alignas(64) A w[most_slots * lanes];
    if constexpr (router_type::by_logit) {
      p const largest = select_columns(z, experts, k, static_cast<std::int32_t*>(ids));
      if constexpr (normalized) {
        most = largest;
        plain = !any<A>(most.v == p::all(infinity<A>).v);
        sum = sum_of_terms(z, most, plain);
      }
    } else {
      if constexpr (normalized) {
        most = largest_column(z, experts);
        plain = !any<A>(most.v == p::all(infinity<A>).v);
        sum = sum_of_terms(z, most, plain);
      }
      make_keys(z, most, sum, plain, keys);
      for_each_step<router_type::order::limits_at, router_type::limit_count>(
          [&](auto const& step) { limit(step, keys); }, r.steps);
      select_columns(keys, experts, k, static_cast<std::int32_t*>(ids));
    }
    for (int j = 0; j < k; ++j)
      for (int l = 0; l < lanes; ++l) {
        std::int32_t const id = ids[j * lanes + l];
        w[j * lanes + l] = id < 0 ? -infinity<A> : z[index_t{id} * lanes + l];
      }
    for (int j = 0; j < k; ++j)
      score_of(p::load(w + j * lanes), most, sum, plain).store(w + j * lanes);
    finish(first, count, static_cast<std::int32_t*>(ids), static_cast<A*>(w), ids_out, weights_out);
  }

 private:
  static constexpr int most_groups = 64;
  static constexpr bool normalized = router_type::score_type::normalized;

  /// Without columns of logits: experts are compared by their logits, row by row.
  template <class Logit, class Weight>
  void by_rows(tensor_view<Logit, 2> const& logits, index_t first, int count, A* scratch,
               tensor_view<std::int32_t, 2> const& ids_out,
               tensor_view<Weight, 2> const& weights_out) const {
    int const experts = r.experts, k = r.top_k;
    key_rows rows;
    rows.experts = experts;
    for (int l = 0; l < lanes; ++l) {
      auto const* const row = logits.row(first + (l < count ? l : count - 1));
      if constexpr (std::is_same_v<std::remove_const_t<Logit>, A>) {
        rows.row[l] = row;
      } else {
        A* const wide = scratch + l * selected_columns(experts);
        widen_row(row, wide, experts);
        rows.row[l] = wide;
      }
    }
    if (std::is_same_v<std::remove_const_t<Logit>, A> && first + 2 * lanes <= logits.extents[0])
      rows.ahead = logits.row(lanes) - logits.row(0);
    rows.make_tails();
    alignas(64) std::int32_t ids[most_slots * lanes];
    alignas(64) A w[most_slots * lanes];
    p const most = k <= 8 ? select_rows<16>(rows, k, static_cast<std::int32_t*>(ids))
                          : select_rows<32>(rows, k, static_cast<std::int32_t*>(ids));
    p sum = p::all(0);
    bool plain = true;
    if constexpr (normalized) {
      plain = !any<A>(most.v == p::all(infinity<A>).v);
      sum = sums_of_rows(rows, most, plain);
    }
    for (int j = 0; j < k; ++j)
      for (int l = 0; l < lanes; ++l) {
        std::int32_t const id = ids[j * lanes + l];
        w[j * lanes + l] = id < 0 ? -infinity<A> : rows.row[l][id];
      }
    for (int j = 0; j < k; ++j)
      score_of(p::load(w + j * lanes), most, sum, plain).store(w + j * lanes);
    finish(first, count, static_cast<std::int32_t*>(ids), static_cast<A*>(w), ids_out, weights_out);
  }

  /// interleaved_sum() of the terms of each row.
  p sums_of_rows(key_rows const& rows, p most, bool plain) const {
    constexpr int width = key_rows::strip / lanes;
    alignas(64) A each[lanes], parts[lanes * lanes], columns[lanes * lanes];
    A const* part_rows[lanes];
    most.store(each);
    for (int l = 0; l < lanes; ++l) {
      p part[width];
      for (p& x : part) x = p::all(0);
      p const largest = p::all(each[l]);
      rows.for_each_strip(l, [&](A const* strip) {
        for (int i = 0; i < width; ++i)
          part[i] = add(part[i], masked_term(p::load(strip + i * lanes), largest, plain));
      });
      for (int half = width / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) part[i] = add(part[i], part[i + half]);
      part[0].store(parts + l * lanes);
      part_rows[l] = parts + l * lanes;
    }
    transpose(static_cast<A const* const*>(part_rows), lanes, static_cast<A*>(columns), 0);
    p part[lanes];
    for (int i = 0; i < lanes; ++i) part[i] = p::load(columns + i * lanes);
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] = add(part[i], part[i + half]);
    return part[0];
  }

  /// The weight policies, and what the caller gets.
  template <class Weight>
  void finish(index_t first, int count, std::int32_t* ids, A* w,
              tensor_view<std::int32_t, 2> const& ids_out,
              tensor_view<Weight, 2> const& weights_out) const {
    int const k = r.top_k;
    for_each_step<router_type::order::weights_at, router_type::weight_count>(
        [&](auto const& step) { weigh_lanes(step, static_cast<std::int32_t const*>(ids), w, k); },
        r.steps);
    for (int l = 0; l < count; ++l) {
      std::int32_t* const to = ids_out.row(first + l);
      Weight* const weights = weights_out.row(first + l);
      for (int j = 0; j < k; ++j) {
        to[j] = ids[j * lanes + l];
        weights[j] = narrow<Weight>(static_cast<accumulator_t<Weight>>(w[j * lanes + l]));
      }
    }
  }

  template <class Logit>
  void load(tensor_view<Logit, 2> const& logits, index_t first, int count, A* z) const {
    constexpr index_t part = 64;
    auto const row = [&](int l) { return logits.row(first + (l < count ? l : count - 1)); };
    A const* rows[lanes];
    if constexpr (std::is_same_v<std::remove_const_t<Logit>, A>) {
      for (int l = 0; l < lanes; ++l) rows[l] = row(l);
      index_t const next =
          first + 2 * lanes <= logits.extents[0] ? logits.row(lanes) - logits.row(0) : 0;
      transpose(static_cast<A const* const*>(rows), r.experts, z, next);
    } else {
      alignas(64) A wide[lanes * part];
      for (int l = 0; l < lanes; ++l) rows[l] = wide + l * part;
      for (index_t e = 0; e < r.experts; e += part) {
        index_t const n = r.experts - e < part ? r.experts - e : part;
        for (int l = 0; l < lanes; ++l) widen_row(row(l) + e, wide + l * part, n);
        transpose(static_cast<A const* const*>(rows), n, z + e * lanes, 0);
      }
    }
  }

  /// interleaved_sum() of the terms.
  p sum_of_terms(A const* z, p most, bool plain) const {
    p part[32];
    int const experts = r.experts;
    int parts = 32;
    while (parts / 2 >= experts) parts /= 2;  // the others are 0
    for (int i = 0; i < parts; ++i) {
      part[i] = p::all(0);
      for (int e = i; e < experts; e += parts)
        part[i] = add(part[i], masked_term(p::load(z + index_t{e} * lanes), most, plain));
    }
    for (int half = parts / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] = add(part[i], part[i + half]);
    return part[0];
  }
  p masked_term(p z, p most, bool plain) const {
    p const term = term_of(r.score(), z, most, plain);
    if constexpr (std::is_same_v<typename router_type::score_type, softmax_score> &&
                  std::is_same_v<A, float>)
      if (plain) return term;  // which is 0 already
    return zero_unless(z.v > p::all(-infinity<A>).v, term);
  }
  p score_of(p z, p most, [[maybe_unused]] p sum, bool plain) const {
    p const term = masked_term(z, most, plain);
    if constexpr (normalized)
      return select(sum.v > p::all(0).v, divide(term, sum), term);
    else
      return term;
  }

  void make_keys(A const* z, p most, p sum, bool plain, A* keys) const {
    p const none = p::all(-infinity<A>);
    auto const key = r.key();
    for (index_t e = 0; e < r.experts; ++e) {
      p const x = p::load(z + e * lanes);
      p const s = score_of(x, most, sum, plain);
      p const made = key_of(key, x, s, bias == nullptr ? A(0) : bias[e]);
      select(x.v > none.v, larger(made, none), none).store(keys + e * lanes);
    }
  }

  void limit(group_limited const& step, A* keys) const {
    using mask = mask_of<A>;
    int const size = r.experts / step.groups;
    p const none = p::all(-infinity<A>);
    alignas(64) A sums[most_groups * lanes];
    for (int g = 0; g < step.groups; ++g) {
      A const* const run = keys + index_t{g} * size * lanes;
      p first = none, second = none;
      for (int i = 0; i < size; ++i) {
        p const key = p::load(run + index_t{i} * lanes);
        p const smaller = {key.v > first.v ? first.v : key.v};
        first = larger(key, first);
        second = larger(smaller, second);
      }
      p const both =
          step.best_of == 1 ? first : select(second.v > none.v, add(first, second), first);
      both.store(sums + g * lanes);
    }
    for (int g = 0; g < step.groups; ++g) {
      p const mine = p::load(sums + g * lanes);
      mask before = {};
      for (int h = 0; h < step.groups; ++h) {
        p const other = p::load(sums + h * lanes);
        before -= h < g ? other.v >= mine.v : other.v > mine.v;
      }
      mask const keeps = before < static_cast<typename p::integer>(step.top_groups);
      A* const run = keys + index_t{g} * size * lanes;
      for (int i = 0; i < size; ++i)
        select(keeps, p::load(run + index_t{i} * lanes), none).store(run + index_t{i} * lanes);
    }
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace expar

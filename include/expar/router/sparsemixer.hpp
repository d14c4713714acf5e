// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/error.hpp>
#include <expar/router/detail/steps.hpp>
#include <expar/router/random.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// The largest logit but that of expert `without` (-1: none is left out), of equal ones the lower
/// id; -1 where all are masked.
template <class A>
EXPAR_HD int best_without(A const* z, int without, int experts) {
  int best = -1;
  for (int e = 0; e < experts; ++e)
    if (e != without && !masked(z[e]) && (best < 0 || z[e] > z[best])) best = e;
  return best;
}

/// One of the two choices of SparseMixer-v2, made among the experts but `without`.
template <class A>
struct mixer_stage {
  A const* z;
  int experts;
  int without;
  A threshold;  // a relative distance
  int best;

  EXPAR_HD mixer_stage(A const* logits, int count, int left_out, double jitter)
      : z(logits),
        experts(count),
        without(left_out),
        threshold(static_cast<A>(2 * jitter)),
        best(best_without(logits, left_out, count)) {}

  /// Whether expert e is near enough to the best to be a candidate. A quotient 0 / 0 is near.
  EXPAR_HD bool has(int e) const {
    if (best < 0 || e == without || masked(z[e])) return false;
    A const most = z[best], size = z[e] < A(0) ? -z[e] : z[e];
    return !(divide(add(most, -z[e]), size > most ? size : most) > threshold);
  }
  /// The softmax over the candidates; 0 elsewhere.
  EXPAR_HD void gates(A* g) const {
    for (int e = 0; e < experts; ++e) g[e] = has(e) ? shifted_exp(z[e], z[best]) : A(0);
    A const sum = interleaved_sum<A>(experts, [g](int e) { return g[e]; });
    if (sum > A(0))
      for (int e = 0; e < experts; ++e) g[e] = divide(g[e], sum);
  }
  /// The candidate with the largest sum of its logit and its number.
  template <class Numbers>
  EXPAR_HD int sample(Numbers const& numbers) const {
    int chosen = -1;
    A most = -infinity<A>;
    for (int e = 0; e < experts; ++e)
      if (has(e))
        if (A const x = add(z[e], numbers.template of<A>(e)); chosen < 0 || x > most)
          chosen = e, most = x;
    return chosen;
  }
};

/// What both mixers share: two experts, and the gradient.
struct mixer_base {
  static constexpr int top_k = 2;
  static constexpr bool takes_bias = false;

  int experts;
  double jitter;

  EXPAR_HD constexpr std::ptrdiff_t forward_scratch() const { return experts; }
  EXPAR_HD constexpr std::ptrdiff_t vjp_scratch() const { return experts; }

  void validate(char const* what, int /*expert_count*/, int /*k*/, index_t /*tokens*/) const {
    expects(jitter >= 0, what, ": jitter is ", jitter, "; it is at least 0");
  }

  template <class A>
  EXPAR_HD void vjp(A const* z, std::int32_t const* ids, A const* dw, A* gates, A* dz) const {
    for (int e = 0; e < experts; ++e) dz[e] = 0;
    for (int j = 0; j < top_k; ++j) {
      if (ids[j] < 0) continue;
      mixer_stage<A>(z, experts, j == 0 ? -1 : ids[0], jitter).gates(gates);
      A const g = multiply(dw[j], gates[ids[j]]);
      for (int e = 0; e < experts; ++e)
        dz[e] = add(dz[e], multiply(g, add(e == ids[j] ? A(1) : A(0), -gates[e])));
    }
  }
};

/// The mixer of one token: `pick(stage, j)` is the expert of choice j, `factor(j, is_best)` what
/// its gate is multiplied with.
template <class Pick, class Factor, class A>
EXPAR_HD void mix_two(mixer_base const& m, Pick const& pick, Factor const& factor, A const* z,
                      A* gates, std::int32_t* ids, A* w) {
  for (int j = 0; j < mixer_base::top_k; ++j) {
    mixer_stage<A> const stage(z, m.experts, j == 0 ? -1 : ids[0], m.jitter);
    ids[j] = stage.best < 0 ? -1 : pick(stage, j);
    w[j] = 0;
    if (ids[j] < 0) continue;
    stage.gates(gates);
    w[j] = multiply(gates[ids[j]], factor.template of<A>(j, ids[j] == stage.best));
  }
}

struct mixer_best {
  template <class Stage>
  EXPAR_HD int operator()(Stage const& stage, int /*j*/) const {
    return stage.best;
  }
};
template <class First, class Second>
struct mixer_sample {
  First first;
  Second second;

  template <class Stage>
  EXPAR_HD int operator()(Stage const& stage, int j) const {
    return j == 0 ? stage.sample(first) : stage.sample(second);
  }
};
struct mixer_one {
  template <class A>
  EXPAR_HD A of(int /*j*/, bool /*is_best*/) const {
    return A(1);
  }
};
template <class Uniform>
struct mixer_heun {
  Uniform uniform;

  template <class A>
  EXPAR_HD A of(int j, bool is_best) const {
    bool const whole = is_best || uniform.template of<A>(j) > A(0.75);
    return whole ? A(1) : static_cast<A>(0.3333);
  }
};

template <class First, class Second, class Uniform>
struct bound_mixer : mixer_base {
  mixer_sample<First, Second> noise;
  mixer_heun<Uniform> heun;

  template <class A>
  EXPAR_HD void forward(A const* z, A const* /*bias*/, A* scratch, std::int32_t* ids, A* w) const {
    mix_two(*this, noise, heun, z, scratch, ids, w);
  }
};

}  // namespace detail

/// SparseMixer-v2 at inference, a router of two experts (Phi-3.5-MoE; Hugging Face transformers,
/// phimoe, sparsemixer()):
///   expar::sparse_mixer r(16, .01);
/// The first choice is the largest logit m; its weight is the softmax over the candidates, which
/// are the experts whose logit z has (m - z) / max(|z|, m) <= 2 * jitter. The second choice is the
/// same among the other experts. The weights do not add up to 1. Use it with route() and
/// route_backward(); where fewer than two logits can be selected there are ids of -1. Which experts
/// the second weight is a softmax over depends on the first id. So on the way to route_backward()
/// no first id becomes -1 before a second that stays: where a route was dropped its gradient is 0.
struct sparse_mixer : detail::mixer_base {
  EXPAR_HD constexpr sparse_mixer(int expert_count, double jitter_epsilon)
      : detail::mixer_base{expert_count, jitter_epsilon} {}

  template <class A>
  EXPAR_HD void forward(A const* z, A const* /*bias*/, A* scratch, std::int32_t* ids, A* w) const {
    detail::mix_two(*this, detail::mixer_best{}, detail::mixer_one{}, z, scratch, ids, w);
  }
};

/// SparseMixer-v2 in training. A choice is the candidate with the largest sum of its logit and its
/// Gumbel number, of `first` [T, experts] for the first choice and of `second` [T, experts] for the
/// second. Unless it is the largest logit, its weight is multiplied by 0.3333 where its number of
/// `uniform` [T, 2] is not above 3/4 (Heun's third-order method). Numbers are drawn or given:
///   expar::sparse_mixer_training r(16, .01, expar::gumbels{stream},
///                                  expar::gumbels{stream, expar::random_purpose{128}},
///                                  expar::uniforms{stream});
/// The gradient is the estimator of the method (Liu et al., "Sparse Backpropagation for MoE
/// Training"), not the derivative: that of the softmax over the candidates, without the 0.3333. It
/// reads none of the numbers.
template <class First, class Second, class Uniform>
struct sparse_mixer_training : detail::mixer_base {
  First first;
  Second second;
  Uniform uniform;

  EXPAR_HD constexpr sparse_mixer_training(int expert_count, double jitter_epsilon,
                                           First first_numbers, Second second_numbers,
                                           Uniform uniform_numbers)
      : detail::mixer_base{expert_count, jitter_epsilon},
        first(first_numbers),
        second(second_numbers),
        uniform(uniform_numbers) {}

  EXPAR_HD constexpr auto at(index_t token) const {
    using bound =
        detail::bound_mixer<detail::bound<First>, detail::bound<Second>, detail::bound<Uniform>>;
    return bound{*this,
                 {detail::bind(first, token), detail::bind(second, token)},
                 {detail::bind(uniform, token)}};
  }
  void validate(detail::argument_table& a, int expert_count, int k, index_t tokens) const {
    detail::mixer_base::validate(a, expert_count, k, tokens);
    first.validate(a, expert_count, tokens);
    second.validate(a, expert_count, tokens);
    uniform.validate(a, k, tokens);
  }
};

}  // namespace expar::inline v0
EXPAR_IEEE_END

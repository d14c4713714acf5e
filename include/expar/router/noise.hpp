// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/detail/steps.hpp>
#include <expar/router/math.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/random.hpp>
#include <expar/router/transform.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

// Transforms of logits z by numbers of a source: uniforms, normals or gumbels of a random_stream,
// or given_numbers. For training; the router for evaluation is the one without them.
//
//   expar::random_stream const stream{.seed = 1, .step = step, .layer = 3, .first_token = first};
//   expar::router r(shape, expar::add_noise{1. / shape.experts, expar::normals{stream}},
//                   expar::softmax_score{});

/// z + scale * number. Normal numbers: V-MoE with scale noise_std / experts, Tutel with
/// gate_noise / experts. Gumbel numbers with scale 1: what the largest logit then selects is a
/// sample of the softmax; before temperature{tau}, (z + gumbel) / tau (EvoMoE).
template <class Numbers>
struct add_noise {
  double scale;
  Numbers numbers;

  template <class A>
  EXPAR_HD A of(A z, int expert) const {
    return detail::add(z, detail::multiply(static_cast<A>(scale), numbers.template of<A>(expert)));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return A(1);
  }
  EXPAR_HD constexpr auto at(index_t token) const requires(detail::depends_on_token<Numbers>) {
    return add_noise<detail::bound<Numbers>>{scale, numbers.at(token)};
  }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    detail::expects(scale - scale == 0, a, ": scale of the noise is ", scale, "; it is finite");
    numbers.validate(a, experts, tokens);
  }
};
template <class Numbers>
add_noise(double, Numbers) -> add_noise<Numbers>;

/// z + U(1 - eps, 1 + eps), given uniform numbers in [0, 1) (fastmoe's SwitchGate).
template <class Numbers>
struct add_uniform {
  double eps;
  Numbers numbers;

  template <class A>
  EXPAR_HD A of(A z, int expert) const {
    return detail::add(z, detail::around_one(eps, numbers.template of<A>(expert)));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return A(1);
  }
  EXPAR_HD constexpr auto at(index_t token) const requires(detail::depends_on_token<Numbers>) {
    return add_uniform<detail::bound<Numbers>>{eps, numbers.at(token)};
  }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    detail::expects(eps >= 0 && eps <= 1, a, ": eps is ", eps, "; it is 0 to 1");
    numbers.validate(a, experts, tokens);
  }
};
template <class Numbers>
add_uniform(double, Numbers) -> add_uniform<Numbers>;

/// z * U(1 - eps, 1 + eps), given uniform numbers in [0, 1).
template <class Numbers>
struct multiply_uniform {
  double eps;
  Numbers numbers;

  template <class A>
  EXPAR_HD A of(A z, int expert) const {
    return detail::multiply(z, slope(z, expert));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int expert) const {
    return detail::around_one(eps, numbers.template of<A>(expert));
  }
  EXPAR_HD constexpr auto at(index_t token) const requires(detail::depends_on_token<Numbers>) {
    return multiply_uniform<detail::bound<Numbers>>{eps, numbers.at(token)};
  }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    detail::expects(eps >= 0 && eps <= 1, a, ": eps is ", eps, "; it is 0 to 1");
    numbers.validate(a, experts, tokens);
  }
};
template <class Numbers>
multiply_uniform(double, Numbers) -> multiply_uniform<Numbers>;

/// The number alone, whatever the logit is; a masked logit stays masked. Uniform numbers and no
/// gradient: THOR, SMoE-dropout. Normal numbers and the gradient passed on as if they were the
/// logits (straight_through): Megatron's random logits for benchmarks of balanced load.
template <class Numbers>
struct random_logits {
  bool straight_through;
  Numbers numbers;

  template <class A>
  EXPAR_HD A of(A /*z*/, int expert) const {
    return numbers.template of<A>(expert);
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return straight_through ? A(1) : A(0);
  }
  EXPAR_HD constexpr auto at(index_t token) const requires(detail::depends_on_token<Numbers>) {
    return random_logits<detail::bound<Numbers>>{straight_through, numbers.at(token)};
  }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    numbers.validate(a, experts, tokens);
  }
};
template <class Numbers>
random_logits(bool, Numbers) -> random_logits<Numbers>;

namespace detail {

/// add_learned_noise of one token, whose row of raw it is.
template <class T, class Numbers>
struct learned_noise_of_token {
  T const* raw;
  double floor;
  Numbers numbers;

  template <class A>
  EXPAR_HD A deviation(int expert) const {
    return add(softplus(static_cast<A>(widen(raw[expert]))), static_cast<A>(floor));
  }
  template <class A>
  EXPAR_HD A of(A z, int expert) const {
    return add(z, multiply(numbers.template of<A>(expert), deviation<A>(expert)));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return A(1);
  }
  /// The derivative of of() for raw.
  template <class A>
  EXPAR_HD A raw_slope(int expert) const {
    A const x = static_cast<A>(widen(raw[expert]));
    return multiply(numbers.template of<A>(expert), sigmoid_score{}.term(x, A(0)));
  }
};

}  // namespace detail

/// z + number * deviation with the learned deviation softplus(raw[token, expert]) + floor (Shazeer
/// et al. 2017; fastmoe's NoisyGate and Tensor2Tensor: normal numbers, floor 0.01). The deviation
/// of one logit is `at(token).deviation<A>(expert)`. learned_noise_backward() gives raw its
/// gradient.
template <class T, class Numbers>
struct add_learned_noise {
  tensor_view<T const, 2> raw;  // [T, experts]
  double floor;
  Numbers numbers;

  EXPAR_HD constexpr auto at(index_t token) const {
    return detail::learned_noise_of_token<T, detail::bound<Numbers>>{raw.row(token), floor,
                                                                     detail::bind(numbers, token)};
  }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    a.reads("raw", raw, {{tokens, "the number of tokens"}, {experts, "the number of experts"}});
    detail::expects(floor - floor == 0, a, ": floor of the noise is ", floor, "; it is finite");
    numbers.validate(a, experts, tokens);
  }
};
template <class T, class Numbers>
add_learned_noise(tensor_view<T, 2>, double, Numbers)
    -> add_learned_noise<std::remove_const_t<T>, Numbers>;

struct learned_noise_backward_fn {
  template <class T, class Numbers, class DNoisy, class DRaw>
  void operator()(host_context const& ctx, add_learned_noise<T, Numbers> const& noise,
                  DNoisy const& d_noisy, DRaw&& d_raw) const {
    detail::arguments a(ctx, "learned_noise_backward");
    index_t const tokens = noise.raw.extents[0], experts = noise.raw.extents[1];
    detail::rule const each_token{tokens, "the number of tokens"},
        each_expert{experts, "the number of experts"};
    noise.validate(a, static_cast<int>(experts), 0, tokens);
    auto const dx = a.read("d_noisy", d_noisy, {each_token, each_expert});
    auto const dr = a.gradient("d_raw", d_raw,
                               {each_token, each_expert, detail::may_be("raw"),
                                detail::may_be("d_noisy"), detail::may_be("given numbers")});
    using A = std::common_type_t<accumulator_t<T>, accumulator_t<detail::element_of<decltype(dx)>>>;
    detail::for_each_token_with<A>(ctx, tokens, experts, experts, [&](index_t t, A* g) {
      auto const of_token = noise.at(t);
      detail::widen_row(dx.row(t), g, experts);
      for (int e = 0; e < experts; ++e)
        if (g[e] != A(0)) g[e] = detail::multiply(g[e], of_token.template raw_slope<A>(e));
      dr.put_row(dr.row(t), g, experts);
    });
  }
};
/// `learned_noise_backward(ctx, noise, d_noisy, d_raw)`: the gradient for the raw of an
/// add_learned_noise, d_noisy * number * sigmoid(raw), to d_raw [T, experts]. d_noisy [T, experts]
/// is the gradient for the noisy logits; since these follow the clean ones with slope 1, the
/// d_logits of route_backward() where the noise is the router's first transform. Where d_noisy is
/// 0, as for masked logits, so is d_raw. d_raw may be d_noisy or raw, or the numbers that are
/// given, and is otherwise apart from them. Throws where shapes do not fit; then d_raw is
/// untouched.
inline constexpr learned_noise_backward_fn learned_noise_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END

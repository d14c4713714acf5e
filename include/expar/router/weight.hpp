// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/error.hpp>
#include <expar/router/exp.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// The last policies of a router, any number of them: each changes the k weights of one token,
/// which begin as the scores of the selected experts, in choice order. The weight of a choice
/// without an expert (id -1) is 0.
///   step(ids, w, k)               changes w [k] in place, and leaves 0 where the id is -1
///   step.vjp(ids, in, out, d, k)  turns d [k], the gradient for its output, into that for
///                                 its input, in place; in and out are the weights before
///                                 and after the step
template <class S>
concept weight_policy = requires(S const step, std::int32_t const* ids, float const* in, float* out,
                                 int k) {
  step(ids, out, k);
  step.vjp(ids, in, in, out, k);
};

/// Divides the weights by their sum, which is made in choice order.
struct renormalize {
  /// How epsilon guards the denominator: sum + epsilon, or max(sum, epsilon).
  enum class guard { add, at_least };

  double epsilon = 0;
  guard kind = guard::add;
  /// Whether a router with top_k = 1 divides too: then the weight is 1, and no gradient comes back.
  bool single = true;

  /// A denominator of 0 gives weights of 0.
  template <class A>
  EXPAR_HD void operator()(std::int32_t const* /*ids*/, A* w, int k) const {
    if (k == 1 && !single) return;
    A const divisor = denominator(w, k);
    for (int j = 0; j < k; ++j) w[j] = divisor == A(0) ? A(0) : detail::divide(w[j], divisor);
  }
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(epsilon >= 0 && epsilon < detail::infinity<double>, what, ": epsilon is ",
                    epsilon, "; it is at least 0 and finite");
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* in, A const* out, A* d, int k) const {
    if (k == 1 && !single) return;
    A const divisor = denominator(in, k);
    A mean = 0;
    if (!clamped(in, k))
      for (int j = 0; j < k; ++j) mean = detail::add(mean, detail::multiply(d[j], out[j]));
    for (int j = 0; j < k; ++j)
      d[j] =
          ids[j] < 0 || divisor == A(0) ? A(0) : detail::divide(detail::add(d[j], -mean), divisor);
  }

 private:
  template <class A>
  EXPAR_HD static A sum(A const* w, int k) {
    A total = 0;
    for (int j = 0; j < k; ++j) total = detail::add(total, w[j]);
    return total;
  }
  template <class A>
  EXPAR_HD bool clamped(A const* w, int k) const {
    return kind == guard::at_least && sum(w, k) < static_cast<A>(epsilon);
  }
  template <class A>
  EXPAR_HD A denominator(A const* w, int k) const {
    if (clamped(w, k)) return static_cast<A>(epsilon);
    return detail::add(sum(w, k), kind == guard::add ? static_cast<A>(epsilon) : A(0));
  }
};

/// Multiplies the weights by a constant.
struct scale {
  double factor = 1;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* /*ids*/, A* w, int k) const {
    for (int j = 0; j < k; ++j) w[j] = detail::multiply(w[j], static_cast<A>(factor));
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* /*ids*/, A const* /*in*/, A const* /*out*/, A* d,
                    int k) const {
    for (int j = 0; j < k; ++j) d[j] = detail::multiply(d[j], static_cast<A>(factor));
  }
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(factor - factor == 0, what, ": scale is ", factor, "; it is finite");
  }
};

/// Adds a constant to the weights (OLMo-core, whose sigmoid scores are larger by 1e-7).
struct offset {
  double value;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    for (int j = 0; j < k; ++j)
      if (ids[j] >= 0) w[j] = detail::add(w[j], static_cast<A>(value));
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const*, A const*, A const*, A*, int) const {}
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(value - value == 0, what, ": offset is ", value, "; it is finite");
  }
};

/// Where a weight is multiplied: with what an expert gives, or with the token that it gets.
enum class weight_site { output, input };

/// Says that the weights belong to the tokens that go to the experts: router::site is then
/// weight_site::input, for encode() instead of decode() (Llama 4). Changes nothing.
struct on_input {
  static constexpr weight_site site = weight_site::input;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const*, A*, int) const {}
  template <class A>
  EXPAR_HD void vjp(std::int32_t const*, A const*, A const*, A*, int) const {}
};

}  // namespace expar::inline v0
EXPAR_IEEE_END

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/math.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {

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
  void check(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
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
  void check(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
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
  void check(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(value - value == 0, what, ": offset is ", value, "; it is finite");
  }
};

/// Divides the weights by their norm of order p >= 1, (sum of |w|^p)^(1/p) (DBRX, MegaBlocks,
/// OLMo-core). A norm of 0 gives weights of 0. Computed relative to the largest weight, so that no
/// power is too large or too small.
struct normalize {
  double p = 1;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* /*ids*/, A* w, int k) const {
    A const most = largest(w, k);
    if (most == A(0)) return;
    A const n = norm(w, k, most);
    for (int j = 0; j < k; ++j) w[j] = detail::divide(detail::divide(w[j], most), n);
  }
  /// The slope of the norm for w is sign(w) * |w / norm|^(p - 1).
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* in, A const* out, A* d, int k) const {
    A const most = largest(in, k), n = most == A(0) ? A(1) : norm(in, k, most);
    A mean = 0;
    for (int j = 0; j < k; ++j) mean = detail::add(mean, detail::multiply(d[j], out[j]));
    for (int j = 0; j < k; ++j) {
      A const size = power(magnitude(out[j]), p - 1);
      A const rest = detail::add(d[j], -detail::multiply(mean, out[j] < A(0) ? -size : size));
      d[j] = ids[j] < 0 || most == A(0) ? A(0) : detail::divide(detail::divide(rest, most), n);
    }
  }
  void check(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(p >= 1 && p < detail::infinity<double>, what, ": p is ", p,
                    "; it is at least 1 and finite");
  }

 private:
  template <class A>
  EXPAR_HD static A magnitude(A x) {
    return x < A(0) ? -x : x;
  }
  template <class A>
  EXPAR_HD static A largest(A const* w, int k) {
    A most = 0;
    for (int j = 0; j < k; ++j) most = magnitude(w[j]) > most ? magnitude(w[j]) : most;
    return most;
  }
  /// The norm of w / most.
  template <class A>
  EXPAR_HD A norm(A const* w, int k, A most) const {
    A sum = 0;
    for (int j = 0; j < k; ++j)
      sum = detail::add(sum, power(detail::divide(magnitude(w[j]), most), p));
    return power(sum, 1 / p);
  }
  /// x^y for x >= 0 and y >= 0; 0^0 is 1.
  template <class A>
  EXPAR_HD static A power(A x, double y) {
    if (y == 0) return A(1);
    if (y == 1) return x;
    if (y == 2) return detail::multiply(x, x);
    if (y == 0.5) return detail::square_root(x);
    if (!(x >= detail::smallest_normal<A>)) return A(0);
    return detail::exponential(detail::multiply(static_cast<A>(y), detail::logarithm(x)));
  }
};

/// The softmax of the weights among themselves: with logit_score, of the selected logits (gpt-oss,
/// Granite). Sums are made in choice order.
struct softmax_weights {
  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    A most = -detail::infinity<A>, sum = 0;
    for (int j = 0; j < k; ++j)
      if (ids[j] >= 0 && w[j] > most) most = w[j];
    for (int j = 0; j < k; ++j) {
      w[j] = ids[j] < 0 ? A(0) : detail::shifted_exp(w[j], most);
      sum = detail::add(sum, w[j]);
    }
    for (int j = 0; sum > A(0) && j < k; ++j) w[j] = detail::divide(w[j], sum);
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* /*ids*/, A const* /*in*/, A const* out, A* d, int k) const {
    A mean = 0;
    for (int j = 0; j < k; ++j) mean = detail::add(mean, detail::multiply(d[j], out[j]));
    for (int j = 0; j < k; ++j) d[j] = detail::multiply(out[j], detail::add(d[j], -mean));
  }
};

/// 1 / (1 + exp(-w)) of each weight (Llama 4).
struct sigmoid_weights {
  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    for (int j = 0; j < k; ++j) w[j] = ids[j] < 0 ? A(0) : sigmoid_score{}.term(w[j], A(0));
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* /*in*/, A const* out, A* d, int k) const {
    for (int j = 0; j < k; ++j)
      d[j] = ids[j] < 0 ? A(0) : sigmoid_score{}.slope(out[j], d[j], A(0));
  }
};

/// Multiplies each weight by the number of its expert, factors [experts]: Gemma 4. The factors are
/// learned; their gradient is expert_scale_backward().
template <class T>
struct expert_scale {
  tensor_view<T const, 1> factors;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    for (int j = 0; j < k; ++j) w[j] = ids[j] < 0 ? A(0) : detail::multiply(w[j], of<A>(ids[j]));
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* /*in*/, A const* /*out*/, A* d, int k) const {
    for (int j = 0; j < k; ++j) d[j] = ids[j] < 0 ? A(0) : detail::multiply(d[j], of<A>(ids[j]));
  }
  void check(char const* what, int experts, int /*top_k*/, index_t /*tokens*/) const {
    detail::check_view("factors", factors);
    detail::expects(factors.extents[0] == experts, what, ": factors has ", factors.extents[0],
                    " entries, but there are ", experts, " experts");
  }

 private:
  template <class A>
  EXPAR_HD A of(std::int32_t expert) const {
    return static_cast<A>(widen(factors.data[expert]));
  }
};
template <class T>
expert_scale(tensor_view<T, 1>) -> expert_scale<std::remove_const_t<T>>;

/// Weight 0 for experts [first, last), which stay selected: MoE++'s zero experts.
struct zero_weights_of {
  int first, last;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    for (int j = 0; j < k; ++j)
      if (ids[j] >= first && ids[j] < last) w[j] = A(0);
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* /*in*/, A const* /*out*/, A* d, int k) const {
    (*this)(ids, d, k);
  }
  void check(char const* what, int experts, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(first >= 0 && first <= last && last <= experts, what, ": zero experts ", first,
                    " to ", last, " are no range of the ", experts, " experts");
  }
};

/// The same weight for each selected expert, 1 / (how many there are). No gradient comes back, or
/// with `straight_through` that of the mask as if it were the score (DynMoE): d / (how many).
struct equal_weights {
  bool straight_through = false;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    A const share = share_of<A>(ids, k);
    for (int j = 0; j < k; ++j) w[j] = ids[j] < 0 ? A(0) : share;
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* /*in*/, A const* /*out*/, A* d, int k) const {
    A const share = straight_through ? share_of<A>(ids, k) : A(0);
    for (int j = 0; j < k; ++j) d[j] = ids[j] < 0 ? A(0) : detail::multiply(d[j], share);
  }

 private:
  template <class A>
  EXPAR_HD static A share_of(std::int32_t const* ids, int k) {
    int n = 0;
    for (int j = 0; j < k; ++j) n += static_cast<int>(ids[j] >= 0);
    return detail::divide(A(1), static_cast<A>(n > 1 ? n : 1));
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

}  // namespace v0
}  // namespace expar

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

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
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t /*tokens*/) const {
    a.reads("factors", factors, {{experts, "the number of experts"}});
  }

 private:
  template <class A>
  EXPAR_HD A of(std::int32_t expert) const {
    return static_cast<A>(widen(factors(expert)));
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
  void validate(char const* what, int experts, int /*top_k*/, index_t /*tokens*/) const {
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

}  // namespace expar::inline v0
EXPAR_IEEE_END

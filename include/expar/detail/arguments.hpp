// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <expar/add_to.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/ids.hpp>
#include <expar/detail/token_mask.hpp>
#include <expar/element.hpp>
#include <expar/only.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// A gradient that an adjoint writes: overwritten, or added to.
template <class T, int Rank, bool Adds>
struct gradient_view : tensor_view<T, Rank> {
  static constexpr bool adds = Adds;

  template <class A>
  static void put(T& at, A g) {
    accumulator_t<T> const wide = static_cast<accumulator_t<T>>(g);
    if constexpr (Adds)
      at = narrow<T>(widen(at) + wide);
    else
      at = narrow<T>(wide);
  }
  /// The n numbers of a row.
  template <class A>
  static void put_row(T* to, A const* g, index_t n) {
    for (index_t i = 0; i < n; ++i) put(to[i], g[i]);
  }
  /// A row whose gradient is zero.
  static void put_zeros(T* to, index_t n) {
    if constexpr (!Adds)
      for (index_t i = 0; i < n; ++i) to[i] = narrow<T>(0);
  }
};

/// A view of tokens and which of them take part.
template <class View, class Valid>
struct masked_view : View {
  Valid valid;

  masked_view(View v, Valid tokens) : View(std::move(v)), valid(tokens) {}
};

template <class>
inline constexpr bool is_only = false;
template <class V, class T>
inline constexpr bool is_only<only<V, T>> = true;
template <class>
inline constexpr bool is_added = false;
template <class T>
inline constexpr bool is_added<add_to<T>> = true;

/// A gradient of the caller's, by static checks alone, and its place among the arguments.
template <int Rank, class Context, class X>
auto gradient_output(Context const& ctx, X& x) {
  if constexpr (is_added<std::remove_cv_t<X>>) {
    auto const v = as_output<Rank>(ctx, x.tensor);
    return gradient_view<element_of<decltype(v)>, Rank, true>{v};
  } else {
    auto const v = as_output<Rank>(ctx, x);
    return gradient_view<element_of<decltype(v)>, Rank, false>{v};
  }
}
template <class T, int Rank, bool Adds>
void name_gradient(argument_table& a, char const* name, gradient_view<T, Rank, Adds> const& v,
                   rules fits) {
  if constexpr (Adds)
    a.adds(name, v, fits);
  else
    a.writes(name, v, fits);
}

/// The door of an operation, whose header is all that an operation on tensors includes: with it
/// come the context, views, elements, masks and buffers, and the types of <cstdint> and
/// <type_traits>. It turns each tensor of the caller into a
/// view, once, by its name, and checks it beside all that came before. Extents are given dimension
/// by dimension:
///
///   arguments a(ctx, "renormalize_kept");
///   auto const ids = a.ids("kept", kept);
///   rule const tokens{ids.extents[0], "the number of tokens"}, choices{...};
///   auto const w = a.read("weights", weights, {tokens, choices});
///   auto const o = a.written("out", out, {tokens, choices, may_be("weights")});
///
/// A tensor has two dimensions, and a vector one. Elements are of an element type, but those of
/// `..._any`, whose type the operation checks itself.
template <class Context>
class arguments : public argument_table {
 public:
  arguments(Context const& ctx, char const* operation) : argument_table(operation), ctx_(ctx) {}

  template <class X>
  auto read(char const* name, X const& x, rules fits = {}) {
    return numbers(input<2>(name, x, fits));
  }
  template <class X>
  auto read_vector(char const* name, X const& x, rules fits = {}) {
    return numbers(input<1>(name, x, fits));
  }
  template <class X>
  auto read_any(char const* name, X const& x, rules fits = {}) {
    return input<2>(name, x, fits);
  }
  template <class X>
  auto read_any_vector(char const* name, X const& x, rules fits = {}) {
    return input<1>(name, x, fits);
  }

  template <class X>
  auto written(char const* name, X&& x, rules fits = {}) {
    return numbers(output<2>(name, x, fits));
  }
  template <class X>
  auto written_vector(char const* name, X&& x, rules fits = {}) {
    return numbers(output<1>(name, x, fits));
  }
  template <class X>
  auto written_any(char const* name, X&& x, rules fits = {}) {
    return output<2>(name, x, fits);
  }
  template <class X>
  auto written_any_vector(char const* name, X&& x, rules fits = {}) {
    return output<1>(name, x, fits);
  }

  /// A gradient, overwritten unless the caller passes add_to(x); then it may be no other argument.
  template <class X>
  auto gradient(char const* name, X&& x, rules fits = {}) {
    return gradient_of<2>(name, x, fits);
  }
  template <class X>
  auto gradient_vector(char const* name, X&& x, rules fits = {}) {
    return gradient_of<1>(name, x, fits);
  }

  /// A tensor of which the caller may leave tokens out by only(valid, x): a view with valid(token).
  template <class X>
  auto masked(char const* name, X const& x, rules fits = {}) {
    auto const v = read(name, unmasked(x), fits);
    return masked_view(v, valid_tokens(x, v.extents[0]));
  }
  template <class X>
  auto masked_ids(char const* name, X const& x, rules fits = {}) {
    auto v = ids(name, unmasked(x), fits);
    auto const valid = valid_tokens(x, v.extents[0]);
    return masked_view(std::move(v), valid);
  }

  /// The two parts of only(valid, x), where x is no tensor of so many tokens itself.
  template <class X>
  static auto const& unmasked(X const& x) {
    if constexpr (is_only<X>)
      return x.tensor;
    else
      return x;
  }
  template <class X>
  auto valid_tokens(X const& x, index_t tokens) {
    if constexpr (is_only<X>)
      return as_marks(input<1>("valid", x.valid, {{tokens, "the number of tokens"}}));
    else
      return every_token{};
  }

  /// Expert ids of any signed integer type, as 32-bit numbers; a number beyond those throws.
  template <class X>
  auto ids(char const* name, X const& x, rules fits = {}) {
    return ids_of(name, input<2>(name, x, fits));
  }
  template <class X>
  auto ids_vector(char const* name, X const& x, rules fits = {}) {
    return ids_of(name, input<1>(name, x, fits));
  }
  /// The same for what is written: the caller has it after store(). Throws where the type cannot
  /// name all experts.
  template <class X>
  auto written_ids(char const* name, X&& x, index_t experts, rules fits = {}) {
    return written_ids_of(name, output<2>(name, x, fits), experts);
  }

 private:
  template <int Rank, class X>
  auto input(char const* name, X const& x, rules fits) {
    auto const v = as_view<Rank>(ctx_, x);
    reads(name, v, fits);
    return v;
  }
  template <int Rank, class X>
  auto output(char const* name, X& x, rules fits) {
    auto const v = as_output<Rank>(ctx_, x);
    writes(name, v, fits);
    return v;
  }
  // What asserts has a deduced type, so that compilers look into it first.
  template <class View>
  static auto numbers(View const& v) {
    static_assert(element<element_of<View>>,
                  "expar: this tensor is of an element type, a rounded number; specialize "
                  "expar::element_traits for it");
    return v;
  }
  template <int Rank, class X>
  auto gradient_of(char const* name, X& x, rules fits) {
    auto const v = numbers(gradient_output<Rank>(ctx_, x));
    name_gradient(*this, name, v, fits);
    return v;
  }
  template <class Id>
  static constexpr auto check_ids() {
    static_assert(std::signed_integral<Id>, "expar: expert ids are of a signed integer type");
    static_assert(std::is_same_v<Id, std::int32_t> || Context::space == memory_space::host,
                  "expar: expert ids on a device are std::int32_t");
  }
  template <class T, int Rank>
  auto ids_of([[maybe_unused]] char const* name, tensor_view<T, Rank> const& v) {
    using Id = std::remove_const_t<T>;
    check_ids<Id>();
    if constexpr (std::is_same_v<Id, std::int32_t>)
      return tensor_view<Id const, Rank>(v);
    else
      return detail::read_ids<Id, Rank>(ctx_, c_str(), name, v);
  }
  template <class Id, int Rank>
  auto written_ids_of([[maybe_unused]] char const* name, tensor_view<Id, Rank> const& v,
                      [[maybe_unused]] index_t experts) {
    check_ids<Id>();
    if constexpr (std::is_same_v<Id, std::int32_t>)
      return detail::written_ids<Id, Rank>(v);
    else
      return detail::written_ids<Id, Rank>(ctx_, c_str(), name, v, experts);
  }

  Context const& ctx_;
};

}  // namespace expar::inline v0::detail

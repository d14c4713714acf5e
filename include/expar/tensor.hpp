// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/error.hpp>

namespace expar::inline v0 {

/// Extents, strides and row numbers: signed and as wide as a pointer, so that products cannot
/// overflow.
using index_t = std::ptrdiff_t;

/// The memory that a tensor lives in and a context works in.
enum class memory_space { host, device, any };

/// The vocabulary type: does not own, trivially copyable, enters kernels by value. Strides count
/// elements. Every algorithm works on this and on nothing else.
template <class T, int Rank>
struct tensor_view {
  T* data{};
  index_t extents[std::size_t{Rank}]{};
  index_t strides[std::size_t{Rank}]{};

  EXPAR_HD constexpr index_t extent(int i) const { return extents[i]; }
  EXPAR_HD constexpr index_t size() const {
    index_t n = 1;
    for (int i = 0; i < Rank; ++i) n *= extents[i];
    return n;
  }
  /// The address of row `i`, for rank 2.
  EXPAR_HD constexpr T* row(index_t i) const { return data + i * strides[0]; }
  template <class... Index>
  EXPAR_HD constexpr T& operator()(Index... at) const {
    static_assert(sizeof...(Index) == Rank, "expar: give one index per dimension");
    index_t const where[] = {static_cast<index_t>(at)...};
    index_t offset = 0;
    for (int i = 0; i < Rank; ++i) offset += where[i] * strides[i];
    return data[offset];
  }
  template <std::same_as<T const> Const>
  requires(!std::is_const_v<T>) EXPAR_HD constexpr operator tensor_view<Const, Rank>() const {
    tensor_view<Const, Rank> v{data};
    for (int i = 0; i < Rank; ++i) v.extents[i] = extents[i], v.strides[i] = strides[i];
    return v;
  }
};

/// A view of `n` elements, or of `rows` rows that stand `pitch` elements apart (default: packed).
template <class T>
EXPAR_HD constexpr tensor_view<T, 1> make_view(T* data, index_t n) {
  return {data, {n}, {1}};
}
template <class T>
EXPAR_HD constexpr tensor_view<T, 2> make_view(T* data, index_t rows, index_t columns) {
  return {data, {rows, columns}, {columns, 1}};
}
template <class T>
EXPAR_HD constexpr tensor_view<T, 2> make_view(T* data, index_t rows, index_t columns,
                                               index_t pitch) {
  return {data, {rows, columns}, {pitch, 1}};
}

/// A view of `n` elements that stand `stride` elements apart.
template <class T>
EXPAR_HD constexpr tensor_view<T, 1> make_strided_view(T* data, index_t n, index_t stride) {
  return {data, {n}, {stride}};
}

namespace detail {

template <class>
inline constexpr int view_rank = -1;
template <class T, int Rank>
inline constexpr int view_rank<tensor_view<T, Rank>> = Rank;

template <class T>
concept strided_members = requires(T& t, std::size_t i) {
  t.data();
  { t.extent(i) } -> std::convertible_to<index_t>;
  { t.stride(i) } -> std::convertible_to<index_t>;
  { T::rank() } -> std::convertible_to<int>;
};
template <class T>
concept mdspan_shaped = requires(T& t, std::size_t i) {
  t.data_handle();
  t.mapping();
  { t.extent(i) } -> std::convertible_to<index_t>;
  { t.stride(i) } -> std::convertible_to<index_t>;
  { T::rank() } -> std::convertible_to<int>;
};
// A range whose elements stand at one distance from each other, as those of a vector do, or of a
// column. Where they stand is asked of its iterator: data() of some types is where they come from.
template <class T>
concept strided_range = !strided_members<T> && requires(T & t) {
  requires std::is_pointer_v<decltype(t.data())>;
  { t.size() } -> std::convertible_to<std::size_t>;
  requires std::is_same_v<decltype(t.begin()[0]), decltype(*t.data())>;
};

template <class E, class Strided>
constexpr auto strided_view(Strided& t, E* data) {
  constexpr int rank = static_cast<int>(Strided::rank());
  tensor_view<E, rank> v{data};
  for (int i = 0; i < rank; ++i) {
    v.extents[i] = static_cast<index_t>(t.extent(static_cast<std::size_t>(i)));
    v.strides[i] = static_cast<index_t>(t.stride(static_cast<std::size_t>(i)));
  }
  return v;
}
template <class Range>
constexpr auto range_view(Range& t) {
  auto const n = static_cast<index_t>(t.size());
  if (n < 2) return make_view(t.data(), n);
  auto* const first = &t.begin()[0];
  index_t const stride = &t.begin()[1] - first;
  expects(&t.begin()[n - 1] - first == (n - 1) * stride, "a range of ", n,
          " elements that do not stand at one distance from each other is no "
          "tensor of rank 1");
  return make_strided_view(first, n, stride);
}

/// What a type says of itself, where it does.
template <class T>
struct default_traits {};
template <class T, int Rank>
struct default_traits<tensor_view<T, Rank>> {
  static constexpr memory_space space = memory_space::any;
  EXPAR_HD static constexpr tensor_view<T, Rank> view(tensor_view<T, Rank> v) { return v; }
};
template <strided_members T>
struct default_traits<T> {
  static constexpr auto view(auto& t) { return strided_view(t, t.data()); }
};
template <mdspan_shaped T>
struct default_traits<T> {
  static constexpr auto view(auto& t) { return strided_view(t, t.data_handle()); }
};
template <strided_range T>
struct default_traits<T> {
  static constexpr auto view(auto& t) { return range_view(t); }
};

}  // namespace detail

/// Customization point: specialize it for a type that you do not own, or, with a constraint, for
/// many. `view(t)` gives a tensor_view of `t`, const or not; an optional `static constexpr
/// memory_space space` says where the data lives (host where it is silent). These need no
/// specialization: types that speak data(), rank(), extent(i) and stride(i); every mdspan; ranges
/// whose elements stand at one distance from each other (std::vector, std::span, std::array, a
/// column of a matrix) as rank 1.
template <class T>
struct tensor_traits : detail::default_traits<T> {};

/// A type whose traits give a tensor_view of this rank.
template <class T, int Rank>
concept tensor = requires(std::remove_reference_t<T>& t) {
  requires detail::view_rank<decltype(tensor_traits<std::remove_cvref_t<T>>::view(t))>
  == Rank;
};

namespace detail {

template <class T>
concept names_space = requires {
  tensor_traits<T>::space;
};

template <class T>
constexpr memory_space space_of() {
  if constexpr (names_space<T>)
    return tensor_traits<T>::space;
  else
    return memory_space::host;
}

/// The door: every public operation turns the caller's tensor into a view here, once.
template <int Rank, class Context, class T>
constexpr auto as_view(Context const&, T&& t) {
  using bare = std::remove_cvref_t<T>;
  constexpr bool is_tensor = tensor<T, Rank>;
  static_assert(
      is_tensor,
      "expar: this argument must be a tensor of the rank that the operation states; specialize "
      "expar::tensor_traits for its type, or pass an expar::tensor_view");
  if constexpr (is_tensor) {
    static_assert(space_of<bare>() == memory_space::any || space_of<bare>() == Context::space,
                  "expar: this tensor lives in another memory space than the one that the context "
                  "works in");
    return tensor_traits<bare>::view(t);
  }
}

/// The same for what the operation writes.
template <int Rank, class Context, class T>
constexpr auto as_output(Context const& ctx, T&& t) {
  auto const v = as_view<Rank>(ctx, t);
  static_assert(!std::is_const_v<std::remove_pointer_t<decltype(v.data)>>,
                "expar: this argument is written, so its elements cannot be const");
  return v;
}

/// How only() and add_to() hold what they stand around: views and numbers by value, since those are
/// often temporary, all else by reference.
template <class T>
using held = std::conditional_t<
    (view_rank<std::remove_const_t<T>> > 0) || std::is_arithmetic_v<std::remove_const_t<T>>, T, T&>;

template <class View>
using element_of = std::remove_cv_t<std::remove_pointer_t<decltype(View::data)>>;

}  // namespace detail
}  // namespace expar::inline v0

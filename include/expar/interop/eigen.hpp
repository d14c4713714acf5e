// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<Eigen/Core>)
#error \
    "expar/interop/eigen.hpp needs Eigen 3; its folder, which holds Eigen/Core, is no include path"
#endif
#include <Eigen/Core>

#include <expar/element.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

template <>
struct element_traits<Eigen::half> : traits_of_same_bits<Eigen::half, half> {};
template <>
struct element_traits<Eigen::bfloat16> : traits_of_same_bits<Eigen::bfloat16, bfloat16> {};

namespace detail {

template <class Derived>
Derived dense_of_eigen(Eigen::DenseBase<Derived> const&);

// Of a type that is derived from one of Eigen's, that one.
template <class T>
using eigen_dense = decltype(dense_of_eigen(std::declval<T const&>()));

}  // namespace detail

/// Everything dense of Eigen: a Matrix or an Array, a Map, a Ref or a Block of one, and what is
/// derived from those. What is a vector by its type has rank 1, all else rank 2; its rows are rows
/// of memory, so that it is Eigen::RowMajor.
template <class T>
requires requires {
  typename detail::eigen_dense<T>;
}
struct tensor_traits<T> {
  static auto view(auto& t) {
    using dense = detail::eigen_dense<T>;
    constexpr bool in_memory = (int{dense::Flags} & Eigen::DirectAccessBit) != 0;
    constexpr bool in_rows = dense::IsVectorAtCompileTime || dense::IsRowMajor;
    static_assert(in_memory,
                  "expar: an expression of Eigen is no tensor before it is computed; pass its "
                  ".eval(), or a matrix that it is assigned to");
    static_assert(in_rows,
                  "expar: this matrix of Eigen lies in memory column by column, and tensors row by "
                  "row; give its type Eigen::RowMajor");
    if constexpr (in_memory && in_rows) {
      using pointer = decltype(t.data());
      using element = std::remove_pointer_t<pointer>;
      if constexpr (dense::IsVectorAtCompileTime)
        return tensor_view<element, 1>{t.data(), {t.size()}, {t.innerStride()}};
      else
        return tensor_view<element, 2>{
            t.data(), {t.rows(), t.cols()}, {t.outerStride(), t.innerStride()}};
    }
  }
};

namespace eigen {

/// `map(view)`: the rows of a view, such as batch.rows() and batch.slot_rows(l), as a matrix of
/// Eigen that refers to them. They are contiguous, as all rows of the library are.
template <class T>
auto map(tensor_view<T, 2> const& rows) {
  using matrix =
      Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using mapped = std::conditional_t<std::is_const_v<T>, matrix const, matrix>;
  return Eigen::Map<mapped, Eigen::Unaligned, Eigen::OuterStride<>>(
      rows.data, rows.extents[0], rows.extents[1], Eigen::OuterStride<>(rows.strides[0]));
}

}  // namespace eigen
}  // namespace expar::inline v0

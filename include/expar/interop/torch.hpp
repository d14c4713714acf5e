// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<ATen/core/Tensor.h>)
#error \
    "expar/interop/torch.hpp needs libtorch: find_package(Torch), and link what TORCH_LIBRARIES names"
#endif
#include <ATen/core/Tensor.h>

#include <type_traits>

#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

template <>
struct element_traits<c10::Half> : traits_of_same_bits<c10::Half, half> {};
template <>
struct element_traits<c10::BFloat16> : traits_of_same_bits<c10::BFloat16, bfloat16> {};

namespace torch {

/// What libtorch calls the type T. The 16-bit floats of the library are those of libtorch.
template <class T>
inline constexpr at::ScalarType dtype = c10::CppTypeToScalarType<T>::value;
template <>
inline constexpr at::ScalarType dtype<half> = at::kHalf;
template <>
inline constexpr at::ScalarType dtype<bfloat16> = at::kBFloat16;

/// `view<T, Rank>(tensor)`: a tensor of libtorch as one whose type says what it is, to be passed
/// where operations take tensors; T may be const. Copies nothing: the tensor outlives the view.
/// Throws unless its dtype is that of T, it lies in memory of the CPU, has Rank dimensions and is
/// contiguous in the last of two.
template <class T, int Rank>
tensor_view<T, Rank> view(at::Tensor const& t) {
  constexpr at::ScalarType wanted = dtype<std::remove_const_t<T>>;
  expar::detail::expects(t.defined(), "torch::view: the tensor is undefined");
  expar::detail::expects(t.scalar_type() == wanted, "torch::view: the tensor has dtype ",
                         c10::toString(t.scalar_type()), "; asked for is ", c10::toString(wanted));
  expar::detail::expects(t.layout() == at::kStrided, "torch::view: the tensor is not dense");
  expar::detail::expects(!t.is_neg(),
                         "torch::view: the tensor is the negative of what lies in memory; pass its "
                         ".resolve_neg()");
  expar::detail::expects(t.is_cpu(), "torch::view: the tensor lives on ", t.device().str(),
                         "; here the CPU works");
  expar::detail::expects(t.dim() == Rank, "torch::view: the tensor has ", t.dim(),
                         " dimensions, not ", Rank);
  tensor_view<T, Rank> v{static_cast<T*>(t.data_ptr())};
  for (int i = 0; i < Rank; ++i) v.extents[i] = t.size(i), v.strides[i] = t.stride(i);
  expar::detail::expects(
      Rank == 1 || t.size(Rank - 1) <= 1 || t.stride(Rank - 1) == 1,
      "torch::view: the tensor has stride ", t.stride(Rank - 1),
      " in its last dimension; it must be contiguous there: pass its .contiguous()");
  return v;
}

}  // namespace torch

/// Says what to pass in place of it.
template <>
struct tensor_traits<at::Tensor> {
  static auto view(auto& t) {
    static_assert(sizeof(t) == 0,
                  "expar: an at::Tensor does not say by its type what its elements are; pass "
                  "expar::torch::view<T, Rank>(tensor)");
  }
};

}  // namespace expar::inline v0

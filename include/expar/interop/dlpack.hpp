// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<dlpack/dlpack.h>)
#error "expar/interop/dlpack.hpp needs dlpack/dlpack.h, which is in no include path"
#endif
#include <dlpack/dlpack.h>

#include <concepts>
#include <cstdint>
#include <type_traits>

#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace dlpack {

/// What DLPack calls the type T: specialize it for an element type of yours.
template <class T>
inline constexpr DLDataType type{};
template <std::signed_integral T>
inline constexpr DLDataType type<T>{kDLInt, 8 * sizeof(T), 1};
template <std::unsigned_integral T>
inline constexpr DLDataType type<T>{kDLUInt, 8 * sizeof(T), 1};
template <std::floating_point T>
inline constexpr DLDataType type<T>{kDLFloat, 8 * sizeof(T), 1};
template <>
inline constexpr DLDataType type<half>{kDLFloat, 16, 1};
template <>
inline constexpr DLDataType type<bfloat16>{kDLBfloat, 16, 1};

/// `view<T, Rank>(dl)`, `view<T, Rank, memory_space::device>(dl)`: the tensor that a DLTensor or a
/// DLManagedTensor describes, to be passed where operations take tensors. Copies nothing and owns
/// nothing: whoever has the DLManagedTensor calls its deleter. Throws unless the elements are of
/// type T (or T is const, and they are of that type), there are Rank dimensions, and the memory is
/// that of the space: kDLCPU on the host, kDLCUDA on a device; kDLCUDAHost and kDLCUDAManaged are
/// both.
template <class T, int Rank, memory_space Space = memory_space::host>
struct view : tensor_view<T, Rank> {
  static_assert(Space == memory_space::host || Space == memory_space::device,
                "expar: a DLTensor is viewed on the host or on a device");
  static_assert(type<std::remove_const_t<T>>.bits != 0,
                "expar: DLPack has no name for this element type; specialize expar::dlpack::type");

  explicit view(DLTensor const& t) {
    constexpr DLDataType wanted = type<std::remove_const_t<T>>;
    auto const kind = t.device.device_type;
    expar::detail::expects(
        t.dtype.code == wanted.code && t.dtype.bits == wanted.bits && t.dtype.lanes == wanted.lanes,
        "dlpack::view: the tensor has a type of code ", t.dtype.code, ", ", t.dtype.bits,
        " bits and ", t.dtype.lanes, " lanes; asked for are code ", wanted.code, ", ", wanted.bits,
        " bits and ", wanted.lanes, " lanes");
    expar::detail::expects(kind == (Space == memory_space::host ? kDLCPU : kDLCUDA) ||
                               kind == kDLCUDAHost || kind == kDLCUDAManaged,
                           "dlpack::view: the tensor is on a device of type ",
                           static_cast<int>(kind), ", whose memory is not that of the ",
                           Space == memory_space::host ? "host" : "device");
    expar::detail::expects(t.ndim == Rank, "dlpack::view: the tensor has ", t.ndim,
                           " dimensions, not ", Rank);
    if (t.data != nullptr)
      this->data = reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
    index_t packed = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      this->extents[i] = t.shape[i];
      this->strides[i] = t.strides != nullptr ? t.strides[i] : packed;
      static_cast<void>(__builtin_mul_overflow(packed, t.shape[i], &packed));  // refused later
    }
  }
  explicit view(DLManagedTensor const& t) : view(t.dl_tensor) {}
};

}  // namespace dlpack

template <class T, int Rank, memory_space Space>
struct tensor_traits<dlpack::view<T, Rank, Space>> {
  static constexpr memory_space space = Space;
  EXPAR_HD static constexpr tensor_view<T, Rank> view(dlpack::view<T, Rank, Space> const& v) {
    return v;
  }
};

}  // namespace expar::inline v0

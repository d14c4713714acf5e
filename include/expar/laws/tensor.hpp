// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class Tensor, class T, int Rank>
inline constexpr bool has_const_view = false;
template <class Tensor, class T, int Rank>
requires tensor<Tensor const, Rank>
inline constexpr bool has_const_view<Tensor, T, Rank> =
    std::is_same_v<element_of<decltype(tensor_traits<std::remove_const_t<Tensor>>::view(
                       std::declval<Tensor const&>()))>,
                   T>;

template <class T, int Rank>
bool same_place(tensor_view<T const, Rank> const& a, tensor_view<T const, Rank> const& b) {
  for (int i = 0; i < Rank; ++i)
    if (a.extents[i] != b.extents[i] || a.strides[i] != b.strides[i]) return false;
  return a.data == b.data;
}

template <std::size_t Rank>
std::vector<std::array<index_t, Rank>> all_indices(index_t const (&extents)[Rank]) {
  std::vector<std::array<index_t, Rank>> all;
  for (index_t extent : extents)
    if (extent == 0) return all;
  std::array<index_t, Rank> at{};
  for (std::size_t i = Rank; i != 0;) {
    all.push_back(at);
    for (i = Rank; i != 0 && ++at[i - 1] == extents[i - 1]; --i) at[i - 1] = 0;
  }
  return all;
}

/// Where a view says that an element is: any address, if the view is wrong.
template <class T, int Rank>
T* address(tensor_view<T, Rank> const& v, std::array<index_t, std::size_t{Rank}> const& at) {
  auto where = reinterpret_cast<std::uintptr_t>(v.data);
  for (std::size_t i = 0; i < at.size(); ++i)
    where +=
        static_cast<std::uintptr_t>(at[i]) * static_cast<std::uintptr_t>(v.strides[i]) * sizeof(T);
  return reinterpret_cast<T*>(where);
}

/// The laws that a tensor breaks by what its view says; no element is touched.
template <int Rank, class Tensor>
char const* broken_by_view(Tensor& t) {
  using traits = tensor_traits<std::remove_const_t<Tensor>>;
  static_assert(tensor<Tensor, Rank>,
                "expar: this type is not a tensor of this rank; specialize expar::tensor_traits");
  static_assert(
      space_of<std::remove_const_t<Tensor>>() != memory_space::device,
      "expar: the laws read and write the elements, so the tensor must live in host memory");
  auto const view = traits::view(t);
  using element = element_of<std::remove_const_t<decltype(view)>>;

  if (!same_place<element, Rank>(view, traits::view(t)))
    return "steady: two views of one tensor show the same data, extents and strides";
  if constexpr (!has_const_view<Tensor, element, Rank>)
    return "const: a const tensor has a view, of the same elements";
  else if (!same_place<element, Rank>(view, traits::view(std::as_const(t))))
    return "const: the view of a const tensor shows the same data, extents and strides";
  index_t size = 1;
  for (index_t extent : view.extents) {
    if (extent < 0) return "extents: no extent is negative";
    if (extent != 0 && __builtin_mul_overflow(size, extent, &size))
      return "extents: an index can count the elements";
  }
  if (view.size() == 0) return nullptr;
  if (view.data == nullptr) return "data: a tensor with elements has an address";
  if (Rank > 1 && view.extents[Rank - 1] > 1 && view.strides[Rank - 1] != 1)
    return "contiguous: in the last dimension neighbours are 1 element apart";
  return nullptr;
}

/// The laws that a tensor breaks when its elements are written, all at once.
template <class Tensor, class T, int Rank>
char const* broken_by_writing(Tensor& t, tensor_view<T, Rank> const& view) {
  using traits = tensor_traits<std::remove_const_t<Tensor>>;
  if constexpr (!std::is_const_v<T> && has_const_view<Tensor, T, Rank>) {
    using bytes = std::array<unsigned char, sizeof(T)>;
    struct element {
      void* place;
      bytes before, painted{};
    };
    std::vector<element> elements;
    for (auto const& at : all_indices(view.extents)) {
      element e{address(view, at), {}};
      std::memcpy(e.before.data(), e.place, sizeof(T));
      auto const hash = (elements.size() + 1) * std::uint64_t{0x9e3779b97f4a7c15};
      for (std::size_t k = 0; k < sizeof(T); ++k)  // bytes that need not be a value of the type
        e.painted[k] = static_cast<unsigned char>(hash >> (56 - k % 8 * 8));
      elements.push_back(e);
    }
    auto const painted = [&] {
      for (element const& e : elements)
        if (std::memcmp(e.place, e.painted.data(), sizeof(T)) != 0) return false;
      return true;
    };
    for (element const& e : elements) std::memcpy(e.place, e.painted.data(), sizeof(T));
    bool const distinct = painted();
    bool const stored = same_place<T, Rank>(view, traits::view(t)) && painted() &&
                        same_place<T, Rank>(view, traits::view(std::as_const(t))) && painted();
    for (element const& e : elements) std::memcpy(e.place, e.before.data(), sizeof(T));
    if (!distinct) return "distinct: every index has an element of its own";
    if (!stored) return "storage: what is written through one view is read through the next";
  }
  return nullptr;
}

}  // namespace detail

/// `broken_tensor_law<Rank>(t)`: empty if `t` keeps the laws of a tensor of rank `Rank`, else the
/// law that it breaks:
///   steady      two views of one tensor show the same data, extents and strides
///   const       the view of a const tensor shows what the view of the tensor shows
///   extents     no extent is negative, and an index can count the elements
///   data        a tensor with elements has an address
///   contiguous  in the last dimension neighbours are 1 element apart            (from rank 2 on)
///   distinct    every index has an element of its own          (where the elements are not const)
///   storage     what is written through one view is read through the next          (likewise)
/// It believes the view: one that shows too much, or elements in another order, needs the other
/// form. The elements are as before when it returns. For tensors in host memory.
template <int Rank, class Tensor>
std::string broken_tensor_law(Tensor& t) {
  char const* law = detail::broken_by_view<Rank>(t);
  if (law == nullptr)
    law = detail::broken_by_writing(t, tensor_traits<std::remove_const_t<Tensor>>::view(t));
  return law == nullptr ? "" : law;
}

/// `broken_tensor_law<Rank>(t, {rows, columns}, [&](int i, int j) -> auto& { return t(i, j); })`:
/// the same with your own extents and your own access to the elements as the reference. Two more
/// laws hold before an element is written:
///   extents     the view has these extents
///   elements    the view's element at each index is the one that `at` gives there a reference to
/// No element is read before their addresses are found right: a wrong view is named whatever memory
/// it points to.
template <int Rank, class Tensor, class At>
std::string broken_tensor_law(Tensor& t, index_t const (&extents)[std::size_t{Rank}], At&& at) {
  if (char const* const law = detail::broken_by_view<Rank>(t)) return law;
  auto const view = tensor_traits<std::remove_const_t<Tensor>>::view(t);
  for (int i = 0; i < Rank; ++i)
    if (view.extents[i] != extents[i])
      return "extents: extent " + std::to_string(i) + " of the view is " +
             std::to_string(view.extents[i]) + ", but " + std::to_string(extents[i]) +
             " of the tensor";
  for (auto const& index : detail::all_indices(extents)) {
    static_assert(std::is_lvalue_reference_v<decltype(std::apply(at, index))>,
                  "expar: your access gives references; of values a wrong view may read elsewhere");
    void const* const theirs = std::addressof(std::apply(at, index));
    if (static_cast<void const*>(detail::address(view, index)) != theirs) {
      std::string text;
      for (index_t i : index) text += (text.empty() ? "(" : ", ") + std::to_string(i);
      return "elements: view" + text + ") is another element than at" + text + ")";
    }
  }
  char const* const law = detail::broken_by_writing(t, view);
  return law == nullptr ? "" : law;
}

}  // namespace expar::inline v0

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// Expert ids of a caller's signed integer type, as the 32-bit numbers that all operations work on:
/// the caller's own memory, or a copy from the context.
template <class Id, int Rank>
class read_ids : public tensor_view<std::int32_t const, Rank> {
 public:
  read_ids(host_context const& ctx, char const* operation, char const* name,
           tensor_view<Id const, Rank> const& from)
      : copy_(ctx.memory()) {
    for (int i = 0; i < Rank; ++i) this->extents[i] = from.extents[i];
    index_t const columns = from.extents[Rank - 1], rows = Rank == 2 ? from.extents[0] : 1;
    this->strides[Rank - 1] = 1;
    if constexpr (Rank == 2) this->strides[0] = columns;
    this->data = copy_.resize(from.size());
    for (index_t t = 0; t < rows; ++t)
      for (index_t j = 0; j < columns; ++j) {
        Id const id = from.data[(Rank == 2 ? t * from.strides[0] : 0) + j * from.strides[Rank - 1]];
        expects(static_cast<std::int32_t>(id) == id, operation, ": ", name, "(", t, ", ", j,
                ") is ", id, "; an expert id is -1 (no expert) or 0 to ", INT32_MAX - 1);
        copy_[t * columns + j] = static_cast<std::int32_t>(id);
      }
  }

 private:
  buffer<std::int32_t> copy_;
};

/// The same for ids that are written: they reach the caller's memory by store().
template <class Id, int Rank>
class written_ids : public tensor_view<std::int32_t, Rank> {
 public:
  written_ids(host_context const& ctx, char const* operation, char const* name,
              tensor_view<Id, Rank> const& to, index_t experts)
      : to_(to), copy_(ctx.memory()) {
    expects(static_cast<Id>(experts - 1) == experts - 1, operation, ": ", name, " of ",
            8 * sizeof(Id), " bits cannot name ", experts, " experts");
    for (int i = 0; i < Rank; ++i) this->extents[i] = to.extents[i];
    this->strides[Rank - 1] = 1;
    if constexpr (Rank == 2) this->strides[0] = to.extents[1];
    this->data = copy_.resize(to.size());
  }
  /// For ids that are read before they are written; what has no 32 bits becomes no expert's id.
  void load() {
    index_t const columns = to_.extents[Rank - 1], rows = Rank == 2 ? to_.extents[0] : 1;
    for (index_t t = 0; t < rows; ++t)
      for (index_t j = 0; j < columns; ++j) {
        Id const id = to_.data[(Rank == 2 ? t * to_.strides[0] : 0) + j * to_.strides[Rank - 1]];
        bool const fits = static_cast<std::int32_t>(id) == id;
        copy_[t * columns + j] = fits ? static_cast<std::int32_t>(id) : INT32_MAX;
      }
  }
  void store() const {
    index_t const columns = to_.extents[Rank - 1], rows = Rank == 2 ? to_.extents[0] : 1;
    for (index_t t = 0; t < rows; ++t)
      for (index_t j = 0; j < columns; ++j)
        to_.data[(Rank == 2 ? t * to_.strides[0] : 0) + j * to_.strides[Rank - 1]] =
            static_cast<Id>(copy_[t * columns + j]);
  }

 private:
  tensor_view<Id, Rank> to_;
  buffer<std::int32_t> copy_;
};
template <int Rank>
class written_ids<std::int32_t, Rank> : public tensor_view<std::int32_t, Rank> {
 public:
  explicit written_ids(tensor_view<std::int32_t, Rank> const& to)
      : tensor_view<std::int32_t, Rank>(to) {}
  void load() {}
  void store() const {}
};

}  // namespace expar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// Calls f(the caller's number, ours, token, choice) for every id.
template <class View, class F>
void for_each_id(View const& theirs, std::int32_t* ours, F f) {
  constexpr bool matrix = sizeof(theirs.extents) == 2 * sizeof(index_t);
  index_t const rows = matrix ? theirs.extents[0] : 1, columns = theirs.extents[matrix];
  index_t const pitch = matrix ? theirs.strides[0] : 0, step = theirs.strides[matrix];
  for (index_t t = 0; t < rows; ++t)
    for (index_t j = 0; j < columns; ++j)
      f(theirs.data[t * pitch + j * step], ours[t * columns + j], t, j);
}
/// A packed copy of the shape of a view.
template <class T, int Rank, class U>
tensor_view<T, Rank> packed_like(tensor_view<U, Rank> const& v, T* data) {
  if constexpr (Rank == 2)
    return make_view(data, v.extents[0], v.extents[1]);
  else
    return make_view(data, v.extents[0]);
}

/// Expert ids of a caller's signed integer type, as the 32-bit numbers that all operations work on,
/// in memory from the context.
template <class Id, int Rank>
class read_ids : public tensor_view<std::int32_t const, Rank> {
 public:
  read_ids(host_context const& ctx, char const* operation, char const* name,
           tensor_view<Id const, Rank> const& from)
      : copy_(ctx.memory()) {
    std::int32_t* const to = copy_.resize(from.size());
    for_each_id(from, to, [&](Id id, std::int32_t& mine, index_t t, index_t j) {
      mine = static_cast<std::int32_t>(id);
      expects(mine == id, operation, ": ", name, "(", t, ", ", j, ") is ", id,
              "; an expert id is -1 (no expert) or 0 to ", INT32_MAX - 1);
    });
    tensor_view<std::int32_t const, Rank>::operator=(packed_like<std::int32_t const>(from, to));
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
    tensor_view<std::int32_t, Rank>::operator=(packed_like(to, copy_.resize(to.size())));
  }
  /// For ids that are read before they are written; what has no 32 bits becomes no expert's id.
  void load() {
    for_each_id(to_, copy_.data(), [](Id id, std::int32_t& mine, index_t, index_t) {
      mine = static_cast<std::int32_t>(id);
      if (mine != id) mine = INT32_MAX;
    });
  }
  void store() const {
    for_each_id(to_, this->data,
                [](Id& id, std::int32_t mine, index_t, index_t) { id = static_cast<Id>(mine); });
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

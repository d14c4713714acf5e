// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/exchange/batch_state.hpp>
#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0::detail {

/// Gradients of route weights while they are made: a number for every route to a slot, of which the
/// gradient of a weight is the sum over its shards.
class weight_gradients {
 public:
  explicit weight_gradients(std::pmr::memory_resource* memory) : of_slots_(memory) {}

  template <class A>
  void reserve(batch_state const& b) {
    of_slots_.resize(size_product(b.plan.tokens() * b.routes().top_k, sizeof(A)));
  }
  /// [tokens, top_k * shards].
  template <class A>
  A* of_slots() {
    return reinterpret_cast<A*>(of_slots_.data());
  }
  template <class A, class D, bool Adds>
  void put(batch_state const& b, gradient_view<D, 2, Adds> const& to) {
    A const* from = of_slots<A>();
    for (index_t t = 0; t < b.plan.tokens(); ++t)
      for (int j = 0; j < b.plan.top_k(); ++j) {
        A sum = *from++;
        for (int i = 1; i < b.at.place.shards(); ++i) sum += *from++;
        put_gradient<Adds>(to.row(t)[j], static_cast<accumulator_t<D>>(sum));
      }
  }

 private:
  buffer<std::byte> of_slots_;
};

}  // namespace expar::inline v0::detail

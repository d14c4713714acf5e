// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/weight_gradients.hpp>

#include <cstdint>
#include <vector>

#include <expar/add_to.hpp>

#include "../support/catch.hpp"

using expar::index_t;
using expar::make_view;
using expar::placement;

namespace {

expar::host_context const ctx;

/// The gradients that put() makes of the numbers 1, 2, 3 .. of the routes to slots.
template <class A, class D>
std::vector<D> gradients(index_t tokens, index_t k, placement const& place, bool adds) {
  std::vector<std::int32_t> const ids(static_cast<std::size_t>(tokens * k), 1);
  auto* const memory = std::pmr::get_default_resource();
  expar::detail::batch_state b(memory);
  b.plan.place(ctx, make_view(ids.data(), tokens, k), place.experts(),
               expar::route_plan::order::token_major);
  b.at.begin(place, 0, {});
  b.reserve_routes();
  expar::detail::weight_gradients of(memory);
  of.reserve<A>(b);
  for (index_t i = 0; i < tokens * k * place.shards(); ++i)
    of.of_slots<A>()[i] = static_cast<A>(i + 1);
  std::vector<D> made(ids.size(), D(1000));
  auto const out = make_view(made.data(), tokens, k);
  auto added = expar::add_to(out);
  if (adds)
    of.put<A>(b, expar::detail::gradient_output<2>(ctx, added));
  else
    of.put<A>(b, expar::detail::gradient_output<2>(ctx, out));
  return made;
}

}  // namespace

TEST_CASE("the gradient of a weight is that of its route, or the sum over its shards") {
  CHECK(gradients<float, float>(2, 2, placement::blocks(3, 1), false) ==
        std::vector<float>{1, 2, 3, 4});
  CHECK(gradients<float, float>(2, 2, placement::replicated(3, 1, 2), false) ==
        std::vector<float>{1, 2, 3, 4});
  CHECK(gradients<float, float>(1, 2, placement::sharded(3, 1, 3), false) ==
        std::vector<float>{1 + 2 + 3, 4 + 5 + 6});
  CHECK(gradients<double, double>(0, 2, placement::blocks(3, 1), false).empty());
}

TEST_CASE("the gradient of a weight is added where the caller asks for that") {
  CHECK(gradients<double, double>(1, 2, placement::sharded(3, 1, 2), true) ==
        std::vector<double>{1003, 1007});
  CHECK(gradients<float, double>(1, 2, placement::blocks(3, 1), true) ==
        std::vector<double>{1001, 1002});
}

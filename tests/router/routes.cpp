// SPDX-License-Identifier: Apache-2.0
#include <expar/router/routes.hpp>

#include <utility>

#include "../support/catch.hpp"
#include "support.hpp"

namespace {

struct own_routes {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<expar::half, 2> weights;
  int more;
};
struct half_of_routes {
  expar::tensor_view<std::int32_t, 2> ids;
};
struct flat_routes {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

}  // namespace

TEST_CASE("routes begin without experts", "[router]") {
  expar::routes r(3, 2);
  STATIC_REQUIRE(std::is_same_v<decltype(r), expar::routes<float>>);
  REQUIRE(r.ids.extents[0] == 3);
  REQUIRE(r.ids.extents[1] == 2);
  REQUIRE(r.weights.extents[0] == 3);
  REQUIRE(r.weights.extents[1] == 2);
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 2; ++j) {
      REQUIRE(r.ids(t, j) == -1);
      REQUIRE(r.weights(t, j) == 0);
    }
}

TEST_CASE("routes move with their memory", "[router]") {
  expar::routes<double> a(2, 2);
  a.ids(1, 0) = 5;
  expar::routes<double> b = std::move(a);
  REQUIRE(b.ids(1, 0) == 5);
  REQUIRE(a.ids.data == nullptr);
  REQUIRE(a.ids.size() == 0);
  expar::routes<double> c;
  REQUIRE(c.weights.size() == 0);
  c = std::move(b);
  REQUIRE(c.ids(1, 0) == 5);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<expar::routes<double>>);
}

TEST_CASE("resizing routes keeps the memory that is large enough", "[router]") {
  expar::routes<expar::bfloat16> r(10, 4);
  r.ids(3, 3) = 1;
  auto const* const before = r.ids.data;
  r.resize(8, 5);
  REQUIRE(r.ids.data == before);
  REQUIRE(r.ids.extents[0] == 8);
  REQUIRE(r.weights.extents[1] == 5);
  for (int t = 0; t < 8; ++t)
    for (int j = 0; j < 5; ++j) REQUIRE(r.ids(t, j) == -1);
  r.resize(0, 5);
  REQUIRE(r.ids.size() == 0);
}

TEST_CASE("anything with the tensors ids and weights is routes", "[router]") {
  STATIC_REQUIRE(expar::routes_like<expar::routes<float>>);
  STATIC_REQUIRE(expar::routes_like<expar::routes<float> const&>);
  STATIC_REQUIRE(expar::routes_like<expar::routes_view<expar::half>>);
  STATIC_REQUIRE(expar::routes_like<own_routes>);
  STATIC_REQUIRE_FALSE(expar::routes_like<half_of_routes>);
  STATIC_REQUIRE_FALSE(expar::routes_like<flat_routes>);
  STATIC_REQUIRE_FALSE(expar::routes_like<int>);
  expar::routes r(3, 2);
  expar::routes_view v{r.ids, r.weights};
  STATIC_REQUIRE(std::is_same_v<decltype(v), expar::routes_view<float>>);
  STATIC_REQUIRE(std::is_trivially_copyable_v<decltype(v)>);
}

TEST_CASE("routes refuse extents below 0", "[router]") {
  REQUIRE(router_test::sentence_of([] { expar::routes<>(-1, 2); }) ==
          "expar: routes: tokens is -1; it is at least 0");
  REQUIRE(router_test::sentence_of([] { expar::routes<>(1, -2); }) ==
          "expar: routes: top_k is -2; it is at least 0");
  REQUIRE(router_test::sentence_of([] { expar::routes<>(expar::index_t{1} << 62, 4); }) ==
          "expar: routes: 4611686018427387904 tokens of 4 choices are more than memory can hold");
  REQUIRE_THROWS_AS(expar::routes<>(expar::index_t{1} << 62, 1), std::bad_alloc);
}

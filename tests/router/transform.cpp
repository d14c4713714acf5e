// SPDX-License-Identifier: Apache-2.0
#include <expar/router/transform.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;

namespace {

template <class Transform>
void compare_slope(Transform const& t) {
  STATIC_REQUIRE(expar::transform_policy<Transform>);
  for (double z = -90; z < 90; z += 7.3)
    REQUIRE_THAT(t.slope(z, 1), WithinAbs((t.of(z + 1e-5, 1) - t.of(z - 1e-5, 1)) / 2e-5, 1e-8));
}

}  // namespace

TEST_CASE("transforms follow their formulas", "[router]") {
  expar::soft_cap const cap{30};
  REQUIRE_THAT(cap.of(20., 0), WithinAbs(17.483488360437306, 1e-13));
  REQUIRE_THAT(cap.of(-10., 0), WithinAbs(-9.64538212594903, 1e-13));
  REQUIRE(cap.of(1e20f, 0) == 30);
  REQUIRE(cap.of(1e-3f, 0) > 0);
  REQUIRE(expar::temperature{4}.of(2., 0) == .5);
  std::vector<float> const noise{1, 2, 3, 4, 5, 6};
  expar::add_rows const add{expar::make_view(noise.data(), 2, 3)};
  REQUIRE(add.at(1).of(.5, 2) == 6.5);
  expar::add_rows const bias{expar::make_view(noise.data(), 1, 6)};
  for (int t : {0, 1, 7}) REQUIRE(bias.at(t).of(.5, 4) == 5.5);
  expar::soft_cap const none{0};
  for (double z : {-1e300, -2.5, 0., 7., router_test::inf}) REQUIRE(none.of(z, 0) == z);
  compare_slope(cap);
  compare_slope(none);
  compare_slope(expar::temperature{.25});
  compare_slope(add.at(0));
}

TEST_CASE("experts of a range, and of the token's class", "[router]") {
  expar::expert_range const range{2, 4};
  for (int e = 0; e < 6; ++e)
    REQUIRE(range.of(1.5, e) == (e == 2 || e == 3 ? 1.5 : -router_test::inf));
  std::vector<std::int32_t> const classes{1, 0, 2}, bounds{0, 2, 5}, falling{0, 6, 5};
  expar::experts_of_class const by{expar::make_view(classes.data(), 3),
                                   expar::make_view(bounds.data(), 3)};
  REQUIRE(by.at(0).first == 2);
  REQUIRE(by.at(0).last == 5);
  REQUIRE(by.at(1).last == 2);
  std::vector<std::int32_t> const any{-1, 1};
  expar::experts_of_class const all{expar::make_view(any.data(), 2), by.bounds};
  for (int e = 0; e < 6; ++e) REQUIRE(all.at(0).of(1.5, e) == 1.5);
  REQUIRE(all.at(1).of(1.5, 0) == -router_test::inf);
  all.validate_entries("route", 6, 1, 2);
  using router_test::sentence_of;
  expar::detail::argument_table a("route");
  REQUIRE(sentence_of([&] { by.validate(a, 5, 1, 2); }) ==
          "expar: route: classes has extent 3 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] { by.validate_entries("route", 5, 1, 3); }) ==
          "expar: route: classes(2) is 2; a class is -1 (all experts) or 0 to 1");
  REQUIRE(sentence_of([&] { by.validate_entries("route", 4, 1, 3); }) ==
          "expar: route: bounds(2) of classes is 5; bounds ascend from 0 to 4");
  expar::experts_of_class const wrong{by.classes, expar::make_view(falling.data(), 3)};
  REQUIRE(sentence_of([&] { wrong.validate_entries("route", 8, 1, 3); }) ==
          "expar: route: bounds(2) of classes is 5; bounds ascend from 0 to 8");
}

TEST_CASE("values of transforms are checked", "[router]") {
  using router_test::sentence_of;
  auto const sentence = [](auto const& step) {
    expar::detail::argument_table a("route");
    return sentence_of([&] { step.validate(a, 8, 2, 1); });
  };
  REQUIRE(sentence(expar::soft_cap{-1}) ==
          "expar: route: cap is -1; it is at least 0 (no cap) and finite");
  REQUIRE(sentence(expar::soft_cap{0}) == "nothing was thrown");
  REQUIRE(sentence(expar::soft_cap{router_test::qnan}).find("expar: route: cap is ") == 0);
  REQUIRE(sentence(expar::temperature{0}) ==
          "expar: route: temperature is 0; it is above 0 and finite");
  REQUIRE(sentence(expar::temperature{router_test::inf}) ==
          "expar: route: temperature is inf; it is above 0 and finite");
  REQUIRE(sentence(expar::expert_range{3, 9}) ==
          "expar: route: experts 3 to 9 are no range of the 8 experts");
  std::vector<float> const numbers(8);
  expar::tensor_view<float const, 2> const columns{numbers.data(), {1, 8}, {1, 2}};
  REQUIRE(sentence(expar::add_rows<float>{columns}).find("expar: route: addend ") == 0);
  REQUIRE(sentence(expar::add_rows<float>{expar::make_view(numbers.data(), 2, 4)}) ==
          "expar: route: addend has extent 2 in dimension 0, but the number of tokens is 1");
}

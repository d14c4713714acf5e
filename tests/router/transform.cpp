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
  compare_slope(cap);
  compare_slope(expar::temperature{.25});
  compare_slope(add.at(0));
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/extremes.hpp>

#include <cstring>
#include <limits>

#include "../../support/catch.hpp"

namespace {

/// As the comparisons say, of -0 and of what is no number too.
template <class T, int Bytes>
void require_compared() {
  typedef T V __attribute__((vector_size(Bytes)));
  constexpr T inf = std::numeric_limits<T>::infinity();
  T const numbers[] = {0,
                       -T(0),
                       1,
                       -2,
                       inf,
                       -inf,
                       std::numeric_limits<T>::quiet_NaN(),
                       std::numeric_limits<T>::denorm_min()};
  for (T a : numbers)
    for (T b : numbers) {
      V const x = a - V{}, y = b - V{};
      V const larger = expar::detail::larger_lanes(x, y),
              smaller = expar::detail::smaller_lanes(x, y);
      V const more = x > y ? x : y, less = x < y ? x : y;
      CAPTURE(a, b);
      REQUIRE(std::memcmp(&larger, &more, sizeof(V)) == 0);
      REQUIRE(std::memcmp(&smaller, &less, sizeof(V)) == 0);
    }
}

}  // namespace

TEST_CASE("the larger and the smaller of lanes are what comparisons choose", "[router]") {
  require_compared<float, 16>();
  require_compared<double, 16>();
#ifdef __AVX__
  require_compared<float, 32>();
  require_compared<double, 32>();
#endif
#ifdef __AVX512F__
  require_compared<float, 64>();
  require_compared<double, 64>();
#endif
}

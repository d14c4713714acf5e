// SPDX-License-Identifier: Apache-2.0
#include <expar/version.hpp>

#include "support/catch.hpp"

TEST_CASE("version: three numbers that the preprocessor can compare") {
#if EXPAR_VERSION_MAJOR < 0 || EXPAR_VERSION_MINOR < 0 || EXPAR_VERSION_PATCH < 0
#error "a version number is at least 0"
#endif
  STATIC_REQUIRE(EXPAR_VERSION_MAJOR * 10000 + EXPAR_VERSION_MINOR * 100 + EXPAR_VERSION_PATCH > 0);
}

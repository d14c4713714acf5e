// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_parallel.hpp>

#include "../support/fixed16.hpp"
#include "../support/thread_ranks.hpp"

using namespace expar_test;

namespace {

using table =
    element_table<3, elements<double, double>, elements<expar::half, float, float, std::int64_t>,
                  elements<float>, elements<expar::bfloat16, expar::bfloat16, expar::half>,
                  elements<fixed16>>;

auto const with_windows = [](auto& comm, auto f) {
  expar::windows transport(comm);
  f(transport);
};

}  // namespace

TEST_CASE("windows: drawn problems against a float64 reference") {
  check_drawn_problems<table>({1, 2, 3, 4, 7}, {4, 5, 6}, with_windows);
}

TEST_CASE("windows: several batches are alive at once, and go backward in any order") {
  check_batches_alive<table>(with_windows);
}

TEST_CASE("windows: ranks that come late at random neither hurt nor are hurt") {
  check_late_ranks<table>(with_windows);
}

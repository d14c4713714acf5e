// SPDX-License-Identifier: Apache-2.0
#include <expar/executor.hpp>

#include <type_traits>
#include <vector>

#include "support/catch.hpp"

namespace {

struct in_place {
  int concurrency() const { return 1; }
  void run(int tasks, expar::task t) const {
    for (int i = 0; i < tasks; ++i) t(i);
  }
};
struct no_concurrency {
  void run(int, expar::task) {}
};
struct runs_one {
  int concurrency() { return 1; }
  void run(expar::task) {}
};

}  // namespace

TEST_CASE("executor: the concept") {
  STATIC_REQUIRE(expar::executor<in_place>);
  STATIC_REQUIRE(expar::executor<in_place const>);
  STATIC_REQUIRE_FALSE(expar::executor<no_concurrency>);
  STATIC_REQUIRE_FALSE(expar::executor<runs_one>);
  STATIC_REQUIRE_FALSE(expar::executor<int>);
}

TEST_CASE("executor: a task refers to the work") {
  STATIC_REQUIRE(std::is_trivially_copyable_v<expar::task>);
  std::vector<int> seen;
  auto work = [&](int i) { seen.push_back(i); };
  expar::task const t(work);
  CHECK(t);
  CHECK_FALSE(expar::task{});
  in_place{}.run(3, t);
  CHECK(seen == std::vector<int>{0, 1, 2});
}

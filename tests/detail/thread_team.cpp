// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/thread_team.hpp>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "../support/catch.hpp"
#include "../support/forked.hpp"

namespace {

using expar::task;
using expar::detail::thread_team;

}  // namespace

TEST_CASE("thread_team: it is an executor") {
  STATIC_REQUIRE(expar::executor<thread_team>);
  for (int threads : {1, 2, 5}) CHECK(thread_team(threads).concurrency() == threads);
}

TEST_CASE("thread_team: every task runs once") {
  int const threads = GENERATE(1, 2, 4);
  CAPTURE(threads);
  thread_team team(threads);
  for (int round = 0; round < 300; ++round) {
    int const tasks = round % 9;
    std::vector<std::atomic<int>> ran(static_cast<std::size_t>(tasks));
    auto work = [&](int i) { ++ran[static_cast<std::size_t>(i)]; };
    team.run(tasks, task(work));
    for (auto const& n : ran) REQUIRE(n == 1);
  }
}

TEST_CASE("thread_team: tasks that wait for each other run at once") {
  thread_team team(3);
  std::atomic<int> here{0};
  auto work = [&](int) {
    ++here;
    while (here < 3) std::this_thread::yield();
  };
  team.run(3, task(work));
  CHECK(here == 3);
}

TEST_CASE("thread_team: a busy team runs the tasks on the caller's thread") {
  thread_team team(2);
  std::atomic<int> inner{0}, elsewhere{0};
  auto outer = [&](int) {
    auto const me = std::this_thread::get_id();
    auto nested = [&](int) {
      ++inner;
      if (std::this_thread::get_id() != me) ++elsewhere;
    };
    for (int i = 0; i < 20; ++i) team.run(5, task(nested));
  };
  team.run(4, task(outer));
  CHECK(inner == 4 * 20 * 5);
  CHECK(elsewhere == 0);
}

TEST_CASE("thread_team: many callers") {
  thread_team team(3);
  std::atomic<long> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      auto work = [&](int i) { sum += i; };
      for (int i = 0; i < 200; ++i) team.run(10, task(work));
    });
  for (auto& caller : callers) caller.join();
  CHECK(sum == 4L * 200 * 45);
}

TEST_CASE("thread_team: it can end without having worked") {
  for (int i = 0; i < 50; ++i) thread_team(3);
  SUCCEED();
}

TEST_CASE("a team that is shared works until its last owner is gone") {
  std::atomic<int> done{0};
  auto body = [&](int) { ++done; };
  expar::detail::shared<expar::detail::thread_team> last;
  {
    expar::detail::shared const first(new expar::detail::thread_team(3));
    expar::detail::shared<expar::detail::thread_team> second = first;
    last = second;
    second = expar::detail::shared<expar::detail::thread_team>{};
    (*first).run(5, expar::task(body));
  }
  (*last).run(7, expar::task(body));
  CHECK(done == 12);
}

#ifdef EXPAR_TEST_FORK
TEST_CASE("a team that a forked child inherits ends there without its threads") {
  auto* const team = new thread_team(3);
  CHECK(expar_test::holds_in_child([&] {
    delete team;
    return true;
  }));
  delete team;
}
#endif

// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/detail/thread_group.hpp>

#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <expar/comm/thread.hpp>

#include "../../support/catch.hpp"
#include "../../support/forked.hpp"
#include "../random_rounds.hpp"
#include "../sentences.hpp"

using namespace expar_test;

namespace {

host_context const on;

/// The numbers that the ranks of `comm` bring, in the order of its ranks.
std::vector<int> gathered(thread_communicator const& comm, int mine) {
  std::vector<int> all(static_cast<std::size_t>(comm.size()));
  comm.all_gather(on, &mine, all.data(), sizeof mine);
  return all;
}

}  // namespace

TEST_CASE("thread_group: without a rank, the others are numbered in their order") {
  for (int lost = 0; lost < 4; ++lost) {
    std::vector<std::vector<int>> met(4);
    run_ranks(4, [&](thread_communicator& comm) {
      if (comm.rank() == lost) return;
      auto const rest = comm.without(lost);
      if (rest.rank() == comm.rank() - (comm.rank() > lost))
        met[static_cast<std::size_t>(comm.rank())] = gathered(rest, comm.rank());
    });
    std::vector<int> others{0, 1, 2, 3};
    others.erase(others.begin() + lost);
    for (int rank = 0; rank < 4; ++rank)
      CHECK(met[static_cast<std::size_t>(rank)] == (rank == lost ? std::vector<int>{} : others));
  }
}

TEST_CASE("thread_group: survivors go on without ranks that are lost one after the other") {
  std::vector<std::string> met(5);
  std::atomic<long> wrong{0};
  auto const body = [&](thread_communicator& all) {
    auto& mine = met[static_cast<std::size_t>(all.rank())];
    thread_communicator comm = all;
    for (;;) {
      for (int n : gathered(comm, all.rank())) mine += std::to_string(n);
      mine += ' ';
      auto const window = comm.allocate_window(64);
      if (comm.rank() == comm.size() / 2) return;
      try {
        for (;;) comm.exchange_phase(on);
      } catch (expar::lost_rank const& e) {
        comm = comm.without(e.rank());
      }
      wrong += expar_test::random_rounds(on, comm, 20, 7);
    }
  };
  run_ranks(5, body);
  CHECK(met == std::vector<std::string>{"01234 0134 014 04 0 ", "01234 0134 014 ", "01234 ",
                                        "01234 0134 ", "01234 0134 014 04 "});
  CHECK(wrong == 0);
}

TEST_CASE("thread_group: a group without a rank can be made before that is lost") {
  std::atomic<long> wrong{0};
  auto const said = sentences(3, [&](thread_communicator& comm) {
    if (comm.rank() == 1) {
      comm.barrier(on);
      comm.barrier(on);
      return;
    }
    auto const rest = comm.without(1);
    for (int i = 0; i < 2; ++i) {
      comm.barrier(on);
      wrong += expar_test::random_rounds(on, rest, 10, 5);
    }
    auto const first = sentence_of([&] { comm.barrier(on); });
    wrong += expar_test::random_rounds(on, rest, 10, 6);
    throw expar::error(first);
  });
  CHECK(said ==
        std::vector<std::string>{"lost 1: expar: barrier: rank 1 has left and will not come", "",
                                 "lost 1: expar: barrier: rank 1 has left and will not come"});
  CHECK(wrong == 0);
}

TEST_CASE("thread_group: a survivor that does not come is lost to the others in turn") {
  std::vector<std::vector<int>> met(4);
  std::atomic<int> done{0};
  auto const said = sentences(
      4,
      [&](thread_communicator& comm) {
        if (comm.rank() == 1) return;
        while (comm.rank() == 2 && done != 2) std::this_thread::sleep_for(1ms);
        if (comm.rank() == 2) return;
        auto const rest = comm.without(1);
        auto const first = sentence_of([&] { rest.barrier(on); });
        met[static_cast<std::size_t>(comm.rank())] = gathered(rest.without(1), comm.rank());
        ++done;
        throw expar::error(first);
      },
      600ms);
  std::string const late = "lost 1: expar: barrier: rank 1 did not come within 600 ms";
  CHECK(said == std::vector<std::string>{late, "", "", late});
  CHECK(met == std::vector<std::vector<int>>{{0, 3}, {}, {}, {0, 3}});
}

TEST_CASE("thread_group: a rank that has left is not waited for in any group") {
  // Two are lost at once; the deadline is a minute.
  auto const started = std::chrono::steady_clock::now();
  std::vector<std::vector<int>> met(4);
  auto const body = [&](thread_communicator& comm) {
    if (comm.rank() % 2 == 1) throw std::runtime_error("out of paper");
    for (auto group = comm;;) try {
        met[static_cast<std::size_t>(comm.rank())] = gathered(group, comm.rank());
        break;
      } catch (expar::lost_rank const& e) {
        group = group.without(e.rank());
      }
  };
  auto const said = sentence_of([&] { run_ranks(4, body); });
  CHECK(said == "out of paper");
  CHECK(met == std::vector<std::vector<int>>{{0, 2}, {}, {0, 2}, {}});
  CHECK(std::chrono::steady_clock::now() - started < 30s);
}

TEST_CASE("thread_group: ranks that ask for a group several times get one") {
  // Rank 0 asks before the others do, and more often.
  std::atomic<bool> asked{false};
  std::vector<std::vector<int>> met(4);
  run_ranks(4, [&](thread_communicator& comm) {
    if (comm.rank() == 3) return;
    while (comm.rank() != 0 && !asked) std::this_thread::yield();
    auto group = comm.without(3);
    if (comm.rank() == 0)
      for (int i = 0; i < 5; ++i) group = comm.without(3);
    asked = true;
    met[static_cast<std::size_t>(comm.rank())] = gathered(group, comm.rank());
  });
  CHECK(met == std::vector<std::vector<int>>{{0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {}});
}

TEST_CASE("thread_group: a rank that was given up is told so, and cannot go on without itself") {
  std::atomic<bool> given_up{false};
  auto const said = sentences(
      2,
      [&](thread_communicator& comm) {
        if (comm.rank() == 0) {
          auto const first = sentence_of([&] { comm.barrier(on); });
          comm.without(1).barrier(on);
          given_up = true;
          throw expar::error(first);
        }
        while (!given_up) std::this_thread::sleep_for(1ms);
        auto const first = sentence_of([&] { comm.barrier(on); });
        throw expar::error(first + ", " + sentence_of([&] { (void)comm.without(1); }));
      },
      100ms);
  std::string const late = "lost 1: expar: barrier: rank 1 did not come within 100 ms";
  CHECK(said == std::vector<std::string>{
                    late, late + ", expar: without: lost is 1, the rank that calls it"});
}

TEST_CASE("thread_group: only a rank of the group can be lost") {
  for (int lost : {-1, 2}) {
    auto const said = sentences(2, [lost](thread_communicator& comm) { (void)comm.without(lost); });
    for (auto const& s : said)
      CHECK(s == "expar: without: lost is " + std::to_string(lost) + "; it lies between 0 and 1");
  }
}

TEST_CASE("thread_group: a communicator may outlive run_ranks, and knows that nobody comes") {
  std::vector<thread_communicator> kept;
  run_ranks(3, [&](thread_communicator& comm) {
    if (comm.rank() != 0) return;
    kept = {comm, comm.without(1), comm.without(1).without(1)};
  });
  CHECK(sentence_of([&] { kept[0].barrier(on); }) ==
        "lost 1: expar: barrier: rank 1 has left and will not come");
  CHECK(sentence_of([&] { kept[1].barrier(on); }) ==
        "lost 1: expar: barrier: rank 1 has left and will not come");
  CHECK(gathered(kept[2], 7) == std::vector<int>{7});
}

TEST_CASE("run_ranks: what a lost rank throws is rethrown, whatever becomes of the others") {
  auto const run = [](bool throws) {
    int good[3] = {};
    auto const said = sentence_of([&] {
      run_ranks(3, [&](thread_communicator& comm) {
        comm.barrier(on);
        if (comm.rank() == 1 && throws) throw std::runtime_error("out of paper");
        if (comm.rank() == 1) return;
        if (sentence_of([&] { comm.barrier(on); }).empty()) return;
        good[comm.rank()] = gathered(comm.without(1), 1) == std::vector<int>{1, 1};
      });
    });
    CHECK(good[0] + good[2] == 2);
    return said;
  };
  CHECK(run(true) == "out of paper");
  CHECK(run(false) == "");
}

TEST_CASE("run_ranks: a deadline may be longer than a clock can tell") {
  run_ranks(
      2,
      [](thread_communicator& comm) {
        if (comm.rank() == 1) std::this_thread::sleep_for(20ms);
        comm.barrier(on);
      },
      std::chrono::milliseconds::max());
  SUCCEED();
}

#ifdef EXPAR_TEST_FORK
TEST_CASE("thread_group: a forked child waits for no rank longer than the deadline") {
  std::atomic<int> ended{0};
  run_ranks(
      2,
      [&](thread_communicator& comm) {
        auto window = comm.allocate_window(64);
        if (comm.rank() == 0)
          ended = expar_test::holds_in_child([&] {
            window = {};
            (void)comm.without(1);
            return sentence_of([&] { comm.barrier(on); }) ==
                   "lost 1: expar: barrier: rank 1 did not come within 1000 ms";
          })
                      ? 1
                      : 2;
        while (ended == 0) std::this_thread::sleep_for(1ms);
        comm.barrier(on);
      },
      1000ms);
  CHECK(ended == 1);
}

TEST_CASE("run_ranks: calls nothing where there are too few threads") {
  CHECK(expar_test::holds_in_child([] {
    expar_test::allow_no_threads();
    bool ran = false;
    auto const said = sentence_of([&] { run_ranks(1000, [&](auto&) { ran = true; }); });
    return !ran && said ==
                       "expar: run_ranks: ranks is 1000, more than can be had: Resource "
                       "temporarily unavailable";
  }));
}
#endif

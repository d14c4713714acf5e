// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/detail/thread_window.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <expar/comm/thread.hpp>

#include "../../support/catch.hpp"
#include "../sentences.hpp"

using namespace expar_test;

namespace {

host_context const on;

}  // namespace

TEST_CASE("thread_window: begins with zero, and every rank can write each other's") {
  std::atomic<int> wrong{0};
  run_ranks(4, [&](thread_communicator& comm) {
    auto window = comm.allocate_window(16 * sizeof(int));
    auto moved = std::move(window);
    auto const view = moved.view();
    auto* const mine = static_cast<int*>(view.peer(comm.rank(), 0));
    for (int i = 0; i < 16; ++i) wrong += mine[i] != 0;
    comm.exchange_phase(on);
    for (int round = 0; round < 50; ++round) {
      for (int p = 0; p < 4; ++p)
        *static_cast<int*>(view.peer(p, sizeof(int) * static_cast<std::size_t>(comm.rank()))) =
            round * 100 + comm.rank() * 10 + p;
      comm.exchange_phase(on);
      for (int s = 0; s < 4; ++s) wrong += mine[s] != round * 100 + s * 10 + comm.rank();
      comm.exchange_phase(on);
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("thread_window: may be empty, or moved from") {
  std::atomic<int> wrong{0};
  run_ranks(2, [&](thread_communicator& comm) {
    auto window = comm.allocate_window(0);
    wrong += window.size_bytes() != 0 || window.view().size() != 2;
    window = comm.allocate_window(24);
    wrong += window.size_bytes() != 24 || window.view().rank() != comm.rank();
    auto const taken = std::move(window);
    wrong += window.size_bytes() != 0 || window.view().size() != 0 || taken.size_bytes() != 24;
  });
  CHECK(wrong == 0);
}

TEST_CASE("thread_window: of any size begins on a line on every rank") {
  std::atomic<int> wrong{0};
  run_ranks(3, [&](thread_communicator& comm) {
    for (std::size_t const bytes : {1u, 63u, 64u, 65u, 1000000u}) {
      auto const window = comm.allocate_window(bytes);
      wrong += window.size_bytes() != bytes;
      for (int p = 0; p < 3; ++p)
        wrong += reinterpret_cast<std::uintptr_t>(window.view().peer(p, 0)) % 64 != 0;
      comm.exchange_phase(on);
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("thread_window: has one size, and ranks that disagree about it can go on") {
  auto const said = sentences(3, [](thread_communicator& comm) {
    auto const first =
        sentence_of([&] { (void)comm.allocate_window(comm.rank() == 2 ? SIZE_MAX : 16); });
    if (comm.allocate_window(16).size_bytes() == 16) throw expar::error(first);
  });
  for (auto const& s : said)
    CHECK(s ==
          "disagreement: expar: allocate_window: bytes is 16 on rank 0 but 18446744073709551615 on "
          "rank 2; all ranks must pass the same");
}

TEST_CASE("thread_window: for which there is no memory, all ranks say so and can go on") {
  auto const said = sentences(3, [](thread_communicator& comm) {
    auto const first = sentence_of([&] { (void)comm.allocate_window(SIZE_MAX); });
    if (comm.allocate_window(16).size_bytes() == 16) throw expar::error(first);
  });
  for (auto const& s : said)
    CHECK(s == "expar: allocate_window: rank 0 has no memory for 18446744073709551615 bytes");
}

TEST_CASE("thread_window: a rank writes into the part of one that has left") {
  std::atomic<bool> left{false};
  auto const said = sentences(3, [&](thread_communicator& comm) {
    {
      auto const window = comm.allocate_window(1000);
      comm.exchange_phase(on);
      if (comm.rank() != 0) {
        while (!left) std::this_thread::yield();
        std::memset(window.view().peer(0, comm.rank() == 1 ? 0 : 500), 1, 500);
        comm.exchange_phase(on);
      }
    }
    left = true;
  });
  CHECK(said == std::vector<std::string>{
                    "", "lost 0: expar: exchange_phase: rank 0 has left and will not come",
                    "lost 0: expar: exchange_phase: rank 0 has left and will not come"});
}

TEST_CASE("thread_window: a rank that is late writes where others have given it up") {
  std::atomic<int> gone{0};
  auto const said = sentences(
      3,
      [&](thread_communicator& comm) {
        std::string first;
        {
          auto const window = comm.allocate_window(1000);
          if (comm.rank() == 1) {
            while (gone != 2) std::this_thread::yield();
            for (int p : {0, 2}) std::memset(window.view().peer(p, 0), 1, 1000);
          }
          first = sentence_of([&] { comm.exchange_phase(on); });
        }
        ++gone;
        throw expar::error(first);
      },
      600ms);
  for (auto const& s : said)
    CHECK(s == "lost 1: expar: exchange_phase: rank 1 did not come within 600 ms");
}

TEST_CASE("thread_window: outlives its communicator, and goes with the last of its ranks") {
  std::vector<thread_communicator::window> windows(4);
  run_ranks(4, [&](thread_communicator& comm) {
    windows[static_cast<std::size_t>(comm.rank())] = comm.allocate_window(100);
  });
  for (int gone = 0; gone < 4; ++gone) {
    windows[static_cast<std::size_t>(gone * 3 % 4)] = {};
    for (auto const& window : windows)
      for (int p = 0; p < window.view().size(); ++p)
        std::memset(window.view().peer(p, 0), gone, window.size_bytes());
  }
  SUCCEED();
}

TEST_CASE("thread_window: the group owns none of them") {
  expar::detail::shared const group(new expar::detail::thread_group(2, 1min));
  std::vector<std::thread> ranks;
  for (int rank : {0, 1})
    ranks.emplace_back([&, rank] {
      thread_communicator const comm(group, rank);
      for (int i = 0; i < 100; ++i) {
        auto const window = comm.allocate_window(1000);
        std::memset(window.view().peer(1 - rank, 0), rank, 1000);
      }
    });
  for (auto& rank : ranks) rank.join();
  CHECK(group->at(0).window.get() == nullptr);
  CHECK(group->at(1).window.get() == nullptr);
}

TEST_CASE("thread_window: ranks that are lost while they make one leave nothing behind") {
  for (int round = 0; round < 60; ++round) {
    std::atomic<int> made{0}, lost{0};
    sentences(
        3,
        [&](thread_communicator& comm) {
          if (comm.rank() == 2) std::this_thread::sleep_for(700us + round * 10us);
          try {
            auto const window = comm.allocate_window(100);
            ++made;
            std::memset(window.view().peer((comm.rank() + 1) % 3, 0), 1, 100);
          } catch (expar::lost_rank const&) {
            ++lost;
          }
        },
        1ms);
    REQUIRE(made + lost == 3);
    REQUIRE(made * lost == 0);
  }
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/thread.hpp>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <expar/laws.hpp>

#include "../support/catch.hpp"
#include "random_rounds.hpp"
#include "sentences.hpp"

using namespace expar_test;

TEST_CASE("thread_communicator: the laws") {
  int const ranks = GENERATE(1, 2, 3, 4, 7);
  int const threads = GENERATE(1, 2);
  CAPTURE(ranks, threads);
  host_context const on(threads);
  std::vector<std::string> broken(static_cast<std::size_t>(ranks));
  run_ranks(ranks, [&](thread_communicator& comm) {
    broken[static_cast<std::size_t>(comm.rank())] = expar::broken_communicator_law(on, comm);
  });
  for (auto const& law : broken) CHECK(law == "");
}

TEST_CASE("thread_communicator: it says that it checks sizes") {
  STATIC_REQUIRE(expar::traits_of<thread_communicator>().checks_sizes);
  STATIC_REQUIRE(expar::traits_of<thread_communicator>().concurrent_ranks);
}

TEST_CASE("thread_communicator: 200 exchanges back to back, ranks late at random") {
  int const ranks = GENERATE(1, 2, 3, 4, 7);
  CAPTURE(ranks);
  std::atomic<long> wrong{0};
  run_ranks(ranks, [&](thread_communicator& comm) {
    host_context const on(1 + comm.rank() % 2);
    wrong += expar_test::random_rounds(on, comm, 200, static_cast<std::uint64_t>(ranks));
  });
  CHECK(wrong == 0);
}

TEST_CASE("thread_communicator: a copy larger than a chunk") {
  constexpr std::size_t bytes = (std::size_t{5} << 20) + 3;
  std::atomic<int> wrong{0};
  run_ranks(2, [&](thread_communicator& comm) {
    host_context const on(3);
    std::vector<unsigned char> in(bytes), out(2 * bytes);
    for (std::size_t i = 0; i < bytes; ++i)
      in[i] = static_cast<unsigned char>(i * 7 + static_cast<std::size_t>(comm.rank()));
    comm.all_gather(on, in.data(), out.data(), bytes);
    for (std::size_t i = 0; i < bytes; ++i)
      wrong += out[i] != static_cast<unsigned char>(i * 7) ||
               out[bytes + i] != static_cast<unsigned char>(i * 7 + 1);
  });
  CHECK(wrong == 0);
}

TEST_CASE("thread_communicator: the exception of one rank reaches the caller and nobody hangs") {
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> waiting{0};
    auto const body = [&](thread_communicator& comm) {
      host_context const on;
      comm.barrier(on);
      if (comm.rank() == 1) throw std::runtime_error("rank 1 is out of paper");
      try {
        for (;;) comm.barrier(on);
      } catch (expar::error const& e) {
        waiting += std::string(e.what()) == "expar: barrier: rank 1 has left and will not come";
        throw;
      }
    };
    REQUIRE_THROWS_WITH(run_ranks(4, body), "rank 1 is out of paper");
    REQUIRE(waiting == 3);
  }
}

TEST_CASE("thread_communicator: a rank that returns early is named on every other rank") {
  auto const said = sentences(3, [](thread_communicator& comm) {
    host_context const on;
    if (comm.rank() == 2) return;
    int const in = 1;
    int out[3];
    comm.all_gather(on, &in, out, sizeof in);
  });
  CHECK(said[0] == "lost 2: expar: all_gather: rank 2 has left and will not come");
  CHECK(said[1] == said[0]);
  CHECK(said[2] == "");
}

TEST_CASE(
    "thread_communicator: a rank that does not come is named after the deadline, ever after") {
  std::vector<std::string> later(3);
  auto const said = sentences(
      3,
      [&](thread_communicator& comm) {
        if (comm.rank() == 1) return std::this_thread::sleep_for(700ms);
        auto& mine = later[static_cast<std::size_t>(comm.rank())];
        std::string const first = sentence_of([&] { comm.barrier(host_context{}); });
        for (int i = 0; i < 10; ++i) mine = sentence_of([&] { (void)comm.allocate_window(8); });
        throw expar::error(first);
      },
      250ms);
  CHECK(said ==
        std::vector<std::string>{"lost 1: expar: barrier: rank 1 did not come within 250 ms", "",
                                 "lost 1: expar: barrier: rank 1 did not come within 250 ms"});
  CHECK(later == std::vector<std::string>{
                     "lost 1: expar: allocate_window: rank 1 did not come within 250 ms", "",
                     "lost 1: expar: allocate_window: rank 1 did not come within 250 ms"});
}

TEST_CASE(
    "thread_communicator: a rank that comes after the deadline does not read buffers given up") {
  // The buffers of the ranks that gave up are gone when rank 1 comes; it throws what they threw.
  auto const said = sentences(
      3,
      [](thread_communicator& comm) {
        host_context const on;
        std::vector<char> in(1000, 'x'), out(3000);
        if (comm.rank() == 1) std::this_thread::sleep_for(700ms);
        comm.all_gather(on, in.data(), out.data(), in.size());
      },
      250ms);
  for (auto const& s : said)
    CHECK(s == "lost 1: expar: all_gather: rank 1 did not come within 250 ms");
}

TEST_CASE("thread_communicator: ranks near the deadline all pass a meeting, or none does") {
  for (int round = 0; round < 100; ++round) {
    auto const said = sentences(
        3,
        [round](thread_communicator& comm) {
          if (comm.rank() == 2) std::this_thread::sleep_for(1800us + round * 4us);
          comm.barrier(host_context{});
        },
        2ms);
    CAPTURE(said);
    REQUIRE(said[0] == said[1]);
    REQUIRE(said[0] == said[2]);
  }
}

TEST_CASE("thread_communicator: ranks that disagree about a size all say so") {
  auto const said = sentences(3, [](thread_communicator& comm) {
    host_context const on;
    std::vector<std::size_t> sent{4, 4, 4}, got{4, 4, 4}, places{0, 4, 8};
    if (comm.rank() == 1) sent[2] = 3;
    char in[12]{}, out[12]{};
    comm.all_to_all_v(on, in, sent, places, out, got, places);
  });
  for (auto const& s : said)
    CHECK(s ==
          "disagreement: expar: all_to_all_v: rank 1 sends 3 bytes to rank 2, which expects 4");

  auto const fixed = sentences(2, [](thread_communicator& comm) {
    host_context const on;
    char in[16]{}, out[16]{};
    comm.all_to_all(on, in, out, comm.rank() == 0 ? 8u : 4u);
  });
  for (auto const& s : fixed)
    CHECK(s == "disagreement: expar: all_to_all: rank 1 sends 4 bytes to rank 0, which expects 8");
}

TEST_CASE("thread_communicator: ranks in different operations all say so, and can go on") {
  std::atomic<int> good{0};
  auto const said = sentences(3, [&](thread_communicator& comm) {
    host_context const on;
    int const in[3] = {7, 7, 7};
    int out[3] = {};
    std::string const mine = sentence_of([&] {
      if (comm.rank() == 1)
        comm.barrier(on);
      else
        comm.all_to_all(on, in, out, sizeof(int));
    });
    good += static_cast<int>(expar_test::random_rounds(on, comm, 5, 3) == 0 && out[0] == 0);
    throw expar::error(mine);
  });
  for (auto const& s : said)
    CHECK(s ==
          "disagreement: expar: rank 0 calls all_to_all while rank 1 calls barrier; all ranks call "
          "the same "
          "operations in the same order");
  CHECK(good == 3);
}

namespace {

/// A pool whose tasks take long, or fail.
struct odd_pool {
  std::chrono::milliseconds pause;
  bool fails;
  int concurrency() const { return 2; }
  void run(int tasks, expar::task f) {
    std::this_thread::sleep_for(pause);
    if (fails) throw std::runtime_error("the pool is closed");
    for (int i = 0; i < tasks; ++i) f(i);
  }
};

}  // namespace

TEST_CASE("thread_communicator: buffers stay until the last rank has read them") {
  constexpr std::size_t bytes = std::size_t{3} << 20;
  auto const exchange = [](thread_communicator& comm, host_context const& on) {
    std::vector<char> in(bytes, static_cast<char>('a' + comm.rank())), out(2 * bytes);
    comm.all_gather(on, in.data(), out.data(), bytes);
    if (out[0] != 'a' || out[2 * bytes - 1] != 'b') throw expar::error("other bytes");
  };
  SECTION("a copy that takes longer than the deadline") {
    auto const said = sentences(
        2,
        [&](thread_communicator& comm) {
          odd_pool pool{400ms, false};
          exchange(comm, comm.rank() == 1 ? host_context(pool) : host_context());
        },
        100ms);
    for (auto const& s : said) CHECK(s == "");
  }
  SECTION("a copy that fails") {
    auto const said = sentences(2, [&](thread_communicator& comm) {
      odd_pool pool{0ms, true};
      exchange(comm, comm.rank() == 1 ? host_context(pool) : host_context());
    });
    CHECK(said[0] == "expar: all_gather: rank 1 could not copy what it was sent");
    CHECK(said[1] == "the pool is closed");
  }
}

TEST_CASE("thread_communicator: after a disagreement it still works") {
  std::atomic<int> good{0};
  run_ranks(3, [&](thread_communicator& comm) {
    host_context const on;
    char in[24]{}, out[24]{};
    for (int round = 0; round < 20; ++round) {
      try {
        comm.all_to_all(on, in, out, comm.rank() == round % 3 ? 8u : 4u);
      } catch (expar::disagreement const&) {
        ++good;
      }
    }
    good += static_cast<int>(expar_test::random_rounds(on, comm, 20, 9) == 0);
  });
  CHECK(good == 3 * 21);
}

TEST_CASE("run_ranks: groups inside groups") {
  std::atomic<int> sum{0};
  run_ranks(2, [&](thread_communicator& outer) {
    run_ranks(2, [&](thread_communicator& inner) {
      inner.barrier(host_context{});
      sum += 10 * outer.rank() + inner.rank();
    });
    outer.barrier(host_context{});
  });
  CHECK(sum == 22);
}

TEST_CASE("run_ranks: there is a rank") {
  REQUIRE_THROWS_WITH(run_ranks(0, [](thread_communicator&) {}),
                      "expar: run_ranks: ranks is 0; at least 1 is needed");
}

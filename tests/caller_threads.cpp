// SPDX-License-Identifier: Apache-2.0
#include <expar/caller_threads.hpp>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <expar/permute/encode.hpp>

#include "support/catch.hpp"
#include "support/one_rank.hpp"
#include "support/random.hpp"
#include "support/thrown_by.hpp"

using expar::caller_threads;
using expar::host_context;
using expar::index_t;

namespace {

/// f(thread) on so many threads at once.
template <class F>
void in_parallel(int threads, F f) {
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i) all.emplace_back([&f, i] { f(i); });
  for (auto& t : all) t.join();
}

}  // namespace

TEST_CASE("caller_threads: what one thread asks for all of them do") {
  int const threads = GENERATE(1, 2, 3, 5);
  CAPTURE(threads);
  constexpr int regions = 200;
  constexpr index_t items = 1000;
  caller_threads all(threads);
  std::vector<std::atomic<int>> done(items);
  std::atomic<int> calls{0}, early{0}, elsewhere{0};
  in_parallel(threads, [&](int thread) {
    expar_test::random draw(static_cast<std::uint64_t>(thread));
    auto const leader = std::this_thread::get_id();
    for (int r = 1; r <= regions; ++r) {
      if (draw.chance(.05)) std::this_thread::sleep_for(std::chrono::microseconds(200));
      all.run(thread, [&](host_context const& ctx) {
        ++calls;
        elsewhere += thread != 0 || std::this_thread::get_id() != leader;
        for (int twice = 0; twice < 2; ++twice)
          ctx.for_each_chunk(items, 10, [&](int, index_t first, index_t last) {
            for (index_t i = first; i < last; ++i) ++done[static_cast<std::size_t>(i)];
          });
      });
      for (auto const& n : done) early += n < 2 * r;
    }
  });
  CHECK(calls == regions);
  CHECK(early == 0);
  CHECK(elsewhere == 0);
  for (auto const& n : done) REQUIRE(n == 2 * regions);
  CHECK(all.context().threads() == threads);
}

TEST_CASE("caller_threads: an operation has the bits of any other context") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    expar_test::one_rank<float> r(seed, 40);
    auto const p = r.plan();
    auto rows = r.random_rows(p), theirs = rows;
    expar::encode(r.ctx, p, r.x.view(), rows.view());
    caller_threads all(3);
    in_parallel(3, [&](int thread) {
      all.run(thread,
              [&](host_context const& ctx) { expar::encode(ctx, p, r.x.view(), theirs.view()); });
    });
    REQUIRE(rows == theirs);
  }
}

TEST_CASE("caller_threads: an exception reaches every thread, and the next region works") {
  constexpr int threads = 3;
  caller_threads all(threads);
  std::vector<std::string> said(threads);
  std::atomic<int> after{0};
  in_parallel(threads, [&](int thread) {
    for (int round = 0; round < 20; ++round) {
      try {
        all.run(thread, [&](host_context const& ctx) {
          ctx.for_each_chunk(64, 1, [&](int, index_t first, index_t last) {
            if (first <= round && round < last) throw std::runtime_error("of a chunk;");
          });
        });
      } catch (std::runtime_error const& e) {
        said[static_cast<std::size_t>(thread)] += e.what();
      }
      all.run(thread, [&](host_context const&) { ++after; });
    }
  });
  std::string twenty;
  for (int i = 0; i < 20; ++i) twenty += "of a chunk;";
  for (auto const& s : said) CHECK(s == twenty);
  CHECK(after == 20);
}

TEST_CASE("caller_threads: wrong numbers") {
  CHECK(expar_test::thrown_by([] { caller_threads(0); }) ==
        "expar: caller_threads: threads is 0; at least 1 is needed");
  caller_threads all(2);
  CHECK(expar_test::thrown_by([&] { all.run(2, [](host_context const&) {}); }) ==
        "expar: caller_threads: thread is 2; it lies in 0 .. threads - 1 = 1");
  CHECK(expar_test::thrown_by([&] { all.run(-1, [](host_context const&) {}); }) ==
        "expar: caller_threads: thread is -1; it lies in 0 .. threads - 1 = 1");
}

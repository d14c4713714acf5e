// SPDX-License-Identifier: Apache-2.0
#include <expar/context.hpp>

#include <atomic>
#include <memory_resource>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/forked.hpp"
#include "support/random.hpp"
#include "support/thrown_by.hpp"

namespace {

using expar::host_context;
using expar::index_t;

// Whether the chunks are consecutive, cover [0, n) once, hold at least `grain` and number chunks().
bool covers(host_context const& on, index_t n, index_t grain) {
  struct range {
    index_t first = -1, last = -1;
  };
  int const parts = on.chunks(n, grain);
  std::vector<range> seen(static_cast<std::size_t>(parts));
  std::atomic<int> calls{0};
  on.for_each_chunk(n, grain, [&](int chunk, index_t first, index_t last) {
    seen[static_cast<std::size_t>(chunk)] = {first, last};
    ++calls;
  });
  bool good = calls == parts && parts >= 1 && parts <= on.threads();
  index_t next = 0;
  for (range const& r : seen) {
    good = good && r.first == next && r.last >= r.first;
    good = good && (parts == 1 || r.last - r.first >= (grain < 1 ? 1 : grain));
    next = r.last;
  }
  return good && next == n;
}

// A pool of the caller's: runs the tasks in reverse, on this thread.
struct backwards {
  int lanes;
  int runs = 0;
  int concurrency() const { return lanes; }
  void run(int tasks, expar::task t) {
    ++runs;
    for (int i = tasks - 1; i >= 0; --i) t(i);
  }
};

struct frozen {
  int concurrency() const { return 2; }
  void run(int tasks, expar::task t) const {
    for (int i = 0; i < tasks; ++i) t(i);
  }
};

}  // namespace

TEST_CASE("context: by default the caller's thread alone") {
  host_context const on;
  CHECK(on.threads() == 1);
  CHECK(on.memory() == std::pmr::get_default_resource());
  auto const me = std::this_thread::get_id();
  on.for_each_chunk(100, 1, [&](int chunk, index_t first, index_t last) {
    CHECK(chunk == 0);
    CHECK(first == 0);
    CHECK(last == 100);
    CHECK(std::this_thread::get_id() == me);
  });
}

TEST_CASE("context: any chunking covers every item once") {
  int const threads = GENERATE(1, 2, 3, 4, 7);
  CAPTURE(threads);
  host_context const on(threads);
  CHECK(on.threads() == threads);
  expar_test::random rng(static_cast<std::uint64_t>(threads));
  for (index_t n = 0; n < 40; ++n)
    for (index_t grain : {-1, 0, 1, 2, 5, 39, 100}) {
      CAPTURE(n, grain);
      REQUIRE(covers(on, n, grain));
    }
  for (int i = 0; i < 200; ++i) {
    index_t const n = rng.integer(0, 100000), grain = rng.integer(0, 20000);
    CAPTURE(n, grain);
    REQUIRE(covers(on, n, grain));
  }
  // A range whose bounds would overflow if they were products.
  REQUIRE(covers(on, index_t{1} << 62, 1));
}

TEST_CASE("context: the exception of a chunk reaches the caller when all are done") {
  host_context const on(4);
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> done{0};
    auto const work = [&](int chunk, index_t, index_t) {
      ++done;
      if (chunk == 2) throw std::runtime_error("chunk 2");
    };
    REQUIRE_THROWS_WITH(on.for_each_chunk(4, 1, work), "chunk 2");
    REQUIRE(done == 4);
  }
  REQUIRE(covers(on, 1000, 1));
}

TEST_CASE("context: work inside work, and several threads on one context") {
  host_context const on(3);
  std::atomic<long> sum{0};
  auto const nested = [&] {
    on.for_each_chunk(30, 1, [&](int, index_t first, index_t last) {
      for (index_t i = first; i < last; ++i)
        on.for_each_chunk(10, 1, [&](int, index_t a, index_t b) { sum += b - a; });
    });
  };
  nested();
  CHECK(sum == 300);

  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      host_context const copy = on;
      for (int i = 0; i < 50; ++i) {
        copy.for_each_chunk(30, 1, [&](int, index_t a, index_t b) { sum += b - a; });
        nested();
      }
    });
  for (auto& caller : callers) caller.join();
  CHECK(sum == 300 + 4 * 50 * (30 + 300));
}

TEST_CASE("context: copies share the threads and outlive the first") {
  host_context copy;
  {
    host_context const first(3);
    copy = first;
  }
  CHECK(copy.threads() == 3);
  CHECK(covers(copy, 1000, 1));
}

TEST_CASE("context: the caller's own pool") {
  backwards pool{5};
  host_context const on(pool);
  CHECK(on.threads() == 5);
  CHECK(covers(on, 1234, 7));
  CHECK(pool.runs == 1);
  CHECK(covers(on, 3, 7));
  CHECK(pool.runs == 1);

  backwards idle{0};
  CHECK(host_context(idle).threads() == 1);
  CHECK(covers(host_context(idle), 10, 1));

  frozen const fixed{};
  CHECK(covers(host_context(fixed), 10, 1));
}

TEST_CASE("context: the caller's own memory") {
  std::pmr::monotonic_buffer_resource arena;
  CHECK(host_context(1, &arena).memory() == &arena);
  CHECK(host_context(2, &arena).memory() == &arena);
  backwards pool{2};
  CHECK(host_context(pool, &arena).memory() == &arena);
}

TEST_CASE("context: a context has a thread") {
  REQUIRE_THROWS_WITH(host_context(0), "expar: host_context: threads is 0; at least 1 is needed");
  REQUIRE_THROWS_WITH(host_context(-3), "expar: host_context: threads is -3; at least 1 is needed");
}

TEST_CASE("context: memory is there") {
  std::string const said = "expar: host_context: memory is null; a resource is needed";
  backwards pool{2};
  CHECK(expar_test::thrown_by([] { host_context(1, nullptr); }) == said);
  CHECK(expar_test::thrown_by([] { host_context(2, nullptr); }) == said);
  CHECK(expar_test::thrown_by([&] { host_context(pool, nullptr); }) == said);
}

TEST_CASE("context: the bytes that stay in caches are found, or set") {
  host_context ctx;
  CHECK(ctx.cache_bytes() > 0);
  CHECK(ctx.cache_bytes() <= 16 << 20);
  ctx.set_cache_bytes(0);
  CHECK(ctx.cache_bytes() == 0);
  host_context const copy = ctx;
  CHECK(copy.cache_bytes() == 0);
  CHECK(expar_test::thrown_by([&] { ctx.set_cache_bytes(-1); }) ==
        "expar: host_context: cache_bytes is -1; it is at least 0");
  CHECK(ctx.cache_bytes() == 0);
}

#ifdef EXPAR_TEST_FORK
TEST_CASE("context: more threads than can be had") {
  CHECK(expar_test::holds_in_child([] {
    expar_test::allow_no_threads();
    return expar_test::thrown_by([] { host_context(200000); }) ==
           "expar: host_context: threads is 200000, more than can be had: Resource temporarily "
           "unavailable";
  }));
}
#endif

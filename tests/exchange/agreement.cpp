// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/agreement.hpp>

#include <cmath>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <expar/comm/thread.hpp>

#include "../support/catch.hpp"

namespace {

template <class F>
std::vector<std::string> what_ranks_throw(int ranks, F f) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(comm.rank())] = expar::detail::failure_of([&] { f(comm); }).text;
  });
  return said;
}

/// Throws so many times, before it exchanges anything.
struct failing_communicator {
  static constexpr expar::communicator_traits traits{.checks_sizes = true};
  expar::thread_communicator& to;
  int times;

  int rank() const noexcept { return to.rank(); }
  int size() const noexcept { return to.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts at) {
    if (times > 0 && times-- > 0) throw std::runtime_error("the cable is out");
    to.all_to_all_v(on, in, counts, from, out, out_counts, at);
  }
};

}  // namespace

TEST_CASE("the lowest rank that failed speaks for all") {
  expar::host_context const ctx;
  auto const said = what_ranks_throw(4, [&](expar::thread_communicator& comm) {
    expar::detail::agreement agree(std::pmr::get_default_resource());
    agree.reserve(4);
    agree.run(ctx, comm, {expar::detail::step::combine, 3}, [&] {
      if (comm.rank() == 2) throw expar::error("second");
      if (comm.rank() != 0) throw expar::error("first " + std::string(600, 'x'));
    });
  });
  for (auto const& s : said)
    CHECK(s == ("first " + std::string(505, 'x') + " (rank 1)").substr(0, 511));
}

TEST_CASE("whatever is thrown on one rank is an error on all, and the next operation works") {
  expar::host_context const ctx;
  int const kind = GENERATE(0, 1, 2);
  char const* const wanted[] = {"expar: an exception: std::bad_alloc (rank 2)",
                                "expar: an exception: out of paper (rank 2)",
                                "expar: an exception that is no std::exception (rank 2)"};
  std::vector<int> sums(3);
  auto const said = what_ranks_throw(3, [&](expar::thread_communicator& comm) {
    expar::detail::agreement agree(std::pmr::get_default_resource());
    agree.reserve(3);
    auto const fails = [&] {
      agree.run(ctx, comm, {expar::detail::step::combine, 3}, [&] {
        if (comm.rank() != 2) return;
        if (kind == 0) throw std::bad_alloc();
        if (kind == 1) throw std::runtime_error("out of paper");
        throw 5;
      });
    };
    auto const text = expar::detail::failure_of(fails);
    agree.run(ctx, comm, {expar::detail::step::combine, 3},
              [&] { sums[static_cast<std::size_t>(comm.rank())] = 1; });
    throw expar::error(text.text);
  });
  for (auto const& s : said) CHECK(s == wanted[kind]);
  CHECK(sums == std::vector<int>{1, 1, 1});
}

TEST_CASE("ranks that intend other things all say so, and can go on") {
  expar::host_context const ctx;
  std::vector<int> passed(3);
  auto const said = what_ranks_throw(3, [&](expar::thread_communicator& comm) {
    using expar::detail::step;
    expar::detail::agreement agree(std::pmr::get_default_resource());
    agree.reserve(3);
    auto const text = expar::detail::failure_of([&] {
      agree.run(ctx, comm, {comm.rank() == 1 ? step::combine : step::dispatch, 7}, [] {});
    });
    auto const other = expar::detail::failure_of([&] {
      agree.run(ctx, comm, {step::combine, comm.rank() == 2 ? 5u : 4u}, [] {});
    });
    agree.run(ctx, comm, {step::combine, 1},
              [&] { passed[static_cast<std::size_t>(comm.rank())] = 1; });
    throw expar::error(std::string(text.text) + " / " + other.text);
  });
  for (auto const& s : said)
    CHECK(
        s ==
        "expar: rank 0 calls dispatch for its batch 7 while rank 1 calls combine for its batch 7; "
        "all ranks call the same operations in the same order / expar: rank 0 calls combine for "
        "its batch 4 while rank 2 calls combine for its batch 5; all ranks call the same "
        "operations in the same order");
  CHECK(passed == std::vector<int>{1, 1, 1});
}

TEST_CASE("what went wrong on a rank is not taken for numbers of as many bytes") {
  expar::host_context const ctx;
  for (int numbers = 9; numbers < 100; ++numbers) {
    auto const said = what_ranks_throw(2, [&](expar::thread_communicator& threads) {
      failing_communicator comm{threads, threads.rank() == 1};
      expar::detail::agreement agree(std::pmr::get_default_resource());
      agree.reserve(2);
      std::vector<std::uint64_t> own(100, 0x3131), all(200);
      auto const gather = [&] {
        auto word = expar::detail::agreement::word_of({expar::detail::step::prepare}, {});
        agree.gather(ctx, comm, word, {}, own.data(), all.data(), numbers);
      };
      auto const first = expar::detail::failure_of(gather),
                 later = expar::detail::failure_of(gather);
      throw expar::error(std::string(first.text) + "; " + later.text);
    });
    INFO(numbers << " numbers");
    CHECK(said == std::vector<std::string>(2, "expar: an exception: the cable is out (rank 1); "));
  }
}

TEST_CASE("a rank that cannot tell what went wrong does not go on, though others come") {
  expar::host_context const ctx;
  std::vector<std::string> said(2);
  auto const body = [&](expar::thread_communicator& threads) {
    failing_communicator comm{threads, threads.rank() == 1 ? 1000 : 0};
    expar::detail::agreement agree(std::pmr::get_default_resource());
    agree.reserve(2);
    for (int time = 0; time < 2; ++time) {
      auto const call = [&] { agree.run(ctx, comm, {expar::detail::step::place}, [] {}); };
      said[static_cast<std::size_t>(comm.rank())] +=
          std::string(expar::detail::failure_of(call).text) + "; ";
      comm.times = 0;
    }
  };
  expar::run_ranks(2, body, std::chrono::milliseconds(50));
  std::string const lost = "expar: all_to_all_v: rank 1 ",
                    alone = "expar: ranks cannot agree on an operation; ";
  CHECK(said[0].starts_with(lost));
  CHECK(said[1] == alone + alone);
}

TEST_CASE("a failure without a sentence is a failure") {
  expar::host_context const ctx;
  auto const said = what_ranks_throw(2, [&](expar::thread_communicator& comm) {
    expar::detail::agreement agree(std::pmr::get_default_resource());
    agree.reserve(2);
    agree.run(ctx, comm, {expar::detail::step::combine, 1}, [&] {
      if (comm.rank() == 1) throw expar::error("");
    });
  });
  for (auto const& s : said) CHECK(s == "expar: a rank failed without saying why");
}

TEST_CASE("values that differ are named with both values") {
  expar::host_context const ctx;
  auto const said = what_ranks_throw(3, [&](expar::thread_communicator& comm) {
    expar::detail::agreement agree(std::pmr::get_default_resource());
    expar::detail::expects_agreement(ctx, comm, agree, expar::detail::step::construct, "op",
                                     {{"same", 7}, {"odd", comm.rank() == 1 ? 0.25 : 1048577}});
  });
  for (auto const& s : said)
    CHECK(s ==
          "expar: op: odd is 1048577 on rank 0 but 0.25 on rank 1; all ranks must pass the same");
  CHECK(what_ranks_throw(3, [&](auto& comm) {
          expar::detail::agreement agree(std::pmr::get_default_resource());
          expar::detail::expects_agreement(ctx, comm, agree, expar::detail::step::construct, "op",
                                           {{"same", 7}, {"nan", std::nan("")}});
        }) == std::vector<std::string>(3));
}

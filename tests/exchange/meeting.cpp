// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/meeting.hpp>

#include <string>
#include <vector>

#include "../support/catch.hpp"
#include "../support/thrown_by.hpp"
#include "../support/words_alone.hpp"

using expar::index_t;
using expar::detail::step;
using expar_test::words_alone;

namespace {

expar::host_context const ctx;
constexpr expar::detail::batch_state const* no_batch = nullptr;

/// Whether this rank hears `count` numbers of each rank, as each says them.
bool hears_all(words_alone& x, index_t count) {
  x.batches() = 70 + static_cast<std::uint64_t>(x.comm().rank());
  auto const told = meet(
      ctx, x, {step::place, 0, 5}, no_batch, count, [] {},
      [&](std::uint64_t* own) {
        for (index_t i = 0; i < count; ++i)
          own[i] = static_cast<std::uint64_t>(100 * x.comm().rank() + i);
      });
  bool right = true;
  for (int r = 0; r < x.comm().size(); ++r) {
    right = right && told.word_of(r).object == 5 &&
            told.word_of(r).batches == 70 + static_cast<std::uint64_t>(r);
    for (index_t i = 0; i < count; ++i) right = right && told(r, i) == 100 * r + i;
  }
  return right;
}

}  // namespace

TEST_CASE("ranks that meet hear the word and the numbers of each, and one rank its own") {
  int const ranks = GENERATE(1, 2, 5);
  std::vector<int> right(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    words_alone x(comm);
    right[static_cast<std::size_t>(comm.rank())] =
        hears_all(x, 0) && hears_all(x, 9) && hears_all(x, 1);
  });
  CHECK(right == std::vector<int>(right.size(), 1));
}

TEST_CASE("what a rank cannot do before it meets is heard by all, and it says nothing") {
  int const ranks = GENERATE(1, 3);
  int const failing = ranks - 1;
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  std::vector<int> spoke(said.size()), right(said.size());
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    auto const me = static_cast<std::size_t>(comm.rank());
    words_alone x(comm);
    said[me] = expar_test::thrown_by([&] {
      meet(
          ctx, x, {step::place}, no_batch, 1,
          [&] {
            if (comm.rank() == failing) throw expar::error("expar: place: no");
          },
          [&](std::uint64_t* own) { spoke[me] = 1, *own = 0; });
    });
    right[me] = hears_all(x, 3);
  });
  CHECK(said == std::vector<std::string>(
                    said.size(), ranks == 1 ? "expar: place: no" : "expar: place: no (rank 2)"));
  CHECK(spoke[static_cast<std::size_t>(failing)] == 0);
  CHECK(right == std::vector<int>(right.size(), 1));
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/laws/communicator.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <deque>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <expar/comm/self.hpp>
#include <expar/comm/thread_ticket.hpp>

#include "../support/catch.hpp"

using expar::broken_communicator_law;
using expar::byte_counts;
using expar::host_context;
using expar::thread_communicator;

namespace {

// A communicator over threads with one mistake. Only all_to_all_v, so that each mistake is its own.
class flawed {
 public:
  enum mistake {
    none,
    swaps_blocks,
    ignores_displacements_in,
    ignores_displacements_out,
    other_rank_order,
    loses_last_byte,
    fills_gaps,
    writes_input,
    truncates_at_64_kib,
    writes_behind,
    writes_before,
    writes_later,
    skips_small_exchanges,
    late_by_one,
    throws_on_one_rank,
    waits_for_ever,
    says_rank_0,
    rank_too_large,
    size_zero,
    size_differs
  };
  flawed(thread_communicator& comm, mistake which) : comm_(&comm), which_(which) {}

  int rank() const noexcept {
    if (which_ == other_rank_order) return comm_->size() - 1 - comm_->rank();
    if (which_ == says_rank_0) return 0;
    return which_ == rank_too_large ? comm_->size() : comm_->rank();
  }
  int size() const noexcept {
    if (which_ == size_differs) return comm_->size() - (comm_->rank() == 0 ? 1 : 0);
    return which_ == size_zero ? 0 : comm_->size();
  }

  int calls() const { return calls_; }

  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) {
    auto const ranks = static_cast<std::size_t>(comm_->size());
    auto const first = static_cast<unsigned char const*>(in);
    auto const result = static_cast<unsigned char*>(out);
    std::vector<std::size_t> packed(ranks, 0), placed(to.begin(), to.end());
    std::size_t total = 0;
    ++calls_;
    if (which_ == throws_on_one_rank && comm_->rank() == 1) {
      comm_->all_to_all_v(on, in, counts, from, out, out_counts, to);
      throw std::runtime_error("no route to host");
    }
    switch (which_) {
      case waits_for_ever:
        // As a send that nobody receives: rank 0 waits, and the others wait for rank 0.
        if (comm_->rank() == 0 && counts[0] != 0 && calls_ > 3)
          for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        break;
      case size_differs: {
        // Rank 0 forgets the last rank, which gets nothing from it and sends it nothing.
        std::vector<std::size_t> c(ranks, 0), o(ranks, 0), f(ranks, 0), t(ranks, 0);
        for (std::size_t p = 0; p < counts.size(); ++p)
          c[p] = counts[p], o[p] = out_counts[p], f[p] = from[p], t[p] = to[p];
        if (comm_->rank() == comm_->size() - 1) c[0] = o[0] = 0;
        return comm_->all_to_all_v(on, in, c, f, out, o, t);
      }
      case ignores_displacements_in:
        for (std::size_t p = 0; p < ranks; ++p) packed[p] = total, total += counts[p];
        return comm_->all_to_all_v(on, in, counts, packed, out, out_counts, to);
      case ignores_displacements_out:
        for (std::size_t p = 0; p < ranks; ++p) placed[p] = total, total += out_counts[p];
        return comm_->all_to_all_v(on, in, counts, from, out, out_counts, placed);
      case skips_small_exchanges: {
        std::size_t most = 0;
        for (std::size_t p = 0; p < ranks; ++p) most = most > counts[p] ? most : counts[p];
        std::vector<std::size_t> all(ranks);
        comm_->all_gather(on, &most, all.data(), sizeof most);
        for (std::size_t n : all) most = most > n ? most : n;
        if (most < 2) return;
        break;
      }
      default:
        break;
    }
    comm_->all_to_all_v(on, in, counts, from, out, out_counts, to);
    switch (which_) {
      case swaps_blocks:
        if (out_counts[0] == out_counts[1])
          for (std::size_t k = 0; k < out_counts[0]; ++k)
            std::swap(result[to[0] + k], result[to[1] + k]);
        break;
      case loses_last_byte:
        if (out_counts[0] > 3) result[to[0] + out_counts[0] - 1] ^= 1;
        break;
      case fills_gaps:
        for (std::size_t p = 0; p < ranks; ++p)
          if (out_counts[p] % 4 != 0 && next_to(p, out_counts, to))
            result[to[p] + out_counts[p]] = 0;
        break;
      case writes_input:
        if (counts[0] > 0) const_cast<unsigned char*>(first)[from[0]] = 0;
        break;
      case truncates_at_64_kib:
        for (std::size_t p = 0; p < ranks; ++p)
          if (out_counts[p] > 65536) std::memset(result + to[p] + 65536, 0, out_counts[p] - 65536);
        break;
      case writes_behind:
        result[to[last_of(to)] + out_counts[last_of(to)]] = 0;
        break;
      case writes_before:
        result[-1] = 0;
        break;
      case writes_later:
        if (later_ != nullptr) *later_ = 0;
        later_ = out_counts[0] != 0 ? result + to[0] : nullptr;
        break;
      case late_by_one:
        // Delivers what the exchange before this one delivered there, if it was as long.
        for (std::size_t p = 0; p < ranks; ++p) {
          std::vector<unsigned char> now(result + to[p], result + to[p] + out_counts[p]);
          before_.resize(ranks);
          if (before_[p].size() == now.size() && !now.empty())
            std::memcpy(result + to[p], before_[p].data(), now.size());
          before_[p] = now;
        }
        break;
      default:
        break;
    }
  }

 private:
  // Whether the byte behind segment p is inside the buffer and in no segment.
  static bool next_to(std::size_t p, byte_counts counts, byte_counts to) {
    std::size_t const behind = to[p] + counts[p];
    bool inside = false;
    for (std::size_t q = 0; q < counts.size(); ++q) {
      if (to[q] <= behind && behind < to[q] + counts[q]) return false;
      inside = inside || to[q] > behind;
    }
    return inside;
  }

  static std::size_t last_of(byte_counts to) {
    return static_cast<std::size_t>(std::max_element(to.begin(), to.end()) - to.begin());
  }

  thread_communicator* comm_;
  mistake which_;
  std::vector<std::vector<unsigned char>> before_;
  unsigned char* later_ = nullptr;
  int calls_ = 0;
};

static_assert(expar::variable_communicator<flawed>);

// The answer of every rank.
std::vector<std::string> answers(int ranks, flawed::mistake which) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](thread_communicator& comm) {
    host_context const on;
    flawed bad(comm, which);
    said[static_cast<std::size_t>(comm.rank())] = broken_communicator_law(on, bad);
  });
  return said;
}

bool begins(std::string const& text, std::string const& with) {
  return text.compare(0, with.size(), with) == 0;
}

}  // namespace

TEST_CASE("broken_communicator_law: a communicator of one member function keeps them") {
  for (int ranks : {1, 2, 3, 5})
    for (auto const& law : answers(ranks, flawed::none)) CHECK(law == "");
}

TEST_CASE("broken_communicator_law: a broken law of a communicator is named on every rank") {
  struct expectation {
    flawed::mistake which;
    char const* law;
  };
  auto const [which, law] = GENERATE(values<expectation>({
      {flawed::swaps_blocks, "order: segment 0 on rank 0 comes from the rank whose rank() is 1"},
      {flawed::ignores_displacements_in, "segments: the segment from rank "},
      {flawed::ignores_displacements_out, "segments: the segment from rank "},
      {flawed::other_rank_order,
       "order: segment 0 on rank 0 comes from the rank whose rank() is 2"},
      {flawed::loses_last_byte, ""},
      {flawed::fills_gaps, "gaps: on rank "},
      {flawed::writes_input, "input: on rank "},
      {flawed::truncates_at_64_kib, "segments: the segment from rank "},
      {flawed::writes_behind, "gaps: on rank 0 a byte behind out is written"},
      {flawed::writes_before, "gaps: on rank 0 a byte before out is written"},
      {flawed::writes_later, "late: on rank 0 a byte is written after the end of its call"},
      {flawed::skips_small_exchanges, "nothing: the segment from rank 2 holds on rank 0 other"},
      {flawed::late_by_one, "segments: the segment from rank "},
      {flawed::says_rank_0, "order: segment "},
      {flawed::size_differs, "order: size() is 2 on rank 0 but 3 on rank 1"},
      {flawed::throws_on_one_rank, "order: the communicator throws on rank 1: no route to host"},
  }));
  auto const said = answers(3, which);
  CAPTURE(static_cast<int>(which), said);
  CHECK(said[0] != "");
  CHECK(begins(said[0], law));
  CHECK(said[1] == said[0]);
  CHECK(said[2] == said[0]);
}

TEST_CASE("broken_communicator_law: what is cut off above 64 KiB is missed on 1 and 2 ranks too") {
  for (int ranks : {1, 2})
    for (auto const& law : answers(ranks, flawed::truncates_at_64_kib))
      CHECK(law ==
            "segments: the segment from rank 0 holds on rank 0 other bytes than that rank sends");
}

TEST_CASE("broken_communicator_law: an order that is wrong is not used") {
  expar::run_ranks(3, [](thread_communicator& comm) {
    flawed bad(comm, flawed::swaps_blocks);
    std::string const law = broken_communicator_law(host_context(), bad);
    if (!begins(law, "order: ") || bad.calls() != 3)  // one for the order, two to agree
      throw std::runtime_error(law);
  });
}

TEST_CASE(
    "broken_communicator_law: a communicator that never returns is named on the ranks that wait") {
  // Its threads stay in it, so that it outlives the test.
  static host_context const on;
  static expar::detail::shared const group(
      new expar::detail::thread_group(2, std::chrono::seconds(5)));
  static auto& ranks =
      *new std::array{thread_communicator(group, 0), thread_communicator(group, 1)};
  static auto& comms = *new std::array{flawed(ranks[0], flawed::waits_for_ever),
                                       flawed(ranks[1], flawed::waits_for_ever)};
  std::vector<std::string> said(2);
  std::vector<std::thread> threads;
  for (std::size_t rank : {0u, 1u})
    threads.emplace_back([&said, rank] {
      said[rank] = broken_communicator_law(on, comms[rank], std::chrono::seconds(2));
    });
  for (auto& thread : threads) thread.join();
  CHECK(said[0] == "segments: the communicator does not return on rank 0 within 2000 ms");
  CHECK(said[1] == "segments: the communicator does not return on rank 1 within 2000 ms");
}

namespace {

// One rank that puts its work off, beyond the end of the law.
struct forgetful : expar::self_communicator {
  std::vector<std::pair<void*, std::size_t>> given;
  void all_to_all_v(host_context const&, void const*, byte_counts, byte_counts, void* out,
                    byte_counts out_counts, byte_counts) {
    given.emplace_back(out, out_counts[0]);
  }
};

// One rank that notes who calls it.
struct noting : expar::self_communicator {
  std::thread::id mutable caller;
  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    caller = std::this_thread::get_id();
    self_communicator::all_to_all_v(on, in, counts, from, out, out_counts, to);
  }
};

}  // namespace

TEST_CASE("broken_communicator_law: what a broken communicator was given stays alive") {
  forgetful comm;
  CHECK(broken_communicator_law(host_context(), comm) ==
        "order: segment 0 on rank 0 holds other bytes than a rank sends");
  REQUIRE(comm.given.size() == 3);
  for (auto [out, bytes] : comm.given) std::memset(out, 0, bytes);
}

TEST_CASE(
    "broken_communicator_law: only without a deadline the caller's thread is the one that calls") {
  noting comm;
  CHECK(broken_communicator_law(host_context(), comm) == "");
  CHECK(comm.caller != std::this_thread::get_id());
  CHECK(broken_communicator_law(host_context(), comm, std::chrono::milliseconds(0)) == "");
  CHECK(comm.caller == std::this_thread::get_id());
}

TEST_CASE("broken_communicator_law: a communicator whose numbers are wrong") {
  for (auto const& law : answers(3, flawed::rank_too_large))
    CHECK(law == "rank: rank() is 3; it lies in 0 .. size() - 1 = 2");
  for (auto const& law : answers(2, flawed::size_zero))
    CHECK(law == "rank: size() is 0; it is at least 1");
}

namespace {

// Fixed-size operations and windows, with one mistake each; all_to_all_v works.
class flawed_above {
 public:
  enum mistake {
    none,
    shows_own_segment,
    own_block_first,
    transposes_gather,
    writes_behind,
    own_memory,
    phase_throws,
    short_window
  };
  flawed_above(thread_communicator& comm, mistake which) : comm_(&comm), which_(which) {}

  int rank() const noexcept { return comm_->rank(); }
  int size() const noexcept { return comm_->size(); }
  void all_to_all_v(host_context const& on, void const* in, byte_counts n, byte_counts from,
                    void* out, byte_counts m, byte_counts to) {
    comm_->all_to_all_v(on, in, n, from, out, m, to);
  }
  template <class Read>
  void read_all_to_all_v(host_context const& on, void const* in, byte_counts n, byte_counts from,
                         byte_counts m, Read read) {
    comm_->read_all_to_all_v(on, in, n, from, m, [&](auto const& place_of) {
      read([&](int p) { return place_of(which_ == shows_own_segment && p == 0 ? rank() : p); });
    });
  }
  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) {
    comm_->all_to_all(on, in, out, bytes);
    auto const result = static_cast<unsigned char*>(out);
    auto const me = static_cast<std::size_t>(rank());
    if (which_ == own_block_first)
      for (std::size_t k = 0; k < bytes; ++k) std::swap(result[k], result[me * bytes + k]);
    if (which_ == writes_behind) result[bytes * static_cast<std::size_t>(size())] = 0;
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) {
    if (which_ == transposes_gather) {
      std::vector<unsigned char> blocks(bytes * static_cast<std::size_t>(size()));
      comm_->all_gather(on, in, blocks.data(), bytes);
      for (std::size_t i = 0; i < blocks.size(); ++i)
        static_cast<unsigned char*>(out)[i] = blocks[i % static_cast<std::size_t>(size()) * bytes +
                                                     i / static_cast<std::size_t>(size())];
    } else {
      comm_->all_gather(on, in, out, bytes);
    }
  }
  void barrier(host_context const& on) { comm_->barrier(on); }

  struct window {
    thread_communicator::window memory;
    mistake which;
    std::vector<std::byte> own;
    struct view_type {
      thread_communicator::window::view_type memory;
      std::byte* own;
      int rank() const { return memory.rank(); }
      int size() const { return memory.size(); }
      void* peer(int p, std::size_t offset) const {
        return own != nullptr ? own + offset : memory.peer(p, offset);
      }
    };
    std::size_t size_bytes() const { return memory.size_bytes(); }
    view_type view() const {
      return {memory.view(), which == own_memory ? const_cast<std::byte*>(own.data()) : nullptr};
    }
  };
  window allocate_window(std::size_t bytes) {
    return {comm_->allocate_window(which_ == short_window ? bytes + 1 : bytes), which_,
            std::vector<std::byte>(bytes)};
  }
  void exchange_phase(host_context const& on) {
    if (which_ == phase_throws) throw std::runtime_error("not today");
    comm_->exchange_phase(on);
  }

 private:
  thread_communicator* comm_;
  mistake which_;
};

static_assert(expar::window_communicator<flawed_above>);

// Collectives of a fixed size and nothing else.
struct fixed_alone {
  thread_communicator* comm;
  bool reversed;
  int size() const noexcept { return comm->size(); }
  int rank() const noexcept { return reversed ? size() - 1 - comm->rank() : comm->rank(); }
  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) {
    comm->all_to_all(on, in, out, bytes);
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) {
    comm->all_gather(on, in, out, bytes);
  }
  void barrier(host_context const& on) { comm->barrier(on); }
};

}  // namespace

namespace {

// Its tickets have one mistake each; all_to_all_v works.
struct flawed_tickets : flawed {
  enum mistake { none, returns_early };
  struct ticket {
    std::optional<expar::detail::thread_ticket> first;
    void wait() {
      if (first) first->wait();
    }
  };
  flawed_tickets(thread_communicator& comm, mistake which)
      : flawed(comm, flawed::none), comm_(comm), which_(which) {}

  ticket start_all_to_all_v(host_context const& on, void const* in, byte_counts counts,
                            byte_counts from, void* out, byte_counts out_counts, byte_counts to) {
    ticket t{comm_.start_all_to_all_v(on, in, counts, from, out, out_counts, to)};
    if (which_ == returns_early) kept_.push_back(std::move(t)), t.first.reset();
    return t;
  }

 private:
  expar::thread_ticket_communicator comm_;
  mistake which_;
  std::deque<ticket> kept_;
};

}  // namespace

TEST_CASE("broken_communicator_law: tickets are examined where a communicator brings them") {
  auto const [which, law] = GENERATE(values<std::pair<flawed_tickets::mistake, char const*>>(
      {{flawed_tickets::none, ""},
       {flawed_tickets::returns_early, "tickets: the segment from rank "}}));
  for (int const ranks : {1, 3}) {
    std::vector<std::string> said(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&, which = which](thread_communicator& comm) {
      flawed_tickets bad(comm, which);
      said[static_cast<std::size_t>(comm.rank())] = broken_communicator_law(host_context(), bad);
    });
    for (auto const& s : said) CHECK((which == flawed_tickets::none ? s == law : begins(s, law)));
  }
}

TEST_CASE("broken_communicator_law: tier 1 alone") {
  for (bool reversed : {false, true}) {
    std::vector<std::string> said(3);
    expar::run_ranks(3, [&](thread_communicator& ranks) {
      fixed_alone comm{&ranks, reversed};
      said[static_cast<std::size_t>(ranks.rank())] = broken_communicator_law(host_context(), comm);
    });
    for (auto const& law : said)
      CHECK(law ==
            (reversed ? "order: segment 0 on rank 0 comes from the rank whose rank() is 2" : ""));
  }
}

TEST_CASE("broken_communicator_law: tiers 1 and 3 are examined where a communicator brings them") {
  struct expectation {
    flawed_above::mistake which;
    char const* law;
  };
  auto const [which, law] = GENERATE(values<expectation>({
      {flawed_above::none, ""},
      {flawed_above::shows_own_segment, "in_place: the segment from rank 0 holds on rank "},
      {flawed_above::own_block_first,
       "all_to_all: the segment from rank 0 holds on rank 1 what rank 1 sends to rank 1"},
      {flawed_above::transposes_gather, "all_gather: the segment from rank "},
      {flawed_above::writes_behind, "all_to_all: on rank 0 a byte behind out is written"},
      {flawed_above::own_memory, "window: the segment from rank "},
      {flawed_above::phase_throws, "window: the communicator throws on rank 0: not today"},
      {flawed_above::short_window, "window: size_bytes() is 65 on rank 0 of a window of 64 bytes"},
  }));
  std::vector<std::string> said(3);
  // GCC and clang 14 differ on capturing what a structured binding names.
  auto const mistake = which;
  expar::run_ranks(3, [&said, mistake](thread_communicator& comm) {
    host_context const on;
    flawed_above bad(comm, mistake);
    said[static_cast<std::size_t>(comm.rank())] = broken_communicator_law(on, bad);
  });
  CAPTURE(static_cast<int>(which), said);
  CHECK(begins(said[0], law));
  CHECK(said[0].empty() == (which == flawed_above::none));
  CHECK(said[1] == said[0]);
  CHECK(said[2] == said[0]);
}

namespace {

// Says that it checks sizes, and tells ranks of it with one mistake.
class careless {
 public:
  enum mistake {
    none,
    tells_nobody,
    not_rank_1,
    by_another_error,
    writes_what_is_sent,
    does_not_recover,
    next_is_wrong,
    takes_one_kind_for_another
  };
  static constexpr expar::communicator_traits traits{.checks_sizes = true};

  careless(thread_communicator& comm, mistake which) : comm_(&comm), which_(which) {}

  int rank() const noexcept { return comm_->rank(); }
  int size() const noexcept { return comm_->size(); }

  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) {
    auto* const result = static_cast<unsigned char*>(out);
    bool const disagreed =
        tell([&] { comm_->all_to_all_v(on, in, counts, from, out, out_counts, to); },
             [&] {
               for (std::size_t p = 0; p < to.size(); ++p) result[to[p] + out_counts[p]] = 0;
             });
    if (!disagreed && which_ == next_is_wrong && before_ && out_counts[0] > 0) result[to[0]] ^= 1;
    before_ = disagreed;
  }
  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) {
    if (which_ == takes_one_kind_for_another) {
      auto const ranks = static_cast<std::size_t>(size());
      std::vector<std::size_t> const counts(ranks, bytes);
      std::vector<std::size_t> places;
      for (std::size_t p = 0; p < ranks; ++p) places.push_back(p * bytes);
      return comm_->all_to_all_v(on, in, counts, places, out, counts, places);
    }
    tell([&] { comm_->all_to_all(on, in, out, bytes); }, [] {});
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) {
    tell([&] { comm_->all_gather(on, in, out, bytes); }, [] {});
  }
  void barrier(host_context const& on) {
    tell([&] { comm_->barrier(on); }, [] {});
  }

 private:
  // Gives whether ranks disagree, unless it throws.
  template <class Call, class Overrun>
  bool tell(Call call, Overrun overrun) {
    if (dead_) throw std::runtime_error("dead");
    try {
      call();
      return false;
    } catch (expar::disagreement const& e) {
      before_ = true, dead_ = which_ == does_not_recover;
      if (which_ == writes_what_is_sent) overrun();
      if (which_ == tells_nobody || (which_ == not_rank_1 && rank() == 1)) return true;
      if (which_ == by_another_error) throw expar::error(e.what());
      throw;
    }
  }

  thread_communicator* comm_;
  mistake which_;
  bool before_ = false, dead_ = false;
};

}  // namespace

TEST_CASE("broken_communicator_law: one that checks sizes is held to it") {
  struct expectation {
    careless::mistake which;
    char const* law;
  };
  auto const [which, law] = GENERATE(values<expectation>({
      {careless::none, ""},
      {careless::tells_nobody,
       "checks_sizes: rank 0 sends 8 bytes to rank 1, which expects 4, and on rank 0 no "
       "disagreement is thrown"},
      {careless::not_rank_1,
       "checks_sizes: rank 0 sends 8 bytes to rank 1, which expects 4, and on rank 1 no "
       "disagreement is thrown"},
      {careless::by_another_error,
       "checks_sizes: the communicator throws on rank 0: expar: all_to_all_v: rank 0 sends 8 "
       "bytes to rank 1, which expects 4"},
      {careless::writes_what_is_sent, "checks_sizes: on rank 0 a byte "},
      {careless::does_not_recover, "checks_sizes: the communicator throws on rank 0: dead"},
      {careless::next_is_wrong, "checks_sizes: the segment from rank 0 holds on rank "},
      {careless::takes_one_kind_for_another,
       "checks_sizes: rank 2 calls all_to_all while all others call all_to_all_v, and on rank 0 no "
       "disagreement is thrown"},
  }));
  std::vector<std::string> said(3);
  auto const mistake = which;
  expar::run_ranks(3, [&said, mistake](thread_communicator& comm) {
    host_context const on;
    careless bad(comm, mistake);
    auto& mine = said[static_cast<std::size_t>(comm.rank())];
    mine = broken_communicator_law(on, bad);
  });
  CAPTURE(static_cast<int>(which), said);
  CHECK(begins(said[0], law));
  CHECK(said[0].empty() == (which == careless::none));
  if (which != careless::does_not_recover) {  // and cannot tell the others
    CHECK(said[1] == said[0]);
    CHECK(said[2] == said[0]);
  }
}

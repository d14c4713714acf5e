// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>

#include <expar/exchange/collectives.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// What went wrong on this rank, or nothing. It needs no memory, so that the lack of memory can be
/// told as well.
struct failure {
  static constexpr std::size_t room = 512;
  char text[room]{};
  explicit operator bool() const { return text[0] != '\0'; }
};

template <class Local>
failure failure_of(Local local) {
  failure f;
  try {
    local();
  } catch (error const& e) {
    std::snprintf(f.text, sizeof f.text, "%s", e.what());
  } catch (std::exception const& e) {
    std::snprintf(f.text, sizeof f.text, "expar: an exception: %s", e.what());
  } catch (...) {
    std::snprintf(f.text, sizeof f.text, "expar: an exception that is no std::exception");
  }
  return f;
}

/// Makes what fails on one rank fail on all. A rank that cannot go on must not leave the others
/// waiting for it, so ranks ask each other before rows travel: 8 bytes from each, in memory that is
/// there from the beginning.
class agreement {
 public:
  explicit agreement(std::pmr::memory_resource* memory)
      : counts_(memory), words_(memory), texts_(memory) {}

  void reserve(int ranks) {
    auto const n = static_cast<std::size_t>(ranks);
    counts_.reserve(ranks);
    words_.resize(n);
    texts_.resize(n * failure::room);
  }

  /// Collective. Runs `local`, which takes no part in anything collective; if it throws on any
  /// rank, all ranks throw what it says there.
  template <class Comm, class Local>
  void run(host_context const& ctx, Comm& comm, Local local) {
    if (comm.size() == 1) {
      local();
      return;
    }
    failure const mine = failure_of(local);
    std::uint64_t const word = mine ? 1 : 0;
    all_gather(ctx, comm, &word, words_.data(), sizeof word, counts_);
    for (std::uint64_t const theirs : words_)
      if (theirs != 0) fail(ctx, comm, mine);
  }

  /// Collective, once every rank knows that some rank failed: throws, on all ranks, the sentence of
  /// the lowest rank that has one, with its number.
  template <class Comm>
  [[noreturn]] void fail(host_context const& ctx, Comm& comm, failure const& mine) {
    all_gather(ctx, comm, mine.text, texts_.data(), failure::room, counts_);
    for (int r = 0; r < comm.size(); ++r)
      if (char const* const text = texts_.data() + index_t{r} * index_t{failure::room};
          *text != '\0')
        throw error(sentence(text, " (rank ", r, ")"));
    detail::fail("a rank failed without saying why");
  }

  fixed_counts& counts() { return counts_; }

 private:
  fixed_counts counts_;
  buffer<std::uint64_t> words_;
  buffer<char> texts_;
};

/// A number that all ranks must pass alike, and its name.
struct agreed_value {
  char const* name;
  double value;
};

/// Collective. Throws the same sentence on all ranks unless every rank passes the same values.
template <class Comm>
void expects_agreement(host_context const& ctx, Comm& comm, char const* what,
                       std::initializer_list<agreed_value> mine) {
  std::size_t const n = mine.size(), ranks = static_cast<std::size_t>(comm.size());
  buffer<double> values(ctx.memory());
  double* const all = values.resize((ranks + 1) * n);
  double* own = all + ranks * n;
  for (agreed_value const& v : mine) *own++ = v.value;
  all_gather(ctx, comm, all + ranks * n, all, n * sizeof(double));
  std::size_t field = 0;
  for (agreed_value const& v : mine) {
    for (std::size_t r = 1; r < ranks; ++r) {
      double const first = all[field], theirs = all[r * n + field];
      bool const both_nan = first != first && theirs != theirs;
      expects(theirs == first || both_nan, what, ": ", v.name, " is ", first, " on rank 0 but ",
              theirs, " on rank ", r, "; all ranks must pass the same");
    }
    ++field;
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace expar

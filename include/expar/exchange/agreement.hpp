// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>

#include <expar/detail/arithmetic.hpp>
#include <expar/exchange/collectives.hpp>

namespace expar::inline v0::detail {

/// What went wrong on this rank, or nothing. It needs no memory, so that the lack of memory can be
/// told as well.
struct failure {
  static constexpr std::size_t room = 512;
  char text[room]{};
  bool failed = false;
  explicit operator bool() const { return failed; }
};

template <class Local>
failure failure_of(Local local) {
  failure f;
  auto const say = [&f](char const* before, char const* text) {
    f.failed = true;
    std::snprintf(f.text, sizeof f.text, "%s%s", before, text);
  };
  try {
    local();
  } catch (error const& e) {
    say("", e.what());
  } catch (std::exception const& e) {
    say("expar: an exception: ", e.what());
  } catch (...) {
    say("expar: an exception that is no std::exception", "");
  }
  return f;
}

/// The steps in which ranks ask each other whether all can go on.
enum class step : std::uint8_t {
  failed,
  prepare,
  dispatch,
  combine,
  combine_backward,
  gradients_of_weights,
  dispatch_backward,
  place,
  quotas,
  gather_report,
  end
};
inline char const* name_of(step s) {
  // clang-format off
  constexpr char const* names[] = {
      "nothing", "prepare", "dispatch", "combine", "combine_backward", "combine_backward",
      "dispatch_backward", "place", "prepare with quotas", "gather_report", "the end of a phase"};
  // clang-format on
  return names[static_cast<int>(s)];
}

/// What a rank is about to do, in a word that ranks compare: a step, and the number of the batch,
/// which counts what ranks have agreed to prepare and so is the same on all. `object`: a number
/// that all ranks know the engine by.
struct intention {
  step what;
  std::uint64_t batch, object = 0;

  std::uint64_t word() const { return batch << 8 | static_cast<std::uint64_t>(what); }
  static intention of(std::uint64_t word) { return {static_cast<step>(word & 255), word >> 8}; }
};

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
  /// rank, all ranks throw what it says there. All throw as well if they intend other things.
  template <class Comm, class Local>
  void run(host_context const& ctx, Comm& comm, intention mine, Local local) {
    if (comm.size() == 1) {
      local();
      return;
    }
    failure const wrong = failure_of(local);
    std::uint64_t const word = wrong ? 0 : mine.word();
    all_gather(ctx, comm, &word, words_.data(), sizeof word, counts_);
    settle(ctx, comm, words_.data(), 1, wrong);
  }

  /// Collective, once this rank has the words of all, of each rank the first of `stride`: returns
  /// if all are the same and none is 0.
  template <class Comm>
  void settle(host_context const& ctx, Comm& comm, std::uint64_t const* words, index_t stride,
              failure const& wrong) {
    int const ranks = comm.size();
    for (int r = 0; r < ranks; ++r)
      if (words[r * stride] == 0) fail(ctx, comm, wrong);
    intention const first = intention::of(words[0]);
    for (int r = 1; r < ranks; ++r) {
      intention const theirs = intention::of(words[r * stride]);
      expects(words[r * stride] == words[0], "rank 0 calls ", name_of(first.what),
              " for its batch ", first.batch, " while rank ", r, " calls ", name_of(theirs.what),
              " for its batch ", theirs.batch,
              "; all ranks call the same operations in the same order");
    }
  }

  /// Collective, once every rank knows that some rank failed: throws, on all ranks, the sentence of
  /// the lowest rank that has one, with its number.
  template <class Comm>
  [[noreturn]] void fail(host_context const& ctx, Comm& comm, failure const& mine) {
    all_gather(ctx, comm, mine.text, texts_.data(), failure::room, counts_);
    for (int r = 0; r < comm.size(); ++r)
      if (char const* const text = texts_.data() + index_t{r} * index_t{failure::room};
          *text != '\0')
        throw error(sentence{text, " (rank ", r, ")"});
    detail::fail("a rank failed without saying why");
  }

  fixed_counts& counts() { return counts_; }

 private:
  fixed_counts counts_;
  buffer<std::uint64_t> words_;
  buffer<char> texts_;
};

/// What ranks told each other when they met: of each rank its intention, what the transport adds,
/// and `own` on what the operation adds. Holds until the second meeting after.
struct told {
  std::uint64_t const* words = nullptr;
  index_t pitch = 0, own = 0;  // words of a rank, and where the operation's begin

  std::uint64_t const* of(int rank) const { return words + rank * pitch; }
  index_t operator()(int rank, index_t word) const {
    return static_cast<index_t>(of(rank)[own + word]);
  }
};

/// Collective. agreement::run() where the words travel as the transport `x` sends them. Of a batch
/// `b`, the transport tells which sides are there; `say(own)` adds `count` words of the operation.
template <class X, class Batch, class Local, class Say>
told meet(host_context const& ctx, X& x, intention mine, Batch const* b, index_t count, Local local,
          Say say) {
  bool const alone = x.comm().size() == 1;
  failure wrong;
  if (alone)
    local();
  else
    wrong = failure_of(local);
  std::uint64_t* const own = x.own_words();
  told all{own, 0, b == nullptr ? 2 : x.words_before()};
  own[0] = wrong ? 0 : mine.word(), own[1] = mine.object;
  if (!wrong && b != nullptr) x.say_pieces(*b, own);
  if (!wrong) say(own + all.own);
  if (alone) return all;
  all.words = x.gather(ctx, all.own + count, all.pitch);
  x.agreed().settle(ctx, x.comm(), all.words, all.pitch, wrong);
  for (int r = 1; r < x.comm().size(); ++r)
    expects(all.of(r)[1] == all.of(0)[1], "rank 0 calls ", name_of(mine.what),
            " of one object while rank ", r, " calls it of another",
            "; all ranks call the same operations in the same order");
  return all;
}

template <class X, class Batch, class Local>
void meet(host_context const& ctx, X& x, intention mine, Batch const* b, Local local) {
  meet(ctx, x, mine, b, 0, local, [](std::uint64_t*) {});
}

/// A number that all ranks must pass alike, and its name.
struct agreed_value {
  char const* name;
  double value;
};

/// Collective. Throws the same sentence on all ranks unless every rank passes the same values and
/// none has failed to get its memory (`wrong`). Up to 64 ranks need none to ask.
template <class Comm>
void expects_agreement(host_context const& ctx, Comm& comm, char const* what,
                       std::initializer_list<agreed_value> mine, failure const& wrong = {}) {
  constexpr std::size_t most = 9, few = 64;
  std::size_t const n = mine.size(), ranks = static_cast<std::size_t>(comm.size());
  double own[most + 1] = {wrong ? 1.0 : 0.0}, of_few[few * (most + 1)];
  buffer<double> of_many(ctx.memory());
  double* const all = ranks <= few ? of_few : of_many.resize(ranks * (n + 1));
  std::size_t at = 1;
  for (agreed_value const& v : mine) own[at++] = v.value;
  all_gather(ctx, comm, own, all, (n + 1) * sizeof(double));
  for (std::size_t r = 0; r < ranks; ++r)
    expects(all[r * (n + 1)] < 1, what, ": rank ", r, " has no memory for it");
  std::size_t field = 1;
  for (agreed_value const& v : mine) {
    for (std::size_t r = 1; r < ranks; ++r) {
      double const first = all[field], theirs = all[r * (n + 1) + field];
      bool const both_nan = is_nan(first) && is_nan(theirs);
      expects((theirs <= first && theirs >= first) || both_nan, what, ": ", v.name, " is ", first,
              " on rank 0 but ", theirs, " on rank ", r, "; all ranks must pass the same");
    }
    ++field;
  }
}

}  // namespace expar::inline v0::detail

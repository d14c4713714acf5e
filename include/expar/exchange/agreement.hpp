// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <utility>

#include <expar/detail/arithmetic.hpp>
#include <expar/exchange/collectives.hpp>
#include <expar/exchange/failure.hpp>
#include <expar/exchange/word.hpp>

namespace expar::inline v0::detail {

template <class Comm>
constexpr bool checks_sizes = traits_of<Comm>().checks_sizes;

/// Makes what fails on one rank fail on all, with one sentence, and brings ranks together again
/// that are in different operations. In front of what ranks send each other stands a word; once one
/// of them cannot go on, or words differ, all ranks know it and settle() it.
///
/// On communicators that check sizes a rank that cannot go on, or is elsewhere, is found out by the
/// exchange itself. On others a call begins with words of equal size.
class agreement {
 public:
  explicit agreement(std::pmr::memory_resource* memory)
      : counts_(memory), words_(memory), records_(memory) {}

  void reserve(int ranks) {
    counts_.reserve(ranks);
    if (ranks > few) words_.resize(static_cast<std::size_t>(ranks));
    records_.resize(static_cast<std::size_t>(ranks));
  }
  fixed_counts& counts() { return counts_; }

  /// What this rank tells: what `local` throws, which takes no part in anything collective; or what
  /// failed behind an earlier message.
  template <class Local>
  failure attempt(Local local) {
    return late_ ? std::exchange(late_, {}) : failure_of(local);
  }
  /// Runs what follows a message. What it throws is told in the next message; behind the last of a
  /// call, with no `more`, it is thrown here at once, and by the next call on all ranks.
  template <class Local>
  void behind_message(Local local, bool more = false) {
    try {
      local();
    } catch (...) {
      late_ = current_failure();
      if (!more) throw;
    }
  }

  /// Collective: `call()`, in which ranks exchange words; word_of(r) finds that of rank r behind
  /// it. Returns when all words are `mine`, and throws the same sentence on all ranks where one has
  /// failed (`wrong`) or is elsewhere.
  template <class Comm, class Call, class WordOf>
  void hear(host_context const& ctx, Comm& comm, word& mine, failure const& wrong, Call call,
            WordOf word_of) {
    failure of_call;
    expects_alive();
    for (;;) {
      bool same = complete<Comm>(call, mine, of_call) && mine.intended != 0;
      for (int r = 0; same && r < comm.size(); ++r)
        same = r == comm.rank() || word_at(word_of(r)).matches(mine);
      if (same) return;
      settle(ctx, comm, mine, wrong ? wrong : of_call);
    }
  }
  /// Collective: `call()`, a collective without words.
  template <class Comm, class Call>
  void together(host_context const& ctx, Comm& comm, word mine, Call call) {
    failure wrong;
    expects_alive();
    while (!complete<Comm>(call, mine, wrong)) settle(ctx, comm, mine, wrong);
  }
  /// Collective: the words in which a call begins where the communicator does not check sizes.
  template <class Comm>
  void begin(host_context const& ctx, Comm& comm, word& mine, failure const& wrong) {
    if constexpr (!checks_sizes<Comm>) gather_words(ctx, comm, mine, wrong);
  }
  /// Collective: the words alone. Throws as hear() does.
  template <class Comm, class Local>
  void run(host_context const& ctx, Comm& comm, intention const& mine, Local local) {
    if (comm.size() == 1) return local();
    failure const wrong = attempt(local);
    word w = word_of(mine, wrong);
    gather_words(ctx, comm, w, wrong);
  }
  /// Collective: `count` numbers of each rank, of which the first are for its word. `begun`: ranks
  /// know already that all are here.
  template <class Comm>
  void gather(host_context const& ctx, Comm& comm, word& mine, failure const& wrong,
              std::uint64_t* own, std::uint64_t* all, index_t count, bool begun = false) {
    if (!begun) begin(ctx, comm, mine, wrong);
    hear(
        ctx, comm, mine, wrong,
        [&] {
          std::memcpy(own, &mine, sizeof mine);
          all_gather(ctx, comm, own, all, static_cast<std::size_t>(count) * sizeof *own, counts_);
        },
        [&](int r) { return all + r * count; });
  }

  static word word_of(intention const& mine, failure const& wrong) {
    word w;
    w.intended = wrong ? 0 : mine.packed(), w.object = mine.object;
    w.row_bytes = static_cast<std::uint64_t>(mine.row_bytes);
    return w;
  }

 private:
  static constexpr int few = 64;  // ranks, for whose words no memory is needed
  struct record {
    word said;
    char text[failure::room];
  };

  template <class Comm>
  void gather_words(host_context const& ctx, Comm& comm, word& mine, failure const& wrong) {
    std::uint64_t of_few[few * numbers_of_word];
    void* const all = comm.size() > few ? static_cast<void*>(words_.data()) : of_few;
    hear(
        ctx, comm, mine, wrong, [&] { all_gather(ctx, comm, &mine, all, sizeof mine, counts_); },
        [&](int r) { return static_cast<std::byte const*>(all) + r * index_t{sizeof mine}; });
  }

  /// Whether `call` went through. What a communicator throws that checks sizes becomes what this
  /// rank tells; from any other, nobody can know where the ranks are.
  template <class Comm, class Call>
  bool complete(Call call, word& mine, failure& wrong) {
    try {
      call();
      return true;
    } catch (lost_rank const&) {
      throw;
    } catch (disagreement const&) {
      if constexpr (!checks_sizes<Comm>) throw;
    } catch (...) {
      if constexpr (!checks_sizes<Comm>) {
        late_ = current_failure();
        throw;
      }
      if (!wrong) wrong = current_failure();
      mine.intended = 0;
    }
    return false;
  }

  /// Collective, once every rank knows that something is wrong. Throws the sentence of the lowest
  /// rank that has one, else that ranks do different things. Returns where they do the same after
  /// all, and have only come there by other ways; then all have the same new turn.
  template <class Comm>
  void settle(host_context const& ctx, Comm& comm, word& mine, failure const& wrong) {
    int const ranks = comm.size();
    record own{mine, {}};
    own.said.settles = 1;
    std::strcpy(own.text, wrong.text);
    records_.resize(static_cast<std::size_t>(ranks));
    // A rank that is still elsewhere comes here as well, after one more disagreement.
    for (int times = 0; !complete_gather(ctx, comm, own); ++times)
      if (times == 16 + 2 * ranks) dead_ = true, expects_alive();
    for (int r = 0; r < ranks; ++r)
      if (char const* const text = records_[r].text; *text != '\0')
        throw error(sentence{text, " (rank ", r, ")"});
    for (int r = 0; r < ranks; ++r)
      expects(records_[r].said.intended != 0, "a rank failed without saying why");
    for (int r = 1; r < ranks; ++r) expects_same(records_[0].said, records_[r].said, r);
    for (int r = 0; r < ranks; ++r)
      if (records_[r].said.turn > mine.turn) mine.turn = records_[r].said.turn;
    ++mine.turn;
  }
  /// A rank that could not tell the others what went wrong does not know what they have done since.
  void expects_alive() const { expects(!dead_, "ranks cannot agree on an operation"); }
  template <class Comm>
  bool complete_gather(host_context const& ctx, Comm& comm, record& own) {
    failure wrong;
    bool came =
        complete<Comm>([&] { all_gather(ctx, comm, &own, records_.data(), sizeof own, counts_); },
                       own.said, wrong);
    // What a rank elsewhere sends may be as large.
    for (int r = 0; came && r < comm.size(); ++r) came = records_[r].said.settles != 0;
    if (wrong && own.text[0] == '\0') std::strcpy(own.text, wrong.text);
    return came;
  }

  fixed_counts counts_;
  buffer<word> words_;
  buffer<record> records_;
  failure late_;
  bool dead_ = false;
};

/// A communicator that has lost a rank may still write the buffers that it was given.
template <class F, class... Buffers>
void keep_if_lost(F f, Buffers&... given) {
  try {
    f();
  } catch (lost_rank const&) {
    (given.abandon(), ...);
    throw;
  }
}

/// A number that all ranks must pass alike, and its name.
struct agreed_value {
  char const* name;
  double value;
};

/// Collective. Throws the same sentence on all ranks unless every rank passes the same values and
/// none has failed to get its memory (`wrong`). Up to 64 ranks need none to ask. Returns the `id`
/// that rank 0 passes.
template <class Comm>
std::uint64_t expects_agreement(host_context const& ctx, Comm& comm, agreement& agreed, step where,
                                char const* what, std::initializer_list<agreed_value> mine,
                                failure const& wrong = {}, std::uint64_t id = 0) {
  constexpr std::size_t before = numbers_of_word + 2, most = before + 9, few = 64;
  std::size_t const n = before + mine.size(), ranks = static_cast<std::size_t>(comm.size());
  std::uint64_t own[most] = {}, of_few[few * most];
  buffer<std::uint64_t> of_many(ctx.memory());
  std::uint64_t* const all = ranks <= few ? of_few : of_many.resize(ranks * n);
  own[before - 2] = id, own[before - 1] = static_cast<bool>(wrong);
  std::size_t at = before;
  for (agreed_value const& v : mine) own[at++] = std::bit_cast<std::uint64_t>(v.value);
  word w = agreement::word_of({where}, {});
  agreed.gather(ctx, comm, w, {}, own, all, static_cast<index_t>(n));
  for (std::size_t r = 0; r < ranks; ++r)
    expects(all[r * n + before - 1] == 0, what, ": rank ", r, " has no memory for it");
  std::size_t field = before;
  for (agreed_value const& v : mine) {
    double const first = std::bit_cast<double>(all[field]);
    for (std::size_t r = 1; r < ranks; ++r) {
      double const theirs = std::bit_cast<double>(all[r * n + field]);
      bool const both_nan = is_nan(first) && is_nan(theirs);
      expects((theirs <= first && theirs >= first) || both_nan, what, ": ", v.name, " is ", first,
              " on rank 0 but ", theirs, " on rank ", r, "; all ranks must pass the same");
    }
    ++field;
  }
  return all[before - 2];
}

}  // namespace expar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/agreement.hpp>

namespace expar::inline v0::detail {

/// What ranks told each other when they met: of each rank its word, what the transport adds, and
/// from `own` on what the operation adds. Holds until the second meeting after.
struct told {
  std::uint64_t const* numbers = nullptr;
  index_t pitch = 0, own = 0;  // numbers of a rank, and where the operation's begin

  std::uint64_t const* of(int rank) const { return numbers + rank * pitch; }
  word word_of(int rank) const { return word_at(of(rank)); }
  index_t operator()(int rank, index_t number) const {
    return static_cast<index_t>(of(rank)[own + number]);
  }
};

/// Collective. agreement::run() where the words travel as the transport `x` sends them. Of a batch
/// `b`, the transport tells which sides are there; `say(own)` adds `count` numbers of the
/// operation. On one rank `local` alone runs.
template <class X, class Batch, class Local, class Say>
told meet(host_context const& ctx, X& x, intention const& mine, Batch const* b, index_t count,
          Local local, Say say) {
  bool const alone = x.comm().size() == 1;
  failure const wrong = alone ? failure() : x.agreed().attempt(local);
  if (alone) local();
  std::uint64_t* const own = x.own_numbers();
  told all{own, 0, X::numbers_before};
  word w = agreement::word_of(mine, wrong);
  x.say(w, own, wrong ? nullptr : b);
  if (!wrong) say(own + all.own);
  if (alone)
    std::memcpy(own, &w, sizeof w);
  else
    all.numbers = x.gather(ctx, w, wrong, all.own + count, all.pitch);
  return all;
}

template <class X, class Batch, class Local>
void meet(host_context const& ctx, X& x, intention const& mine, Batch const* b, Local local) {
  meet(ctx, x, mine, b, 0, local, [](std::uint64_t*) {});
}

}  // namespace expar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/agreement.hpp>
#include <expar/exchange/segments.hpp>

namespace expar::inline v0::detail {

/// The message that a rank sends and the one that it gets at the same time.
template <class Comm>
class message_pair {
 public:
  explicit message_pair(std::pmr::memory_resource* memory)
      : outgoing(memory),
        incoming(memory),
        out(memory),
        in(memory),
        places(memory),
        words_(memory) {}

  segments outgoing, incoming;
  buffer<std::byte> out, in;
  buffer<std::byte*> places;  // where the segment of each rank begins

  void reserve(int ranks) {
    places.resize(index_t{ranks});
    for (segments* s : {&outgoing, &incoming}) s->reserve(ranks);
    words_.resize(2 * sizeof(word) * static_cast<std::size_t>(ranks));
  }
  /// `places` in the message out, which is to be filled.
  void point_out() { point(out.data(), outgoing); }

  /// What an exchange is, beside its steps.
  struct manner {
    bool begun;  // ranks know that all are here, and the sizes
    bool equal;  // all segments are as long as the first
    bool more;   // another message follows in this call
  };
  /// Collective. Runs local(ready), which fills the message out once it has called ready(), and
  /// exchanges messages; then behind(), which finds them at `places`: where their senders have
  /// them, if it reads them `InPlace`. `cut` divides both messages. Where nobody finds out that a
  /// rank is elsewhere ranks ask before, unless they have begun. A rank that does not get so far
  /// sends its word alone, which is no message. `agreed()` runs once all ranks have come.
  template <bool InPlace, class Cut, class Local, class Behind, class Agreed>
  void exchange(host_context const& ctx, Comm& comm, agreement& ranks_agree, intention const& mine,
                manner how, Cut cut, Local local, Behind behind, Agreed agreed) {
    int const ranks = comm.size();
    bool divided = false;
    auto const ready = [&] {
      if (!divided) cut();
      divided = true;
    };
    if (ranks == 1) {
      local(ready);
      agreed();
      return ranks_agree.behind_message(behind, how.more);
    }
    if (how.begun) ready();
    failure const wrong = ranks_agree.attempt([&] { local(ready); });
    std::byte *from = out.data(), *to = in.data();
    std::byte* const words = words_.data() + static_cast<std::size_t>(ranks) * sizeof(word);
    if (!divided) {
      outgoing.words_alone(ranks), incoming.words_alone(ranks);
      from = words_.data(), to = words;
    }
    auto w = agreement::word_of(mine, wrong);
    bool read = false;  // in place
    std::exception_ptr failed;
    auto const read_in_place = [&](auto const& place_of) {
      bool all = w.intended != 0;
      for (int r = 0; r < ranks; ++r) {
        if (r == comm.rank()) continue;
        places[r] = const_cast<std::byte*>(place_of(r));
        std::memcpy(words + unsigned_of(r) * sizeof w, places[r], sizeof w);
        all = all && word_at(places[r]).matches(w);
      }
      if (!all || std::exchange(read, true)) return;
      try {
        behind();
      } catch (...) {
        failed = std::current_exception();
      }
    };
    keep_if_lost(
        [&] {
          if (!how.begun) ranks_agree.begin(ctx, comm, w, wrong);
          ranks_agree.hear(
              ctx, comm, w, wrong,
              [&] {
                for (int p = 0; p < ranks; ++p)
                  if (outgoing.counts()[unsigned_of(p)] != 0)
                    std::memcpy(from + outgoing.displacements()[unsigned_of(p)], &w, sizeof w);
                if constexpr (InPlace)
                  comm.read_all_to_all_v(ctx, from, outgoing.counts(), outgoing.displacements(),
                                         incoming.counts(), read_in_place);
                else
                  swap(ctx, comm, ranks_agree, how.equal, from, to);
              },
              [&](int r) {
                return InPlace ? words + unsigned_of(r) * sizeof w
                               : to + incoming.displacements()[unsigned_of(r)];
              });
        },
        out, in);
    agreed();
    ranks_agree.behind_message(
        [&] {
          if (failed) std::rethrow_exception(failed);
          if (InPlace) return;
          point(to, incoming);
          behind();
        },
        how.more);
  }

 private:
  static constexpr std::size_t unsigned_of(int rank) { return static_cast<std::size_t>(rank); }
  void point(std::byte* base, segments const& s) {
    for (int p = 0; p < static_cast<int>(places.size()); ++p)
      places[p] = base + s.displacements()[unsigned_of(p)];
  }
  void swap(host_context const& ctx, Comm& comm, agreement& ranks_agree, bool equal,
            std::byte const* from, std::byte* to) {
    if constexpr (variable_communicator<Comm>)
      if (!equal) {
        comm.all_to_all_v(ctx, from, outgoing.counts(), outgoing.displacements(), to,
                          incoming.counts(), incoming.displacements());
        return;
      }
    all_to_all(ctx, comm, from, to, outgoing.counts()[0], ranks_agree.counts());
  }

  buffer<std::byte> words_;
};

}  // namespace expar::inline v0::detail

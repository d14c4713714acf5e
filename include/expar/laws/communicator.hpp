// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <expar/communicator.hpp>
#include <expar/exchange/ticket.hpp>
#include <expar/laws/detail/disagreement_laws.hpp>
#include <expar/laws/detail/guarded_bytes.hpp>

namespace expar::inline v0 {
namespace detail {

/// Runs the laws of one communicator in a fixed order. It stops early only where the ranks agree
/// to, so that all of them take part in the same operations whatever one of them finds.
template <class Comm, class Context>
class communicator_examiner {
  friend class disagreement_laws<communicator_examiner>;
  static constexpr bool has_v = variable_communicator<Comm, Context>;
  static constexpr bool has_fixed = native_collectives<Comm, Context>;
  static constexpr bool has_tickets = starting_communicator<Comm, Context>;
  static constexpr bool has_windows = window_communicator<Comm, Context>;

 public:
  communicator_examiner(Context const& on, Comm& comm)
      : on_(on), comm_(comm), rank_(comm.rank()), size_(comm.size()) {}

  void run() {
    attempt("rank", [&] { examine(); });
    done_ = true;
  }

  /// Waits for run() on another thread, as long as its calls return in time. Says whether they did.
  bool wait_for_run(std::chrono::milliseconds deadline) {
    using clock = std::chrono::steady_clock;
    auto since = clock::now();
    for (int seen = step_; !done_ && !given_up_;) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      if (int const step = step_; step != seen) seen = step, since = clock::now();
      given_up_ = clock::now() - since > deadline;
    }
    if (!done_)
      broken(doing_.load(), ": the communicator does not return on rank ", rank_, " within ",
             deadline.count(), " ms");
    return done_;
  }
  std::string answer() {
    std::lock_guard const lock(mutex_);
    return found_.text;
  }

 private:
  static constexpr int rounds = 8, one_long = 8, nothing = 9, one_byte = 10;
  static constexpr std::uint32_t seal = 0x6c617773u;

  /// What a rank found first; ranks exchange it as bytes.
  struct finding {
    std::uint32_t stamp = seal;
    int law = no_law, rank = 0;
    char text[error::room]{};
  };
  static constexpr int no_law = 1 << 30;

  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  std::size_t ranks() const { return at(size_); }

  void examine() {
    if (size_ < 1) return broken("rank: size() is ", size_, "; it is at least 1");
    if (rank_ < 0 || rank_ >= size_)
      return broken("rank: rank() is ", rank_, "; it lies in 0 .. size() - 1 = ", size_ - 1);
    if (comm_.rank() != rank_ || comm_.size() != size_)
      return broken("rank: rank() and size() do not change");
    // A law that is broken is not built upon: a wrong order, or a byte too many where null is next.
    if constexpr (has_v || has_fixed) {
      attempt("order", [&] { order(); });
      if (found_anywhere()) return;
    }
    if constexpr (has_v) {
      for (int round = 0; round < rounds; ++round)
        for (int data : {round, round + 2 * rounds})
          attempt("segments", [&] { segments("segments", round, data); });
      attempt("segments", [&] { segments("segments", one_long, one_long); });
      if (found_anywhere()) return;
      attempt("nothing", [&] { segments("nothing", nothing, nothing); });
      attempt("nothing", [&] { segments("nothing", one_byte, one_byte); });
      if (found_anywhere()) return;
      for (int round = 0; has_tickets && round < rounds; ++round)
        attempt("tickets", [&] { tickets(round); });
      if (found_anywhere()) return;
    }
    if constexpr (has_fixed) {
      int round = 0;
      for (unsigned bytes : {8u, 1u, 0u, 70001u, 64u, 3u, 1000u, 16u}) fixed(round++, bytes);
      if (found_anywhere()) return;
    }
    if constexpr (traits_of<Comm>().checks_sizes && (has_v || has_fixed)) {
      disagreement_laws<communicator_examiner>(*this).run();
      if (found_anywhere()) return;
    }
    if constexpr (has_windows) {
      // They live until the ranks agree: a rank whose phase throws may still be written to.
      std::vector<decltype(comm_.allocate_window(std::size_t{}))> memory;
      memory.reserve(2);
      for (std::size_t bytes : {std::size_t{64}, std::size_t{5000}}) window(memory, bytes);
      if (found_anywhere()) keep(std::move(memory));
    }
  }

  template <class T>
  T& keep(T object) {
    auto const kept = std::make_shared<T>(std::move(object));
    kept_.push_back(kept);
    return *kept;
  }
  template <class... Sizes>
  guarded_bytes& buffer(guarded_bytes::filling fill, Sizes... sizes) {
    buffers_.push_back(&keep(guarded_bytes(fill, sizes...)));
    return *buffers_.back();
  }

  template <class... Parts>
  void broken(Parts const&... parts) {
    std::lock_guard const lock(mutex_);
    if (found_.law != no_law) return;
    found_.law = step_, found_.rank = rank_;
    constexpr int room = sizeof found_.text - 1;
    std::snprintf(found_.text, sizeof found_.text, "%.*s", room, sentence{parts...}.c_str());
  }
  template <class F>
  bool attempt(char const* law, F f) {
    if (given_up_) return false;
    doing_ = law, ++step_;
    try {
      f();
      return true;
    } catch (std::exception const& e) {
      broken(law, ": the communicator throws on rank ", rank_, ": ", e.what());
    } catch (...) {
      broken(law, ": the communicator throws on rank ", rank_);
    }
    return false;
  }

  // Byte k of what `from` sends to `to`. At each k the bytes of all pairs differ (of up to 16
  // ranks), and the bytes of one pair are no shifted copy of another's.
  std::byte byte_of(int round, int from, int to, std::size_t k) const {
    auto const pair = static_cast<std::uint64_t>(from) * static_cast<std::uint64_t>(size_) +
                      static_cast<std::uint64_t>(to);
    std::uint64_t const where = k * 64 + static_cast<std::uint64_t>(round);
    return static_cast<std::byte>(static_cast<std::uint8_t>(mixed_byte(where) + pair));
  }
  // A quarter of the segments is empty. In the long round a rank sends itself and the next rank
  // more than 1 MiB: beyond every eager limit, and beyond 16 bits.
  std::size_t bytes_of(int round, int from, int to) const {
    auto const pair = static_cast<std::uint64_t>(round * 7919 + from * 104729 + to * 1299709);
    std::size_t const kind = mixed_byte(pair), more = mixed_byte(pair + 0x10000000);
    if (round == nothing) return 0;
    if (round == one_byte) return from == size_ - 1 && to == 0 ? 1 : 0;
    if (round == one_long && (to - from + size_) % size_ < 2) return margin(round) - more;
    return kind < 64 ? 0 : kind < 128 ? 1 + more % 8 : kind < 192 ? 1 + more : 16 * more + 3;
  }
  // No segment of a round is longer.
  static std::size_t margin(int round) { return round == one_long ? (1u << 20) + 4096 : 4096; }

  struct segment_list {
    std::vector<std::size_t> counts, displacements;
    std::size_t total = 0;
  };
  // Places the segments in an order that changes from round to round, with gaps between.
  segment_list const& lay_out(int round, bool sending) {
    bool const spread = round >= 1 && round <= one_long;
    segment_list s{std::vector<std::size_t>(ranks()), std::vector<std::size_t>(ranks()),
                   spread ? at(round % 3) : 0};
    for (int i = 0; i < size_; ++i) {
      int const peer = round % 2 == 0 ? i : (size_ - 1 - i + round) % size_;
      s.counts[at(peer)] = sending ? bytes_of(round, rank_, peer) : bytes_of(round, peer, rank_);
      s.displacements[at(peer)] = s.total;
      s.total += s.counts[at(peer)] + (spread ? at((peer * 5 + round) % 7) : 0);
    }
    return keep(std::move(s));
  }

  // Says what stands in a wrong segment: the bytes that another pair exchanged, if it is that.
  bool check_segment(char const* law, int round, int from, int to, std::byte const* got,
                     std::size_t bytes) {
    auto const holds = [&](int s, int r) {
      std::size_t k = 0;
      while (k < bytes && got[k] == byte_of(round, s, r, k)) ++k;
      return k == bytes;
    };
    if (holds(from, to)) return true;
    for (int s = 0; s < size_; ++s)
      for (int r = 0; r < size_; ++r)
        if (holds(s, r))
          broken(law, ": the segment from rank ", from, " holds on rank ", rank_, " what rank ", s,
                 " sends to rank ", r);
    broken(law, ": the segment from rank ", from, " holds on rank ", rank_,
           " other bytes than that rank sends");
    return false;
  }
  // `call` says whether it fills its segments. These are wiped where they are right, so that what
  // else is written stands out, now and later.
  template <class Call>
  void exchange(char const* law, char const* rest, int data, std::size_t margin,
                segment_list const& sent, segment_list const& got, bool gathers, Call call) {
    guarded_bytes& in = buffer(guarded_bytes::sent, sent.total, margin);
    guarded_bytes& out = buffer(guarded_bytes::received, got.total, margin);
    for (int p = 0; p < size_; ++p)
      for (std::size_t k = 0; k < sent.counts[at(p)]; ++k)
        in.data()[sent.displacements[at(p)] + k] = byte_of(data, rank_, gathers ? 0 : p, k);
    guarded_bytes const before = in;
    bool const fills = call(in.data(), out.data());
    if (in != before) broken("input: on rank ", rank_, " the communicator writes what it sends");
    in.wipe();
    for (int p = 0; p < size_; ++p) {
      std::byte* const first = out.data() + got.displacements[at(p)];
      if (!fills || check_segment(law, data, p, gathers ? 0 : rank_, first, got.counts[at(p)]))
        out.wipe(first, got.counts[at(p)]);
    }
    if (char const* const where = out.touched())
      broken(rest, ": on rank ", rank_, " a byte ", where, " out is written");
  }

  void order() {
    int const mine[2] = {rank_, size_};
    std::vector<std::byte> const all = gather(mine, sizeof mine);
    for (int p = 0; p < size_; ++p) {
      int theirs[2];
      std::memcpy(theirs, all.data() + at(p) * sizeof theirs, sizeof theirs);
      if (theirs[0] < 0 || theirs[0] >= theirs[1])
        broken("order: segment ", p, " on rank ", rank_, " holds other bytes than a rank sends");
      if (theirs[0] != p)
        broken("order: segment ", p, " on rank ", rank_, " comes from the rank whose rank() is ",
               theirs[0]);
      if (theirs[1] != size_)
        broken("order: size() is ", size_, " on rank ", rank_, " but ", theirs[1], " on rank ", p);
    }
  }

  void segments(char const* law, int round, int data) requires has_v {
    segment_list const &sent = lay_out(round, true), &got = lay_out(round, false);
    exchange(law, "gaps", data, margin(round), sent, got, false, [&](void const* in, void* out) {
      comm_.all_to_all_v(on_, sent.total == 0 ? nullptr : in, sent.counts, sent.displacements,
                         got.total == 0 ? nullptr : out, got.counts, got.displacements);
      return true;
    });
    if constexpr (reads_in_place<Comm>)
      exchange("in_place", "in_place", data, margin(round), sent, got, false,
               [&](void const* in, void* out) {
                 comm_.read_all_to_all_v(
                     on_, sent.total == 0 ? nullptr : in, sent.counts, sent.displacements,
                     got.counts, [&](auto const& place_of) {
                       for (int p = 0; p < size_; ++p)
                         if (std::size_t const n = got.counts[at(p)]; n != 0)
                           std::memcpy(static_cast<std::byte*>(out) + got.displacements[at(p)],
                                       place_of(p), n);
                     });
                 return true;
               });
  }

  // Two that are on their way at once, around one that is not. Half of the ranks wait for the
  // second first.
  void tickets(int round) {
    if constexpr (has_tickets) {
      auto const start = [&](void const* in, segment_list const& sent, void* out,
                             segment_list const& got) {
        return comm_.start_all_to_all_v(on_, sent.total == 0 ? nullptr : in, sent.counts,
                                        sent.displacements, got.total == 0 ? nullptr : out,
                                        got.counts, got.displacements);
      };
      int const next = round + 1 < rounds ? one_long - round % 2 : nothing;
      segment_list const &sent = lay_out(round, true), &got = lay_out(round, false);
      segment_list const &more = lay_out(next, true), &more_got = lay_out(next, false);
      exchange("tickets", "tickets", round, margin(round), sent, got, false,
               [&](void const* in, void* out) {
                 auto first = start(in, sent, out, got);
                 exchange("tickets", "tickets", next, margin(next), more, more_got, false,
                          [&](void const* in_next, void* out_next) {
                            auto second = start(in_next, more, out_next, more_got);
                            segments("tickets", round, round + 2 * rounds);
                            if (rank_ % 2 == 0) first.wait();
                            second.wait();
                            return true;
                          });
                 first.wait();
                 return true;
               });
    }
  }

  void fixed(int round, std::size_t bytes) requires has_fixed {
    segment_list const blocks = equal_blocks(bytes, bytes), copies = equal_blocks(bytes, 0);
    attempt("all_to_all", [&] {
      exchange("all_to_all", "all_to_all", round, bytes + 64, blocks, blocks, false,
               [&](void const* in, void* out) {
                 comm_.all_to_all(on_, in, out, bytes);
                 return true;
               });
    });
    attempt("all_gather", [&] {
      exchange("all_gather", "all_gather", round + rounds, bytes + 64, copies, blocks, true,
               [&](void const* in, void* out) {
                 comm_.all_gather(on_, in, out, bytes);
                 return true;
               });
    });
    attempt("barrier", [&] { comm_.barrier(on_); });
  }

  template <class Windows>
  void window(Windows& all, std::size_t bytes) {
    std::size_t const share = bytes / ranks();
    std::size_t const before = all.size();
    attempt("window", [&] { all.push_back(comm_.allocate_window(bytes)); });
    bool sound = all.size() > before;  // a rank without a window takes part in what follows
    std::vector<std::byte> reach(ranks());
    std::vector<std::byte> table(ranks() * ranks());
    if (sound) {
      auto const view = all.back().view();
      if (all.back().size_bytes() != bytes)
        broken("window: size_bytes() is ", all.back().size_bytes(), " on rank ", rank_,
               " of a window of ", bytes, " bytes");
      if (view.rank() != rank_ || view.size() != size_)
        broken("window: the view says rank ", view.rank(), " of ", view.size(), " on rank ", rank_,
               " of ", size_),
            sound = false;
      for (int p = 0; sound && p < size_; ++p) {
        auto* const first = static_cast<std::byte*>(view.peer(p, 0));
        reach[at(p)] = std::byte{first != nullptr};
        if (first != nullptr && view.peer(p, bytes - 1) != first + (bytes - 1)) {
          broken("window: on rank ", rank_, " the bytes of rank ", p, " do not follow each other");
          reach[at(p)] = std::byte{0};
        }
      }
      if (sound && reach[at(rank_)] == std::byte{0})
        broken("window: rank ", rank_, " cannot reach its own part");
    }
    attempt("window", [&] { table = gather(reach.data(), ranks()); });
    auto const block = [&](int p, int s) {
      return static_cast<std::byte*>(all.back().view().peer(p, at(s) * share));
    };
    bool ordered = true;  // what others do to a window comes before or after what this rank does
    for (int round = 0; round < 3; ++round) {
      for (int p = 0; p < size_; ++p)
        if (ordered && reach[at(p)] != std::byte{0})
          for (std::size_t k = 0; k < share; ++k) block(p, rank_)[k] = byte_of(round, rank_, p, k);
      ordered = attempt("window", [&] { comm_.exchange_phase(on_); }) && ordered;
      for (int p = 0; p < size_; ++p)
        if (ordered && reach[at(rank_)] != std::byte{0} &&
            table[at(p) * ranks() + at(rank_)] != std::byte{0})
          check_segment("window", round, p, rank_, block(rank_, p), share);
      ordered = attempt("window", [&] { comm_.exchange_phase(on_); }) && ordered;
    }
  }

  segment_list equal_blocks(std::size_t bytes, std::size_t step) const {
    segment_list s{std::vector<std::size_t>(ranks(), bytes), {}, step * (ranks() - 1) + bytes};
    for (std::size_t p = 0; p < ranks(); ++p) s.displacements.push_back(p * step);
    return s;
  }
  // Block s of the result is the `bytes` bytes at `mine` of rank s, if the communicator delivers
  // it.
  std::vector<std::byte> gather(void const* mine, std::size_t bytes) {
    guarded_bytes& in = buffer(guarded_bytes::sent, bytes * ranks());
    guarded_bytes& out = buffer(guarded_bytes::received, bytes * ranks());
    for (std::size_t p = 0; p < ranks(); ++p) std::memcpy(in.data() + p * bytes, mine, bytes);
    if constexpr (has_v) {
      segment_list const& all = keep(equal_blocks(bytes, bytes));
      comm_.all_to_all_v(on_, in.data(), all.counts, all.displacements, out.data(), all.counts,
                         all.displacements);
    } else {
      comm_.all_gather(on_, in.data(), out.data(), bytes);
    }
    std::vector<std::byte> const result(out.data(), out.data() + out.size());
    in.wipe(), out.wipe();
    return result;
  }

  // Every rank tells every other what it found, and takes the first. A communicator so broken that
  // findings get lost loses them in two rounds as well, and then each rank says what it knows.
  bool found_anywhere() {
    for (guarded_bytes const* b : buffers_)
      if (b->touched())
        broken("late: on rank ", rank_, " a byte is written after the end of its call");
    for (int round = 0; round < 2; ++round) {
      std::vector<std::byte> all(ranks() * sizeof(finding));
      attempt("order", [&] { all = gather(&found_, sizeof found_); });
      for (std::size_t p = 0; p < ranks(); ++p) {
        finding f;
        std::memcpy(&f, all.data() + p * sizeof f, sizeof f);
        f.text[sizeof f.text - 1] = '\0';
        std::lock_guard const lock(mutex_);
        if (f.stamp == seal &&
            (f.law < found_.law || (f.law == found_.law && f.rank < found_.rank)))
          found_ = f;
      }
    }
    return found_.law != no_law;
  }

  Context const& on_;
  Comm& comm_;
  int rank_, size_;
  finding found_;
  std::vector<std::shared_ptr<void>> kept_;  // what `comm` was given: a broken one may still use it
  std::vector<guarded_bytes*> buffers_;
  std::mutex mutex_;  // of found_: the thread that waits gives up while run() goes on
  std::atomic<char const*> doing_{""};
  std::atomic<int> step_{0};
  std::atomic<bool> done_{false}, given_up_{false};
};

/// Never frees it.
inline void keep_for_ever(std::shared_ptr<void> memory) {
  static std::mutex mutex;
  static auto& all = *new std::vector<std::shared_ptr<void>>;
  std::lock_guard const lock(mutex);
  all.push_back(std::move(memory));
}

}  // namespace detail

/// `broken_communicator_law(ctx, comm)`: empty if `comm` keeps the laws of a communicator, else the
/// law that it breaks and where:
///   rank        0 <= rank() < size(), and neither changes
///   order       segment s comes from the rank whose rank() is s; size() is the same on all ranks
///   segments    all_to_all_v delivers every byte, of segments of any size and order
///   gaps        it writes nothing before, between and behind the segments
///   input       it does not write what it sends
///   late        it writes nothing after it has returned
///   nothing     it works where a rank or all ranks send nothing, with null buffers
///   tickets     (where it brings them) exchanges that are on their way at once deliver every byte,
///               whatever ranks wait for first
///   all_to_all, all_gather
///               (where it brings them) block s comes from rank s; nothing else is written
///   in_place    (where it brings it) read_all_to_all_v shows every byte that all_to_all_v delivers
///   checks_sizes
///               (where its traits state it) ranks that send another size than is expected, or are
///               in another kind of collective, throw `disagreement`; nothing is written outside
///               the segments, and the next exchange works
///   window      (tier 3) after exchange_phase a rank sees what its peers wrote, in every phase
/// All of it happens several times, with other sizes and with other data of the same sizes. The
/// buffers lie between guard bytes, and those that a broken communicator was given are never freed.
/// Collective: every rank calls it, and every rank gets the same answer as far as a broken
/// communicator can carry one. A rank's buffers hold about 10 MB, and 0.5 MB for each rank. For
/// communicators of host memory.
///
/// It calls `comm` on a thread of its own, one call at a time (over MPI: MPI_THREAD_SERIALIZED),
/// and names a call that does not return within `deadline`. Its thread then stays in `comm`: keep
/// `ctx`, `comm` and what they use until the process ends, which it does without MPI_Finalize. A
/// `deadline` of 0 calls on the caller's thread, and waits for ever.
template <class Comm, class Context>
std::string broken_communicator_law(Context const& ctx, Comm& comm,
                                    std::chrono::milliseconds deadline = std::chrono::minutes(1)) {
  static_assert(communicator<Comm>,
                "expar: this type is not a communicator: rank() and size() return "
                "int and do not throw");
  static_assert(
      traits_of<Comm>().space != memory_space::device,
      "expar: the laws read and write buffers, so the communicator must work on host memory");
  auto const examiner = std::make_shared<detail::communicator_examiner<Comm, Context>>(ctx, comm);
  if (deadline == deadline.zero()) {
    examiner->run();
  } else {
    std::thread caller([examiner] { examiner->run(); });
    if (examiner->wait_for_run(deadline))
      caller.join();
    else
      caller.detach();
  }
  std::string const law = examiner->answer();
  if (!law.empty()) detail::keep_for_ever(examiner);
  return law;
}

}  // namespace expar::inline v0

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/comm/detail/thread_group.hpp>

namespace expar::inline v0 {

/// One rank of several that are threads of one process; run_ranks() makes them. All tiers: peers
/// read each other's buffers, so a byte is copied once. A light handle that owns its group with
/// others; use it on the thread of its rank.
///
/// Ranks that call different operations, or whose sizes differ, all throw `disagreement`, and can
/// go on. A rank that throws or returns while others wait for it makes them throw `lost_rank`; so
/// does one that neither comes nor leaves, after the deadline of run_ranks(). Then every later call
/// throws that, also where the rank comes after all; survivors go on with without(). While a peer
/// copies from a buffer of this rank, it is waited for without a deadline.
class thread_communicator {
  friend class thread_ticket_communicator;
  using group = detail::thread_group;

 public:
  static constexpr communicator_traits traits{.checks_sizes = true};

  thread_communicator(detail::shared<detail::thread_group> ranks, int rank) noexcept
      : group_(std::move(ranks)), rank_(rank) {}

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return group_->size(); }

  /// This rank in the group of all ranks but `lost`, in the same order and with the same deadline:
  /// one group, however often they ask for it, before or after `lost` is lost. Waits for none of
  /// them. One that does not come is lost to those who call the group, and they can go on without
  /// it in turn. It lives as long as somebody uses it or this group. Allocates.
  thread_communicator without(int lost) const {
    detail::expects(lost >= 0 && lost < size(), "without: lost is ", lost,
                    "; it lies between 0 and ", size() - 1);
    detail::expects(lost != rank_, "without: lost is ", lost, ", the rank that calls it");
    return {group_->without(lost), lost < rank_ ? rank_ - 1 : rank_};
  }

  void barrier(host_context const&) const { group_->begin(rank_, "barrier", {}); }

  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    fixed(on, "all_to_all", in, out, bytes, bytes);
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    fixed(on, "all_gather", in, out, bytes, 0);
  }

  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    swap(
        on, "all_to_all_v", {.in = in, .counts = counts, .displacements = from},
        [&](int peer, group::slot const& theirs) -> block {
          auto const p = static_cast<std::size_t>(peer), me = static_cast<std::size_t>(rank_);
          return {theirs.displacements[me], to[p], theirs.counts[me], out_counts[p]};
        },
        out);
  }

  /// all_to_all_v() without a copy: read(place_of) finds what `peer` sends at place_of(peer), while
  /// all ranks read.
  template <class Read>
  void read_all_to_all_v(host_context const&, void const* in, byte_counts counts, byte_counts from,
                         byte_counts out_counts, Read read) const {
    meet("all_to_all_v", {.in = in, .counts = counts, .displacements = from}, [&](auto& found) {
      auto const me = static_cast<std::size_t>(rank_);
      for (int peer = 0; peer < size(); ++peer)
        if (auto const sent = group_->at(peer).counts[me],
            expected = out_counts[static_cast<std::size_t>(peer)];
            sent != expected)
          found = {peer, sent, expected, false};
      if (found.sender >= 0) return;
      read([&](int peer) -> std::byte const* {
        group::slot const& theirs = group_->at(peer);
        return static_cast<std::byte const*>(theirs.in) + theirs.displacements[me];
      });
    });
  }

  /// Memory of `bytes` bytes on each rank that all ranks can write. Zero at first, by the rank
  /// itself. It stays until the last rank has destroyed its window, which may be after the group.
  using window = detail::thread_window;

  /// Collective.
  window allocate_window(std::size_t bytes) const {
    constexpr char const* name = "allocate_window";
    std::vector<detail::window_line> part;
    group::slot mine{.bytes = bytes};
    try {
      part.resize(bytes / sizeof part[0] + (bytes % sizeof part[0] != 0));
      if (rank_ == 0) mine.window = detail::shared(new detail::window_memory(size()));
    } catch (std::exception const&) {
      mine.failed = true;
    }
    group_->begin(rank_, name, std::move(mine));
    int odd = 0, failed = -1;
    for (int p = size() - 1; p >= 0; --p) {
      if (group_->at(p).bytes != group_->at(0).bytes) odd = p;
      if (group_->at(p).failed) failed = p;
    }
    std::size_t const first = group_->at(0).bytes, other = group_->at(odd).bytes;
    window made;
    if (odd == 0 && failed < 0) made = window(group_->at(0).window, rank_, std::move(part), bytes);
    group_->end(rank_, name, group::patience::until_deadline);
    // Not where a rank is lost, for that one may still come for it.
    if (rank_ == 0) group_->at(0).window = {};
    if (odd != 0)
      detail::fail<disagreement>(name, ": bytes is ", first, " on rank 0 but ", other, " on rank ",
                                 odd, "; all ranks must pass the same");
    detail::expects(failed < 0, name, ": rank ", failed, " has no memory for ", first, " bytes");
    return made;
  }
  void exchange_phase(host_context const&) const { group_->begin(rank_, "exchange_phase", {}); }

 private:
  struct block {
    std::size_t from, to, sent, expected;
  };

  void fixed(host_context const& on, char const* name, void const* in, void* out, std::size_t bytes,
             std::size_t step) const {
    swap(
        on, name, {.in = in, .bytes = bytes},
        [&](int peer, group::slot const& theirs) -> block {
          return {static_cast<std::size_t>(rank_) * step, static_cast<std::size_t>(peer) * bytes,
                  theirs.bytes, bytes};
        },
        out);
  }

  template <class Block>
  void swap(host_context const& on, char const* name, group::slot mine, Block blocks,
            void* out) const {
    meet(name, std::move(mine), [&](auto& found) {
      for (int step = 0; step < size(); ++step) {
        int const peer = (rank_ + step) % size();
        group::slot const& theirs = group_->at(peer);
        block const b = blocks(peer, theirs);
        if (b.sent != b.expected)
          found = {peer, b.sent, b.expected, false};
        else if (b.sent != 0)
          copy(on, static_cast<std::byte*>(out) + b.to,
               static_cast<std::byte const*>(theirs.in) + b.from, b.sent);
      }
    });
  }
  // Every rank shows its buffer, takes what is its own once all have begun, and waits for all. A
  // disagreement is thrown after the end, by every rank: until then a peer may be reading this
  // rank's buffer.
  template <class Take>
  void meet(char const* name, group::slot mine, Take take) const {
    group_->begin(rank_, name, std::move(mine));
    auto& found = group_->found(rank_) = {};
    std::exception_ptr failure;
    try {
      take(found);
    } catch (...) {
      failure = std::current_exception();
      found.stopped = true;
    }
    group_->end(rank_, name, group::patience::unlimited);
    if (failure) std::rethrow_exception(failure);
    for (int rank = 0; rank < size(); ++rank) {
      auto const& wrong = group_->found(rank);
      detail::expects(!wrong.stopped, name, ": rank ", rank, " could not copy what it was sent");
      if (wrong.sender >= 0)
        detail::fail<disagreement>(name, ": rank ", wrong.sender, " sends ", wrong.sent,
                                   " bytes to rank ", rank, ", which expects ", wrong.expected);
    }
  }
  static void copy(host_context const& on, std::byte* to, std::byte const* from,
                   std::size_t bytes) {
    on.for_each_chunk(
        static_cast<index_t>(bytes), index_t{1} << 20, [&](int, index_t first, index_t last) {
          std::memcpy(to + first, from + first, static_cast<std::size_t>(last - first));
        });
  }

  detail::shared<detail::thread_group> group_;
  int rank_;
};

static_assert(window_communicator<thread_communicator> &&
              variable_communicator<thread_communicator>);

namespace detail {

/// Makes `group`, and runs body(0) .. body(ranks - 1), each on a thread of its own, if all of that
/// can be had.
inline void run_threads(int ranks, std::chrono::milliseconds deadline, shared<thread_group>& group,
                        task body) {
  std::atomic<int> gate{0};  // 1: all run, -1: none
  auto const run = [&](int rank) {
    gate.wait(0);
    if (gate > 0) body(rank);
  };
  std::vector<std::thread> threads;
  std::exception_ptr failure;
  try {
    for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
    group = shared(new thread_group(ranks, deadline));
  } catch (...) {
    failure = std::current_exception();
  }
  gate = failure ? -1 : 1;
  gate.notify_all();
  for (auto& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace detail

/// Runs f(thread_communicator&) on `ranks` threads, one per rank, and returns when all have ended.
/// Rethrows the exception that came first; the ranks that were waiting for that one end too. An
/// exception counts even if the other ranks go on without that rank to a good end, a rank that
/// returns does not. Throws, and calls nothing, if so many threads cannot be had.
template <class F>
void run_ranks(int ranks, F&& f, std::chrono::milliseconds deadline = std::chrono::minutes(10)) {
  detail::expects(ranks >= 1, "run_ranks: ranks is ", ranks, "; at least 1 is needed");
  detail::shared<detail::thread_group> group;
  auto body = [&](int rank) {
    std::exception_ptr failure;
    try {
      thread_communicator comm(group, rank);
      f(comm);
    } catch (...) {
      failure = std::current_exception();
    }
    group->roster().leave(rank, failure);
  };
  try {
    detail::run_threads(ranks, deadline, group, task(body));
  } catch (std::exception const& e) {
    detail::fail("run_ranks: ranks is ", ranks, ", more than can be had: ", e.what());
  }
  if (auto const first = group->roster().first_failure()) std::rethrow_exception(first);
}

}  // namespace expar::inline v0

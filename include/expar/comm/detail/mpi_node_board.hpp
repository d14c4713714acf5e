// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <thread>  // and with it durations and clocks
#include <vector>

#include <expar/comm/detail/mpi_node_memory.hpp>
#include <expar/error.hpp>

namespace expar::inline v0::detail {

/// Where the ranks of one machine meet, and what each shows the others there: what it is in (its
/// head, and numbers for each peer) and bytes. Each has two places for that in turn, which nobody
/// writes again before all have come to the next meeting, and so have read them.
///
/// A rank comes by counting up its own word, and looks at those of the others. Who gives up on one
/// marks the word of that one, by which it can never come any more: either all ranks pass a meeting
/// or none does, and a process may end at any place.
class node_board {
 public:
  using number = std::uint64_t;
  struct head {
    number call = 0, bytes = 0, longest = 0;
  };

  /// In `map`, a part of the memory of bytes_for() so many ranks. `members`: the number that each
  /// rank has in the memory.
  node_board(std::shared_ptr<node_memory> memory, node_mapping map, std::vector<int> members,
             std::size_t rank, std::chrono::milliseconds deadline)
      : memory_(std::move(memory)),
        members_(std::move(members)),
        rank_(rank),
        deadline_(deadline),
        at_(size()),
        map_(std::move(map)) {}
  static std::size_t bytes_for(std::size_t ranks) { return places(ranks).end; }

  /// The ranks without one: the same board for all that ask, who wait for nobody.
  node_board without(std::size_t lost) const {
    auto& place = *map_.at<counter>(at_.others + lost * sizeof(counter));
    number offset = place.load(std::memory_order_acquire);
    int error = 0;
    if (offset == 0) {
      std::size_t made = 0;
      error = memory_->take(bytes_for(size() - 1), made);
      if (error == 0 && place.compare_exchange_strong(offset, made, std::memory_order_acq_rel))
        offset = made;
    }
    node_mapping map;
    if (error == 0) error = map.map(memory_->file(), offset, bytes_for(size() - 1));
    expects(error == 0, "without: no memory to share (error ", error, ")");
    auto rest = members_;
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(lost));
    return {memory_, std::move(map), std::move(rest), rank_ - (rank_ > lost), deadline_};
  }

  std::size_t size() const noexcept { return members_.size(); }
  std::size_t rank() const noexcept { return rank_; }
  node_memory const& memory() const noexcept { return *memory_; }
  int process(std::size_t rank) const noexcept { return memory_->process(members_[rank]); }

  /// What rank `r` showed at the last meeting; this one, what it shows at the next.
  head& shown(std::size_t r) { return line_of(r).heads[turn()]; }
  number* numbers(std::size_t r) {
    return map_.at<number>(at_.numbers + (2 * r + turn()) * 2 * size() * sizeof(number));
  }
  std::byte* bytes(std::size_t r) {
    return map_.begin() + at_.bytes + (2 * r + turn()) * size() * at_.room;
  }
  /// Bytes for each peer.
  std::size_t room() const noexcept { return at_.room; }

  /// Begins an operation: throws if a rank is lost. From here on shown(rank()) and the like are
  /// those of the next meeting.
  void begin(char const* operation) {
    operation_ = operation;
    if (lost_) throw *lost_;
    if (fault().load(std::memory_order_relaxed) != 0) lose();
    next();
  }
  /// The same for one more meeting of an operation.
  void next() { coming_ = (line_of(rank_).word.load(std::memory_order_relaxed) >> 1) + 1; }
  /// Returns when all have come, or throws lost_rank.
  void meet() {
    number before = (coming_ - 1) << 1;
    auto& own = line_of(rank_).word;
    if (!own.compare_exchange_strong(before, coming_ << 1, std::memory_order_acq_rel)) lose();
    waited waits;
    for (std::size_t step = 1; step < size(); ++step) {
      std::size_t const peer = rank_ + step < size() ? rank_ + step : rank_ + step - size();
      auto const& word = line_of(peer).word;
      int spin = 0;
      while (word.load(std::memory_order_acquire) >> 1 < coming_ && ++spin < spins) relax();
      if (spin == spins) await(peer, waits);
    }
  }

 private:
  using clock = std::chrono::steady_clock;
  using counter = node_memory::counter;
  // The word: how often the rank has come, and in the lowest bit whether it is lost. One line of a
  // cache, but processors fetch them in pairs.
  struct alignas(128) line {
    counter word;
    head heads[2];
  };
  struct places {
    std::size_t room, others, lines, numbers, bytes, end;
    explicit places(std::size_t n)
        : room(std::clamp<std::size_t>((std::size_t{1} << 20) / n / 64 * 64, 4096, 1 << 16)),
          others(sizeof(counter)),
          lines((others + n * sizeof(counter) + alignof(line) - 1) / alignof(line) * alignof(line)),
          numbers(lines + n * sizeof(line)),
          bytes(node_pages(numbers + 4 * n * n * sizeof(number))),
          end(bytes + 2 * n * n * room) {}
  };
  struct waited {
    clock::time_point begun{};
    long times = 0;
  };
  static constexpr int spins = 32;

  static void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
  std::size_t turn() const noexcept {
    return coming_ % 2;
  }
  line& line_of(std::size_t r) const noexcept {
    return *map_.at<line>(at_.lines + r * sizeof(line));
  }
  // Of the rank that is lost: 2 * (rank + 1), and one more where it has left; or 0.
  counter& fault() const noexcept {
    return *map_.at<counter>(0);
  }

  [[gnu::noinline]] void await(std::size_t peer, waited& w) {
    auto& word = line_of(peer).word;
    if (w.times == 0) w.begun = clock::now();
    for (;; ++w.times) {
      number seen = word.load(std::memory_order_acquire);
      if (seen >> 1 >= coming_) return;
      if ((seen & 1) != 0) lose(2 * (peer + 1));
      bool const sleeps = w.times > patient, asks = w.times % 64 == 63;
      if (sleeps || asks) {
        bool const late = clock::now() - w.begun >= deadline_;
        bool const left = sleeps && asks && memory_->has_left(members_[peer]);
        if ((late || left) && word.compare_exchange_strong(seen, seen | 1))
          lose(2 * (peer + 1) + left);
      }
      if (sleeps)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      else
        std::this_thread::yield();
    }
  }
  static constexpr long patient = 4096;

  // One that sees the mark before the fault names the rank as well.
  [[noreturn, gnu::cold]] void lose(number mine) {
    number first = 0;
    fault().compare_exchange_strong(first, mine);
    lose();
  }
  [[noreturn, gnu::cold]] void lose() {
    number why = fault().load();
    if (why == 0) lose(2 * (rank_ + 1));  // this rank is marked
    number const peer = why / 2 - 1;
    if (why % 2 != 0)
      lost_.emplace(static_cast<int>(peer), sentence("expar: ", operation_, ": rank ", peer,
                                                     " has left and will not come"));
    else
      lost_.emplace(static_cast<int>(peer),
                    sentence("expar: ", operation_, ": rank ", peer, " did not come within ",
                             deadline_.count(), " ms"));
    throw *lost_;
  }

  std::shared_ptr<node_memory> memory_;
  std::vector<int> members_;
  std::size_t rank_;
  std::chrono::milliseconds deadline_;
  places at_;
  node_mapping map_;
  number coming_ = 0;
  char const* operation_ = "";
  std::optional<lost_rank> lost_;
};

}  // namespace expar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include <expar/communicator.hpp>

namespace expar::inline v0 {
namespace detail {

/// A byte that depends on all bits of x.
inline std::uint8_t mixed_byte(std::uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<std::uint8_t>(x >> 56);
}

/// Runs the laws of one communicator in a fixed order. It never stops early, so that all ranks take
/// part in the same operations whatever one of them finds.
template <class Comm, class Context>
class communicator_examiner {
  static constexpr bool has_v = variable_communicator<Comm, Context>;
  static constexpr bool has_fixed = native_collectives<Comm, Context>;
  static constexpr bool has_windows = window_communicator<Comm, Context>;
  static constexpr std::byte untouched{0xA5};

 public:
  communicator_examiner(Context const& on, Comm& comm)
      : on_(on), comm_(comm), rank_(comm.rank()), size_(comm.size()) {}

  std::string run() {
    if (size_ < 1) return sentence{"rank: size() is ", size_, "; it is at least 1"}.c_str();
    if (rank_ < 0 || rank_ >= size_)
      return sentence{"rank: rank() is ", rank_, "; it lies in 0 .. size() - 1 = ", size_ - 1}
          .c_str();
    if (comm_.rank() != rank_ || comm_.size() != size_)
      return "rank: rank() and size() do not change";
    if constexpr (has_v) {
      attempt("order", [&] { order(); });
      for (int round = 0; round < rounds; ++round)
        for (int data : {round, round + 2 * rounds})
          attempt("segments", [&] { segments(round, data); });
      attempt("nothing", [&] { nothing(); });
      attempt("nothing", [&] { one_byte(); });
    }
    if constexpr (has_fixed)
      for (int round = 0; round < rounds; ++round) {
        attempt("all_to_all", [&] { fixed_all_to_all(round, fixed_bytes(round)); });
        attempt("all_gather", [&] { fixed_all_gather(round, fixed_bytes(round)); });
        attempt("barrier", [&] { comm_.barrier(on_); });
      }
    if constexpr (has_windows) {
      // They live until the ranks agree: a rank whose phase throws may still be written to.
      std::vector<decltype(comm_.allocate_window(std::size_t{}))> memory;
      memory.reserve(2);
      for (std::size_t bytes : {std::size_t{64}, std::size_t{5000}}) window(memory, bytes);
      return agree();
    } else {
      return agree();
    }
  }

 private:
  static constexpr int rounds = 8;
  static constexpr std::uint32_t seal = 0x6c617773u;

  /// What a rank found first; ranks exchange it as bytes.
  struct finding {
    std::uint32_t stamp = seal;
    int law = no_law, rank = 0;
    char text[240]{};
  };
  static constexpr int no_law = 1 << 30;

  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  std::size_t ranks() const { return at(size_); }

  template <class... Parts>
  void broken(Parts const&... parts) {
    if (found_.law != no_law) return;
    found_.law = step_, found_.rank = rank_;
    std::snprintf(found_.text, sizeof found_.text, "%s", sentence{parts...}.c_str());
  }
  template <class F>
  bool attempt(char const* law, F f) {
    ++step_;
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
  // A quarter of the segments is empty; one round has segments beyond every eager limit.
  static std::size_t bytes_of(int round, int from, int to) {
    auto const pair = static_cast<std::uint64_t>(round * 7919 + from * 104729 + to * 1299709);
    std::size_t const kind = mixed_byte(pair), more = mixed_byte(pair + 0x10000000);
    if (kind < 64) return 0;
    if (round == 3 && kind < 128) return 70001 + more;
    return kind < 128 ? 1 + more % 8 : kind < 192 ? 1 + more : 16 * more + 3;
  }
  static std::size_t fixed_bytes(int round) {
    constexpr std::size_t sizes[rounds] = {8, 1, 0, 40007, 64, 3, 1000, 16};
    return sizes[round];
  }

  struct segment_list {
    std::vector<std::size_t> counts, displacements;
    std::size_t total = 0;
  };
  // Places the segments in an order that changes from round to round, with gaps between.
  segment_list lay_out(int round, bool sending) const {
    segment_list s{std::vector<std::size_t>(ranks()), std::vector<std::size_t>(ranks()),
                   at(round % 3)};
    for (int i = 0; i < size_; ++i) {
      int const peer = round % 2 == 0 ? i : (size_ - 1 - i + round) % size_;
      s.counts[at(peer)] = sending ? bytes_of(round, rank_, peer) : bytes_of(round, peer, rank_);
      s.displacements[at(peer)] = s.total;
      s.total += s.counts[at(peer)] + (round == 0 ? 0 : at((peer * 5 + round) % 7));
    }
    return s;
  }

  // Says what stands in a wrong segment: the bytes that another pair exchanged, if it is that.
  void wrong_segment(char const* law, int round, int from, std::byte const* got,
                     std::size_t bytes) {
    for (int s = 0; s < size_; ++s)
      for (int r = 0; r < size_; ++r) {
        std::size_t k = 0;
        while (k < bytes && got[k] == byte_of(round, s, r, k)) ++k;
        if (k == bytes)
          return broken(law, ": the segment from rank ", from, " holds on rank ", rank_,
                        " what rank ", s, " sends to rank ", r);
      }
    broken(law, ": the segment from rank ", from, " holds on rank ", rank_,
           " other bytes than that rank sends");
  }
  void check_segment(char const* law, int round, int from, int to, std::byte const* got,
                     std::size_t bytes) {
    for (std::size_t k = 0; k < bytes; ++k)
      if (got[k] != byte_of(round, from, to, k)) return wrong_segment(law, round, from, got, bytes);
  }

  void order() requires has_v {
    std::vector<std::size_t> const counts(ranks(), 2 * sizeof(int));
    std::vector<std::size_t> places(ranks());
    for (int p = 0; p < size_; ++p) places[at(p)] = at(p) * 2 * sizeof(int);
    std::vector<int> in(2 * ranks()), out(2 * ranks(), -1);
    for (int p = 0; p < size_; ++p) in[2 * at(p)] = rank_, in[2 * at(p) + 1] = size_;
    comm_.all_to_all_v(on_, in.data(), counts, places, out.data(), counts, places);
    for (int p = 0; p < size_; ++p) {
      int const said = out[2 * at(p)], size = out[2 * at(p) + 1];
      if (said != p)
        broken("order: segment ", p, " on rank ", rank_, " comes from the rank whose rank() is ",
               said);
      if (size != size_)
        broken("order: size() is ", size_, " on rank ", rank_, " but ", size, " on rank ", p);
    }
  }

  void segments(int shape, int round) requires has_v {
    segment_list const sent = lay_out(shape, true), got = lay_out(shape, false);
    std::vector<std::byte> in(sent.total, untouched), out(got.total, untouched);
    std::vector<bool> covered(got.total, false);
    for (int p = 0; p < size_; ++p)
      for (std::size_t k = 0; k < sent.counts[at(p)]; ++k)
        in[sent.displacements[at(p)] + k] = byte_of(round, rank_, p, k);
    std::vector<std::byte> const before = in;
    comm_.all_to_all_v(on_, in.data(), sent.counts, sent.displacements, out.data(), got.counts,
                       got.displacements);
    for (int p = 0; p < size_; ++p) {
      check_segment("segments", round, p, rank_, out.data() + got.displacements[at(p)],
                    got.counts[at(p)]);
      for (std::size_t k = 0; k < got.counts[at(p)]; ++k)
        covered[got.displacements[at(p)] + k] = true;
    }
    for (std::size_t k = 0; k < out.size(); ++k)
      if (!covered[k] && out[k] != untouched)
        return broken("gaps: on rank ", rank_,
                      " a byte of out that belongs to no segment is written");
    if (in != before) broken("input: on rank ", rank_, " all_to_all_v writes its input");
  }

  void nothing() requires has_v {
    std::vector<std::size_t> const none(ranks(), 0);
    comm_.all_to_all_v(on_, nullptr, none, none, nullptr, none, none);
  }
  // Only the last rank has something, for the first.
  void one_byte() requires has_v {
    std::vector<std::size_t> const none(ranks(), 0);
    std::vector<std::size_t> sent(ranks(), 0), got(ranks(), 0);
    std::byte in{}, out = untouched;
    in = byte_of(0, size_ - 1, 0, 0);
    if (rank_ == size_ - 1) sent[0] = 1;
    if (rank_ == 0) got[ranks() - 1] = 1;
    comm_.all_to_all_v(on_, sent[0] != 0 ? &in : nullptr, sent, none, rank_ == 0 ? &out : nullptr,
                       got, none);
    if (rank_ == 0 && out != in)
      broken("nothing: the only byte of an exchange, from rank ", size_ - 1, " to rank 0, is lost");
  }

  void fixed_all_to_all(int round, std::size_t bytes) requires has_fixed {
    std::vector<std::byte> in(bytes * ranks()), out(bytes * ranks() + 1, untouched);
    for (int p = 0; p < size_; ++p)
      for (std::size_t k = 0; k < bytes; ++k) in[at(p) * bytes + k] = byte_of(round, rank_, p, k);
    comm_.all_to_all(on_, in.data(), out.data(), bytes);
    for (int p = 0; p < size_; ++p)
      check_segment("all_to_all", round, p, rank_, out.data() + at(p) * bytes, bytes);
    if (out[bytes * ranks()] != untouched)
      broken("all_to_all: on rank ", rank_, " a byte behind the last block is written");
  }
  void fixed_all_gather(int round, std::size_t bytes) requires has_fixed {
    std::vector<std::byte> in(bytes), out(bytes * ranks() + 1, untouched);
    for (std::size_t k = 0; k < bytes; ++k) in[k] = byte_of(round + rounds, rank_, 0, k);
    comm_.all_gather(on_, in.data(), out.data(), bytes);
    for (int p = 0; p < size_; ++p)
      check_segment("all_gather", round + rounds, p, 0, out.data() + at(p) * bytes, bytes);
    if (out[bytes * ranks()] != untouched)
      broken("all_gather: on rank ", rank_, " a byte behind the last block is written");
  }

  template <class Windows>
  void window(Windows& all, std::size_t bytes) {
    std::size_t const share = bytes / ranks();
    std::size_t const before = all.size();
    attempt("window", [&] { all.push_back(comm_.allocate_window(bytes)); });
    bool sound = all.size() > before;  // a rank without a window takes part in what follows
    std::vector<std::byte> reach(ranks()), table(ranks() * ranks());
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
    attempt("window", [&] { gather(reach.data(), table.data(), ranks()); });
    bool ordered = true;  // what others do to a window comes before or after what this rank does
    for (int round = 0; round < 3; ++round) {
      for (int p = 0; p < size_; ++p)
        if (ordered && reach[at(p)] != std::byte{0}) {
          auto* const theirs =
              static_cast<std::byte*>(all.back().view().peer(p, at(rank_) * share));
          for (std::size_t k = 0; k < share; ++k) theirs[k] = byte_of(round, rank_, p, k);
        }
      ordered = attempt("window", [&] { comm_.exchange_phase(on_); }) && ordered;
      for (int p = 0; p < size_; ++p)
        if (ordered && reach[at(rank_)] != std::byte{0} &&
            table[at(p) * ranks() + at(rank_)] != std::byte{0})
          check_segment("window", round, p, rank_,
                        static_cast<std::byte const*>(all.back().view().peer(rank_, at(p) * share)),
                        share);
      ordered = attempt("window", [&] { comm_.exchange_phase(on_); }) && ordered;
    }
  }

  // Block s of `out` becomes the `bytes` bytes of rank s.
  void gather(void const* in, std::byte* out, std::size_t bytes) {
    if constexpr (has_v) {
      std::vector<std::size_t> const counts(ranks(), bytes);
      std::vector<std::size_t> places(ranks());
      std::vector<std::byte> copies(ranks() * bytes);
      for (std::size_t p = 0; p < ranks(); ++p) {
        places[p] = p * bytes;
        std::memcpy(copies.data() + p * bytes, in, bytes);
      }
      comm_.all_to_all_v(on_, copies.data(), counts, places, out, counts, places);
    } else if constexpr (has_fixed) {
      comm_.all_gather(on_, in, out, bytes);
    }
  }

  // Every rank tells every other what it found, and takes the first. A communicator so broken that
  // findings get lost loses them in two rounds as well, and then each rank says what it knows.
  std::string agree() {
    if constexpr (has_v || has_fixed)
      for (int round = 0; round < 2; ++round) {
        std::vector<finding> all(ranks());
        ++step_;
        try {
          gather(&found_, reinterpret_cast<std::byte*>(all.data()), sizeof(finding));
        } catch (std::exception const& e) {
          broken("order: the communicator throws on rank ", rank_, ": ", e.what());
        } catch (...) {
          broken("order: the communicator throws on rank ", rank_);
        }
        for (finding const& f : all)
          if (f.stamp == seal &&
              (f.law < found_.law || (f.law == found_.law && f.rank < found_.rank)))
            found_ = f;
      }
    found_.text[sizeof found_.text - 1] = '\0';
    return found_.text;
  }

  Context const& on_;
  Comm& comm_;
  int rank_, size_, step_ = 0;
  finding found_;
};

}  // namespace detail

/// Empty if `comm` keeps the laws of a communicator, else the law that it breaks and where:
///   rank        0 <= rank() < size(), and neither changes
///   order       segment s comes from the rank whose rank() is s; size() is the same on all ranks
///   segments    all_to_all_v delivers every byte, of segments of any size and order
///   gaps        it writes nothing between the segments
///   input       it does not write what it sends
///   nothing     it works where a rank or all ranks send nothing, with null buffers
///   all_to_all, all_gather
///               (where it brings them) block s comes from rank s; nothing behind is written
///   window      (tier 3) after exchange_phase a rank sees what its peers wrote, in every phase
/// All of it happens several times, with other sizes and with other data of the same sizes.
/// Collective: every rank calls it, and every rank gets the same answer as far as a broken
/// communicator can carry one. Each rank's buffers hold about 100 kB per rank. For communicators of
/// host memory.
template <class Comm, class Context>
std::string broken_communicator_law(Context const& on, Comm& comm) {
  static_assert(communicator<Comm>,
                "expar: this type is not a communicator: rank() and size() return "
                "int and do not throw");
  static_assert(
      traits_of<Comm>().space != memory_space::device,
      "expar: the laws read and write buffers, so the communicator must work on host memory");
  return detail::communicator_examiner<Comm, Context>(on, comm).run();
}

}  // namespace expar::inline v0

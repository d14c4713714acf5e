// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <expar/error.hpp>

namespace expar::inline v0::detail {

/// The law `checks_sizes`, for the examiner of a communicator that states it.
template <class Examiner>
class disagreement_laws {
 public:
  explicit disagreement_laws(Examiner& examiner) : e_(examiner) {}

  void run() {
    constexpr std::size_t large = 1u << 17;
    if constexpr (Examiner::has_v)
      for (odd_size const& odd :
           {odd_size{8, 4, 1}, odd_size{4, 8, 1}, odd_size{0, 5, 1}, odd_size{5, 0, 1},
            odd_size{70001, large, 1}, odd_size{large, 70001, 1}, odd_size{3, 2, 0}})
        attempt([&] { sizes(odd, round_ % e_.size_, (round_ + odd.step) % e_.size_); });
    if (e_.size_ == 1) return;
    if constexpr (Examiner::has_fixed) attempt([&] { fixed_sizes(round_ % e_.size_); });
    for (int kind = 0; kind < kinds; ++kind)
      for (int odd = 0; odd < kinds; ++odd)
        if (kind != odd && name_of(kind) != nullptr && name_of(odd) != nullptr)
          attempt([&] { kinds_differ(kind, odd, round_ % e_.size_); });
  }

 private:
  static constexpr char const* law = "checks_sizes";
  static constexpr std::size_t usual = 24;
  using segment_list = typename Examiner::segment_list;
  struct odd_size {
    std::size_t sent, expected;
    int step;  // from the rank that sends to the one that expects
  };

  // f(), and whether the next exchange works.
  template <class F>
  void attempt(F f) {
    e_.attempt(law, f);
    if constexpr (Examiner::has_v)
      e_.attempt(law, [&] { e_.segments(law, 1 + round_ % 3, round_); });
    else
      e_.fixed(round_, 16);
    ++round_;
  }

  // An exchange in which `call` throws a disagreement on this rank, or may (`may`): then it fills
  // its segments if it does not. `parts` say what ranks disagree about.
  template <class Call, class... Parts>
  void expect(bool may, segment_list const& sent, segment_list const& got, Call call,
              Parts const&... parts) {
    e_.exchange(law, law, 0, 4096, sent, got, false, [&](void const* in, void* out) {
      try {
        call(in, out);
      } catch (disagreement const&) {
        return false;
      }
      if (!may)
        e_.broken(law, ": ", parts..., ", and on rank ", e_.rank_, " no disagreement is thrown");
      return may;
    });
  }

  void sizes(odd_size const& odd, int from, int to) {
    bool const sending = e_.rank_ == from, expecting = e_.rank_ == to;
    segment_list const& sent = lay_out(odd, sending ? to : -1, odd.sent);
    segment_list const& got = lay_out(odd, expecting ? from : -1, odd.expected);
    expect(
        !sending && !expecting, sent, got,
        [&](void const* in, void* out) { all_to_all_v(in, sent, out, got); }, "rank ", from,
        " sends ", odd.sent, " bytes to rank ", to, ", which expects ", odd.expected);
  }
  // The segment of `peer` has `bytes` bytes, and room for what either of the two takes it to have.
  segment_list const& lay_out(odd_size const& odd, int peer, std::size_t bytes) {
    segment_list s{std::vector<std::size_t>(e_.ranks(), usual), {}, 0};
    std::size_t const room = odd.sent > odd.expected ? odd.sent : odd.expected;
    for (int p = 0; p < e_.size_; ++p) {
      s.displacements.push_back(s.total);
      s.total += p == peer ? room : usual;
      if (p == peer) s.counts[static_cast<std::size_t>(p)] = bytes;
    }
    return e_.keep(std::move(s));
  }

  void fixed_sizes(int odd) {
    std::size_t const bytes = bytes_here(odd);
    segment_list const& all = e_.keep(e_.equal_blocks(bytes, bytes));
    expect(
        false, all, all,
        [&](void const* in, void* out) { e_.comm_.all_to_all(e_.on_, in, out, bytes); },
        "bytes is ", 2 * usual, " in the all_to_all of rank ", odd, " but ", usual,
        " in that of others");
  }
  void window_sizes(int odd) {
    segment_list const& none = e_.keep(e_.equal_blocks(0, 0));
    expect(
        false, none, none,
        [&](void const*, void*) { (void)e_.comm_.allocate_window(bytes_here(odd)); }, "bytes is ",
        2 * usual, " in the allocate_window of rank ", odd, " but ", usual, " in that of others");
  }
  std::size_t bytes_here(int odd) const { return e_.rank_ == odd ? 2 * usual : usual; }

  // Every rank has a peer that is in another kind of collective, if one rank is. Sizes are equal.
  void kinds_differ(int kind, int other, int odd) {
    segment_list const& all = e_.keep(e_.equal_blocks(usual, usual));
    expect(
        false, all, all,
        [&](void const* in, void* out) { call(e_.rank_ == odd ? other : kind, in, out, all); },
        "rank ", odd, " calls ", name_of(other), " while all others call ", name_of(kind));
  }
  static constexpr int kinds = 5;
  // Null where the communicator does not have it.
  static char const* name_of(int kind) {
    constexpr char const* fixed[] = {"all_to_all", "all_gather", "barrier"};
    if (kind == 0) return Examiner::has_v ? "all_to_all_v" : nullptr;
    if (kind == 4) return Examiner::has_windows ? "exchange_phase" : nullptr;
    return Examiner::has_fixed ? fixed[kind - 1] : nullptr;
  }
  void call(int kind, void const* in, void* out, segment_list const& all) {
    if constexpr (Examiner::has_v)
      if (kind == 0) all_to_all_v(in, all, out, all);
    if constexpr (Examiner::has_fixed) {
      if (kind == 1) e_.comm_.all_to_all(e_.on_, in, out, usual);
      if (kind == 2) e_.comm_.all_gather(e_.on_, in, out, usual);
      if (kind == 3) e_.comm_.barrier(e_.on_);
    }
    if constexpr (Examiner::has_windows)
      if (kind == 4) e_.comm_.exchange_phase(e_.on_);
  }
  void all_to_all_v(void const* in, segment_list const& sent, void* out, segment_list const& got) {
    e_.comm_.all_to_all_v(e_.on_, in, sent.counts, sent.displacements, out, got.counts,
                          got.displacements);
  }

  Examiner& e_;
  int round_ = 0;
};

}  // namespace expar::inline v0::detail

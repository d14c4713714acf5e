// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// The operations in which ranks meet.
enum class step : std::uint8_t {
  none,
  construct,
  place,
  prepare,
  quotas,
  dispatch,
  carry,
  combine,
  combine_backward,
  dispatch_backward,
  sum_counts,
  gather_report,
  run,
  run_backward
};
inline char const* name_of(step s) {
  constexpr char const* names[] = {
      "nothing",    "the constructor", "place",   "prepare",          "prepare with quotas",
      "dispatch",   "carry",           "combine", "combine_backward", "dispatch_backward",
      "sum_counts", "gather_report",   "run",     "run_backward"};
  return names[static_cast<int>(s)];
}

/// What a rank is about to do. `batch`: the number of the batch, the same on all ranks; 0: of none,
/// or of one that gets its number now. `object`: a number that all ranks know the engine by.
/// `phase`: how often ranks have met in this call.
struct intention {
  step what;
  std::uint64_t batch = 0, object = 0;
  unsigned phase = 0;
  index_t row_bytes = 0;  // of what is carried

  std::uint64_t packed() const {
    return batch << 16 | std::uint64_t{phase} << 8 | static_cast<std::uint64_t>(what);
  }
  static intention of(std::uint64_t packed, std::uint64_t object) {
    return {static_cast<step>(packed & 255), packed >> 16, object,
            static_cast<unsigned>(packed >> 8 & 255)};
  }
};

/// What a rank tells of itself in front of each message: never data, so that ranks which are in
/// different operations find out.
struct word {
  std::uint64_t intended = 0;  // intention::packed(); 0: this rank cannot go on
  std::uint64_t object = 0;
  std::uint64_t turn = 0;       // of the meetings in windows
  std::uint64_t batches = 0;    // the largest number of a batch here
  std::uint64_t room = 0;       // bytes of a message that this rank has memory for
  std::uint64_t settles = 0;    // whether it stands in front of what went wrong, and of no message
  std::uint64_t row_bytes = 0;  // of what is carried
  std::uint64_t unused = 0;

  /// Whether both mean the same message.
  bool matches(word const& other) const {
    return intended == other.intended && object == other.object && turn == other.turn &&
           settles == other.settles && row_bytes == other.row_bytes;
  }
};
static_assert(sizeof(word) == 64);
/// Of 64 bits.
constexpr std::ptrdiff_t numbers_of_word = sizeof(word) / sizeof(std::uint64_t);

inline word word_at(void const* from) {
  word w;
  std::memcpy(&w, from, sizeof w);
  return w;
}

/// Throws unless two ranks do the same.
inline void expects_same(word const& first, word const& other, int rank) {
  bool const alike = first.intended == other.intended && first.object == other.object;
  expects(!alike || first.row_bytes == other.row_bytes, "rank 0 carries rows of ", first.row_bytes,
          " bytes while rank ", rank, " carries rows of ", other.row_bytes);
  if (alike) return;
  constexpr char const* rule = "; all ranks call the same operations in the same order";
  auto const mine = intention::of(first.intended, first.object);
  auto const theirs = intention::of(other.intended, other.object);
  auto const call = [](intention const& i) {
    return i.batch == 0 ? sentence(name_of(i.what))
                        : sentence(name_of(i.what), " for its batch ", i.batch);
  };
  expects(mine.what == theirs.what && mine.batch == theirs.batch, "rank 0 calls ", call(mine),
          " while rank ", rank, " calls ", call(theirs), rule);
  expects(mine.object == theirs.object, "rank 0 calls ", name_of(mine.what),
          " of one object while rank ", rank, " calls it of another", rule);
  fail("rank 0 is at another message of ", name_of(mine.what), " than rank ", rank, rule);
}

}  // namespace expar::inline v0::detail

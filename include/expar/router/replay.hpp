// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/router/per_token.hpp>  // row_size

namespace expar::inline v0 {

namespace detail {

/// The bits of one number of a record, 0 to experts.
constexpr int record_bits(int experts) {
  return static_cast<int>(std::bit_width(static_cast<std::uint32_t>(experts)));
}

}  // namespace detail

/// Bytes that record_ids() needs for one token: its k ids, each in as few bits as hold the numbers
/// 0 to experts, of which the last stands for -1. 9 bytes for 8 of 256 experts.
constexpr index_t record_bytes(int experts, int top_k) {
  detail::expects(experts >= 1 && top_k >= 0, "record_bytes: experts is ", experts,
                  " and top_k is ", top_k, "; they are at least 1 and at least 0");
  return (index_t{detail::record_bits(experts)} * top_k + 7) / 8;
}

namespace detail {

/// What a record of ids [tokens, k] holds for each token.
inline rule bytes_for(argument_table& a, int experts, index_t k) {
  expects(experts >= 1, a, ": experts is ", experts, "; it is at least 1");
  return {record_bytes(experts, row_size(a, "ids", k, "choices for a token")),
          "the number of bytes for a token"};
}

/// The j-th number of `bits` bits, lowest bit first.
inline std::uint32_t number_at(std::uint8_t const* record, index_t j, int bits) {
  index_t const low = j * bits, first = low / 8, last = (low + bits - 1) / 8;
  std::uint64_t window = 0;
  for (index_t b = first; b <= last; ++b)
    window |= static_cast<std::uint64_t>(record[b]) << (8 * (b - first));
  return static_cast<std::uint32_t>(window >> (low % 8) & ((std::uint64_t{1} << bits) - 1));
}
/// Sets it, where the bits are 0.
inline void put_number(std::uint8_t* record, index_t j, int bits, std::uint32_t number) {
  index_t const low = j * bits, first = low / 8, last = (low + bits - 1) / 8;
  std::uint64_t const window = std::uint64_t{number} << (low % 8);
  for (index_t b = first; b <= last; ++b)
    record[b] = static_cast<std::uint8_t>(record[b] | (window >> (8 * (b - first)) & 255));
}

}  // namespace detail

struct record_ids_fn {
  template <class Ids, class Record>
  void operator()(host_context const& ctx, Ids const& ids, int experts, Record&& record) const {
    detail::arguments a(ctx, "record_ids");
    auto const from = a.ids("ids", ids);
    index_t const tokens = from.extents[0], k = from.extents[1];
    auto const to = a.written_any(
        "record", record, {{tokens, "the number of tokens"}, detail::bytes_for(a, experts, k)});
    static_assert(std::is_same_v<detail::element_of<decltype(to)>, std::uint8_t>,
                  "expar: a record is made of std::uint8_t");
    detail::check_expert_ids("record_ids: ids", from, experts);
    int const bits = detail::record_bits(experts);
    ctx.for_each_chunk(tokens, 4096 / (k + 1) + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        std::uint8_t* const row = to.row(t);
        for (index_t b = 0; b < to.extents[1]; ++b) row[b] = 0;
        for (index_t j = 0; j < k; ++j) {
          std::int32_t const id = from.row(t)[j];
          detail::put_number(row, j, bits, static_cast<std::uint32_t>(id < 0 ? experts : id));
        }
      }
    });
  }
};
/// `record_ids(ctx, ids, experts, record)` records the choices of a step in little memory, to be
/// made again later.
///   ids: [T,k] of any signed integer type, -1 = no expert
///   record: [T, record_bytes(experts, k)] std::uint8_t, overwritten. A token's numbers follow one
///           another from the lowest bit of its first byte on
/// Throws where shapes do not fit, or if an id is not -1 .. experts - 1; then nothing is written.
inline constexpr record_ids_fn record_ids{};

struct replay_ids_fn {
  template <class Record, class Ids>
  void operator()(host_context const& ctx, Record const& record, int experts, Ids&& ids) const {
    detail::arguments a(ctx, "replay_ids");
    auto const to = a.written_ids("ids", ids, experts);
    index_t const tokens = to.extents[0], k = to.extents[1];
    auto const from = a.read_any(
        "record", record, {{tokens, "the number of tokens"}, detail::bytes_for(a, experts, k)});
    static_assert(std::is_same_v<detail::element_of<decltype(from)>, std::uint8_t>,
                  "expar: a record is made of std::uint8_t");
    int const bits = detail::record_bits(experts);
    for (index_t t = 0; t < tokens; ++t)
      for (index_t j = 0; j < k; ++j) {
        auto const number = detail::number_at(from.row(t), j, bits);
        detail::expects(number <= static_cast<std::uint32_t>(experts), "replay_ids: choice ", j,
                        " of token ", t, " is recorded as ", number,
                        "; it is at most the number of experts, ", experts);
      }
    ctx.for_each_chunk(tokens, 4096 / (k + 1) + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; j < k; ++j) {
          auto const number = static_cast<std::int32_t>(detail::number_at(from.row(t), j, bits));
          to.row(t)[j] = number == experts ? -1 : number;
        }
    });
    to.store();
  }
};
/// `replay_ids(ctx, record, experts, ids)` reads back what record_ids() wrote. With ids as
/// given_ids, a router makes the recorded choices with the weights of the logits at hand. Throws
/// where shapes do not fit, or if the record holds a number above `experts`; then nothing is
/// written.
inline constexpr replay_ids_fn replay_ids{};

}  // namespace expar::inline v0

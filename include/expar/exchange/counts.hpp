// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <span>
#include <string>

#include <expar/exchange/agreement.hpp>
#include <expar/exchange/arrivals.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// Tells every rank how many rows will come, before any row travels: one message of equal size to
/// every rank, so that tier 1 is enough.
class count_exchange {
 public:
  explicit count_exchange(std::pmr::memory_resource* memory) : words_(memory) {}

  /// Maxima over the ranks: the tokens of a rank, and the routes of a rank for one expert.
  struct maxima {
    index_t tokens = 0, largest_count = 0;
  };

  /// Collective. Fills map.arrived from the `counts` [experts] of every rank (`map.place` and
  /// `map.rank` are set). Throws on all ranks if one of them passes a failure, or if element sizes
  /// differ.
  template <class Comm>
  maxima run(host_context const& ctx, Comm& comm, arrivals& map, std::span<index_t const> counts,
             index_t tokens, index_t element_bytes, std::string const& failure) {
    struct header {
      index_t failed, tokens, largest_count, element_bytes;
    };
    constexpr index_t head = sizeof(header) / sizeof(index_t);
    int const ranks = map.place.ranks, locals = map.locals();
    index_t const words = head + map.place.most();
    index_t* const out = words_.assign(static_cast<std::size_t>(2 * ranks * words), 0);
    index_t* const in = out + ranks * words;
    header mine{failure.empty() ? 0 : 1, tokens, 0, element_bytes};
    if (failure.empty())
      for (index_t const count : counts)
        mine.largest_count = count > mine.largest_count ? count : mine.largest_count;
    for (int p = 0; p < ranks; ++p) {
      std::memcpy(out + p * words, &mine, sizeof mine);
      for (int l = 0; failure.empty() && l < map.place.count(p); ++l)
        out[p * words + head + l] = counts[static_cast<std::size_t>(map.place.first(p) + l)];
    }
    if (ranks == 1 && !failure.empty()) throw error(failure);
    all_to_all(ctx, comm, out, in, static_cast<std::size_t>(words) * sizeof(index_t));

    auto const header_of = [&](int rank) {
      header h;
      std::memcpy(&h, in + rank * words, sizeof h);
      return h;
    };
    for (int s = 0; s < ranks; ++s)
      if (header_of(s).failed != 0) throw_failure(ctx, comm, failure);
    index_t const first_bytes = header_of(0).element_bytes;
    maxima most;
    index_t* const arrived = map.arrived.resize(static_cast<std::size_t>(map.blocks()));
    for (int s = 0; s < ranks; ++s) {
      header const h = header_of(s);
      expects(h.element_bytes == first_bytes, "dispatch: an element of a row has ", first_bytes,
              " bytes on rank 0 but ", h.element_bytes, " on rank ", s,
              "; all ranks must use the same element type");
      most.tokens = h.tokens > most.tokens ? h.tokens : most.tokens;
      most.largest_count =
          h.largest_count > most.largest_count ? h.largest_count : most.largest_count;
      for (int l = 0; l < locals; ++l) arrived[s * locals + l] = in[s * words + head + l];
    }
    return most;
  }

 private:
  buffer<index_t> words_;
};

}  // namespace detail
}  // namespace v0
}  // namespace expar

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <span>

#include <expar/exchange/arrivals.hpp>
#include <expar/exchange/collectives.hpp>

namespace expar::inline v0::detail {

/// Tells every rank how many rows will come, before any row travels: one message of equal size to
/// every rank, so that tier 1 is enough. Its memory is there from the beginning.
class count_exchange {
  struct header {
    index_t tokens, largest_count, row_element_bytes, weight_bytes;
  };
  static constexpr index_t head = sizeof(header) / sizeof(index_t);

 public:
  explicit count_exchange(std::pmr::memory_resource* memory) : words_(memory) {}

  void reserve(block_placement place) {
    words_.resize(2 * index_t{place.ranks} * (head + place.most()));
  }

  /// Maxima over the ranks: the tokens of a rank, and the routes of a rank for one expert.
  struct maxima {
    index_t tokens = 0, largest_count = 0;
  };
  struct sizes {
    index_t row_element, weight;
  };

  /// Collective. Fills map.arrived from the `counts` [experts] of every rank (`map.place`,
  /// `map.rank` and the size of `map.arrived` are set). Throws on all ranks if element sizes
  /// differ.
  template <class Comm>
  maxima run(host_context const& ctx, Comm& comm, fixed_counts& table, arrivals& map,
             std::span<index_t const> counts, index_t tokens, sizes bytes) {
    block_placement const place = map.place;
    int const ranks = place.ranks, locals = map.locals();
    index_t const words = head + place.most();
    index_t* const out = words_.assign(static_cast<std::size_t>(2 * ranks * words), 0);
    index_t* const in = out + ranks * words;
    header own{tokens, 0, bytes.row_element, bytes.weight};
    for (index_t const count : counts)
      own.largest_count = count > own.largest_count ? count : own.largest_count;
    for (int p = 0; p < ranks; ++p) {
      std::memcpy(out + p * words, &own, sizeof own);
      for (int l = 0; l < place.count(p); ++l)
        out[p * words + head + l] = counts[static_cast<std::size_t>(place.first(p) + l)];
    }
    all_to_all(ctx, comm, out, in, static_cast<std::size_t>(words) * sizeof(index_t), table);

    auto const header_of = [&](int rank) {
      header h;
      std::memcpy(&h, in + rank * words, sizeof h);
      return h;
    };
    header const first = header_of(0);
    maxima most;
    for (int s = 0; s < ranks; ++s) {
      header const h = header_of(s);
      expects(h.row_element_bytes == first.row_element_bytes, "dispatch: an element of a row has ",
              first.row_element_bytes, " bytes on rank 0 but ", h.row_element_bytes, " on rank ", s,
              "; all ranks must use the same element type");
      expects(h.weight_bytes == first.weight_bytes, "dispatch: a weight has ", first.weight_bytes,
              " bytes on rank 0 but ", h.weight_bytes, " on rank ", s,
              "; all ranks must use the same type of weights");
      most.tokens = h.tokens > most.tokens ? h.tokens : most.tokens;
      most.largest_count =
          h.largest_count > most.largest_count ? h.largest_count : most.largest_count;
      for (int l = 0; l < locals; ++l) map.arrived[s * locals + l] = in[s * words + head + l];
    }
    return most;
  }

 private:
  buffer<index_t> words_;
};

}  // namespace expar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include <expar/exchange/batch_state.hpp>
#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0::detail {

/// For each row that is here before a hop the ranks to which it goes, and where it stands in the
/// message to each; for this rank itself, the number of the row.
class hop_table {
 public:
  explicit hop_table(std::pmr::memory_resource* memory) : ranks_(memory), places_(memory) {}

  void begin(index_t parcels, int width) {
    width_ = width;
    index_t const n = size_product(parcels, width);
    ranks_.resize(n), places_.resize(n);
  }
  /// Rows [first, first + count) as a plan, whose experts are ranks.
  plan_view view(index_t first, index_t count) const {
    return {
        ranks_.data() + first * width_, places_.data() + first * width_, nullptr, count, width_, 0};
  }
  int width() const { return width_; }
  void put(index_t parcel, int column, std::int32_t rank, index_t place) {
    index_t const at = parcel * width_ + column;
    ranks_[at] = rank, places_[at] = static_cast<std::int32_t>(place);
  }

 private:
  buffer<std::int32_t> ranks_, places_;
  int width_ = 0;
};

/// How the rows of a batch pass along a chain. A *parcel* is a row that is on this rank at some
/// time: those of its own tokens, then what came by the first hop, by rank, then by the second.
struct hop_tables : passage {
  explicit hop_tables(std::pmr::memory_resource* memory)
      : rows_of{buffer<index_t>(memory), buffer<index_t>(memory), buffer<index_t>(memory),
                buffer<index_t>(memory)},
        hop{hop_table(memory), hop_table(memory)},
        ranks(memory),
        rows(memory),
        here(memory),
        weights(memory) {}

  /// [ranks]: rows to each rank by hop h, and from each.
  buffer<index_t>& sent(int h) { return rows_of[2 * h]; }
  buffer<index_t>& got(int h) { return rows_of[2 * h + 1]; }

  /// Memory for counts, which then are zero.
  void reserve(int of_ranks) {
    for (auto& b : rows_of) b.reserve(static_cast<std::size_t>(of_ranks));
  }
  void clear_counts(int of_ranks) {
    for (auto& b : rows_of) b.assign(static_cast<std::size_t>(of_ranks), 0);
  }

  /// Before rows travel: memory for all parcels of `routes` routes, with weights of `weight` bytes,
  /// which go to so many ranks at most by each hop. Returns the bytes that travel beside a row.
  index_t begin(index_t tokens, int routes, std::size_t weight, int by_first, int by_second) {
    own = tokens, top_k = routes;
    after_first = own + total(got(0)), all = after_first + total(got(1));
    expects(all <= INT32_MAX, "dispatch: ", all, " rows pass a rank; over hops at most ", INT32_MAX,
            " do");
    hop[0].begin(own, by_first), hop[1].begin(after_first, by_second);
    index_t const n = size_product(all, top_k);
    ranks.resize(n), rows.resize(n), here.resize(n);
    id_bytes_ = static_cast<std::size_t>(top_k) * sizeof(std::int32_t);
    weight_bytes_ = static_cast<std::size_t>(top_k) * weight;
    weights.resize(static_cast<std::size_t>(all) * weight_bytes_);
    return static_cast<index_t>(2 * id_bytes_ + weight_bytes_);
  }
  static index_t total(buffer<index_t> const& of) {
    index_t n = 0;
    for (index_t const x : of) n += x;
    return n;
  }

  /// What travels beside the row of a parcel, as number `at` of a table: where the rows of its
  /// routes are to stand, and their weights; `only`: of one of them.
  void write(std::byte* table, index_t at, index_t parcel, int only) const {
    if (top_k == 0) return;
    std::byte* const to = table + static_cast<std::size_t>(at) * (2 * id_bytes_ + weight_bytes_);
    std::int32_t const* const from = ranks.data() + parcel * top_k;
    if (only < 0) {
      std::memcpy(to, from, id_bytes_);
    } else {
      std::memset(to, -1, id_bytes_);
      std::memcpy(to + static_cast<std::size_t>(only) * sizeof *from, from + only, sizeof *from);
    }
    std::memcpy(to + id_bytes_, rows.data() + parcel * top_k, id_bytes_);
    std::memcpy(to + 2 * id_bytes_,
                weights.data() + static_cast<std::size_t>(parcel) * weight_bytes_, weight_bytes_);
  }
  void read(std::byte const* from, index_t parcel) {
    if (top_k == 0) return;
    std::memcpy(ranks.data() + parcel * top_k, from, id_bytes_);
    std::memcpy(rows.data() + parcel * top_k, from + id_bytes_, id_bytes_);
    std::memcpy(weights.data() + static_cast<std::size_t>(parcel) * weight_bytes_,
                from + 2 * id_bytes_, weight_bytes_);
  }

  /// Once all parcels are here: which of their routes end on this rank.
  void end_at(int rank) {
    for (index_t i = 0; i < all * top_k; ++i) here[i] = ranks[i] == rank ? rows[i] : -1;
  }
  /// The routes of parcels to rows of this rank.
  plan_view ends_here(index_t first, index_t count) const {
    return {ranks.data() + first * top_k, here.data() + first * top_k, nullptr, count, top_k, 0};
  }
  template <class W>
  matrix_weights<W> weights_of(index_t first, index_t count) const {
    return {make_view(reinterpret_cast<W const*>(weights.data()) + first * top_k, count,
                      index_t{top_k})};
  }

  static unit_weights weights_like(unit_weights, index_t, index_t) { return {}; }
  template <class W>
  matrix_weights<W> weights_like(matrix_weights<W>, index_t first, index_t count) const {
    return weights_of<W>(first, count);
  }

  buffer<index_t> rows_of[4];
  hop_table hop[2];
  // Of each parcel [top_k]: the rank and the row there of each of its routes, -1 for none; `here`:
  // the row, where it is on this rank.
  buffer<std::int32_t> ranks, rows, here;
  buffer<std::byte> weights;
  index_t own = 0, after_first = 0, all = 0;
  int top_k = 0;

 private:
  std::size_t id_bytes_ = 0, weight_bytes_ = 0;  // of a parcel
};

}  // namespace expar::inline v0::detail

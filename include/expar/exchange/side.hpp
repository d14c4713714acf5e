// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <expar/detail/buffer.hpp>
#include <expar/detail/shared.hpp>
#include <expar/plan/layout.hpp>  // round_up

namespace expar::inline v0 {

/// The buffers of expert rows that a batch has: what experts read and make, and the gradients of
/// both.
enum class side { rows, y, d_y, d_rows };

namespace detail {

/// Where what else is carried stands on its way, in windows.
inline constexpr side carried = static_cast<side>(4);
inline constexpr int side_count = 5;

class side_memory;

/// Where the sides of batches come from. A piece that no batch holds serves the next.
class side_pool : public counted {
 public:
  virtual ~side_pool() = default;
  /// A piece for rows of so many bytes in all, and scalars behind them; none where only operations
  /// give pieces.
  virtual void take(side_memory& to, index_t row_bytes, index_t scalar_bytes) = 0;
  virtual void put_back(int piece) noexcept = 0;
};

/// A side of a batch while it is there: a piece of a pool, and which of all it is.
class side_memory {
 public:
  side_memory() = default;
  /// `scalars`: null where none stand beside the rows.
  side_memory(shared<side_pool> pool, int piece, std::byte* rows, std::byte* scalars) noexcept
      : pool_(std::move(pool)), piece_(piece), rows_(rows), scalars_(scalars) {}
  side_memory(side_memory&& other) noexcept = default;
  side_memory& operator=(side_memory&& other) noexcept {
    release();
    pool_ = std::move(other.pool_), piece_ = other.piece_;
    rows_ = other.rows_, scalars_ = other.scalars_;
    return *this;
  }
  ~side_memory() { release(); }

  bool held() const noexcept { return pool_.get() != nullptr; }
  int piece() const noexcept { return held() ? piece_ : -1; }
  std::byte* rows() const noexcept { return rows_; }
  std::byte* scalars() const noexcept { return scalars_; }
  void release() noexcept {
    if (held()) pool_->put_back(piece_);
    pool_ = {};
  }

 private:
  shared<side_pool> pool_;  // none where it is not there
  int piece_ = -1;
  std::byte *rows_ = nullptr, *scalars_ = nullptr;
};

/// Where scalars begin behind rows of so many bytes.
constexpr index_t behind(index_t row_bytes) {
  return round_up(row_bytes, 64);
}

/// Of `count` pieces the one to take for so many bytes: the smallest free one that has them, else
/// the largest free one, which is to grow; -1: none is free.
template <class Free, class Bytes>
int piece_for(index_t bytes, int count, Free free, Bytes bytes_of) {
  int best = -1;
  for (int i = 0; i < count; ++i) {
    if (!free(i)) continue;
    bool const fits = bytes_of(i) >= bytes, best_fits = best >= 0 && bytes_of(best) >= bytes;
    if (best < 0 || (fits ? !best_fits || bytes_of(i) < bytes_of(best)
                          : !best_fits && bytes_of(i) > bytes_of(best)))
      best = i;
  }
  return best;
}

/// What a piece grows to, so that loads which vary soon stop allocating.
constexpr index_t grown(index_t bytes, index_t before) {
  index_t const more = before + before / 4;
  return bytes > more ? bytes : more;
}

/// Pieces in the memory of this rank.
class local_sides : public side_pool {
 public:
  explicit local_sides(std::pmr::memory_resource* memory) : memory_(memory) {}

  void take(side_memory& to, index_t row_bytes, index_t scalar_bytes) override {
    to.release();
    index_t const bytes = behind(row_bytes) + scalar_bytes;
    auto const size = [&](int i) { return static_cast<index_t>(at(i).memory.capacity()); };
    int i = piece_for(
        bytes, static_cast<int>(pieces_.size()), [&](int p) { return at(p).free; }, size);
    if (i < 0) {
      i = static_cast<int>(pieces_.size());
      pieces_.push_back({buffer<std::byte>(memory_), true});
    }
    if (index_t const before = size(i); before > 0 && before < bytes)
      at(i).memory.reserve(static_cast<std::size_t>(grown(bytes, before)));
    std::byte* const data = at(i).memory.resize(bytes);
    at(i).free = false;
    to = side_memory(shared<side_pool>::one_more(this), i, data,
                     scalar_bytes == 0 ? nullptr : data + behind(row_bytes));
  }
  void put_back(int i) noexcept override { at(i).free = true; }

 private:
  struct piece {
    buffer<std::byte> memory;
    bool free;
  };
  piece& at(int i) noexcept { return pieces_[static_cast<std::size_t>(i)]; }

  std::pmr::memory_resource* memory_;
  std::vector<piece> pieces_;
};

}  // namespace detail
}  // namespace expar::inline v0

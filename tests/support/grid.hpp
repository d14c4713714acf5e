// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <expar/element.hpp>
#include <expar/tensor.hpp>

namespace expar_test {

/// A [rows, columns] tensor with a pitch, of which the gaps hold a mark that must survive.
template <class T>
class grid {
 public:
  grid(expar::index_t rows, expar::index_t columns, expar::index_t gap = 0)
      : rows_(rows),
        columns_(columns),
        pitch_(columns + gap),
        data_(static_cast<std::size_t>(rows * pitch_), mark()) {}

  expar::tensor_view<T, 2> view() {
    return expar::make_view(data_.data(), rows_, columns_, pitch_);
  }
  double get(expar::index_t r, expar::index_t c) const {
    return static_cast<double>(expar::widen(data_[static_cast<std::size_t>(r * pitch_ + c)]));
  }
  void set(expar::index_t r, expar::index_t c, double x) {
    data_[static_cast<std::size_t>(r * pitch_ + c)] =
        expar::narrow<T>(static_cast<expar::accumulator_t<T>>(x));
  }
  bool gaps_intact() const {
    for (expar::index_t r = 0; r < rows_; ++r)
      for (expar::index_t c = columns_; c < pitch_; ++c)
        if (get(r, c) != 77) return false;
    return true;
  }

  friend bool operator==(grid const& a, grid const& b) {
    for (expar::index_t r = 0; r < a.rows_; ++r)
      for (expar::index_t c = 0; c < a.columns_; ++c)
        if (a.get(r, c) != b.get(r, c)) return false;
    return a.rows_ == b.rows_ && a.columns_ == b.columns_;
  }

 private:
  static T mark() { return expar::narrow<T>(77); }
  expar::index_t rows_, columns_, pitch_;
  std::vector<T> data_;
};

}  // namespace expar_test

// SPDX-License-Identifier: Apache-2.0
// How other systems find the row of each route, written anew from what they do: by a mask and a
// cumulative sum for every choice, by a stable sort, or by a list for every expert.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <expar/tensor.hpp>

namespace peers {

using expar::index_t;

/// Ids [tokens, k], and the row of each route, which all of these fill.
struct plan_problem {
  std::int32_t const* ids;
  index_t tokens;
  int k, experts;
  index_t routes() const { return tokens * k; }
};

/// A mask [tokens, experts] for each choice, its cumulative sum, and the sum of their product, as
/// Tutel has it: first choices stand before second ones. Places among the rows of an expert.
class one_hot_cumsum {
 public:
  void operator()(plan_problem p, std::int32_t* places) {
    auto const width = static_cast<std::size_t>(p.experts);
    mask_.resize(static_cast<std::size_t>(p.tokens) * width);
    sum_.resize(mask_.size());
    base_.assign(width, 0);
    for (int j = 0; j < p.k; ++j) {
      std::fill(mask_.begin(), mask_.end(), 0);
      for (index_t t = 0; t < p.tokens; ++t)
        mask_[static_cast<std::size_t>(t) * width + static_cast<std::size_t>(p.ids[t * p.k + j])] =
            1;
      std::int32_t const* above = base_.data();
      for (index_t t = 0; t < p.tokens; ++t) {
        std::int32_t const* const one = mask_.data() + static_cast<std::size_t>(t) * width;
        std::int32_t* const sum = sum_.data() + static_cast<std::size_t>(t) * width;
        std::int32_t place = 0;
        for (std::size_t e = 0; e < width; ++e) sum[e] = above[e] + one[e];
        for (std::size_t e = 0; e < width; ++e) place += (sum[e] - 1) * one[e];
        places[t * p.k + j] = place;
        above = sum;
      }
      std::copy_n(above, width, next_base(width));
      base_.swap(next_);
    }
  }

 private:
  std::int32_t* next_base(std::size_t width) {
    next_.resize(width);
    return next_.data();
  }
  std::vector<std::int32_t> mask_, sum_, base_, next_;
};

/// std::stable_sort of (expert, route) by expert; the rows of routes are the inverse.
class stable_sort {
 public:
  void operator()(plan_problem p, std::int32_t* rows) {
    pairs_.resize(static_cast<std::size_t>(p.routes()));
    for (std::size_t i = 0; i < pairs_.size(); ++i)
      pairs_[i] = {p.ids[i], static_cast<std::int32_t>(i)};
    std::stable_sort(pairs_.begin(), pairs_.end(),
                     [](auto const& a, auto const& b) { return a.first < b.first; });
    for (std::size_t i = 0; i < pairs_.size(); ++i)
      rows[pairs_[i].second] = static_cast<std::int32_t>(i);
  }

 private:
  std::vector<std::pair<std::int32_t, std::int32_t>> pairs_;
};

/// A list of its routes for each expert, and then the lists one behind the other.
class lists {
 public:
  void operator()(plan_problem p, std::int32_t* rows) {
    of_.resize(static_cast<std::size_t>(p.experts));
    for (auto& list : of_) list.clear();
    for (index_t i = 0; i < p.routes(); ++i)
      of_[static_cast<std::size_t>(p.ids[i])].push_back(static_cast<std::int32_t>(i));
    std::int32_t row = 0;
    for (auto const& list : of_)
      for (std::int32_t const route : list) rows[route] = row++;
  }

 private:
  std::vector<std::vector<std::int32_t>> of_;
};

}  // namespace peers

// SPDX-License-Identifier: Apache-2.0
// The configurations of the host benchmarks, and a batch of one of them: no element is zero, since
// some machines write lines of zeros faster than others, and every page has been written once.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include <expar/element.hpp>
#include <expar/plan/plan.hpp>

namespace benchmarks {

using expar::index_t;

struct shape {
  int tokens, hidden, experts, top_k;
};
constexpr shape shapes[] = {
    {4096, 1024, 8, 2}, {8192, 2048, 64, 6}, {4096, 7168, 256, 8}, {128, 7168, 256, 8}};

/// Names and arguments as benchmarks report them: configurations on one thread and on two.
inline shape shape_of(benchmark::State const& state) {
  auto const at = [&](std::size_t i) { return static_cast<int>(state.range(i)); };
  return {at(0), at(1), at(2), at(3)};
}
inline void all_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "hidden", "experts", "top_k", "threads"});
  for (int const threads : {1, 2})
    for (shape const& s : shapes) b->Args({s.tokens, s.hidden, s.experts, s.top_k, threads});
  b->UseManualTime()->Iterations(9)->Unit(benchmark::kMicrosecond);
}

inline std::size_t size_of(index_t n) {
  return static_cast<std::size_t>(n);
}

/// The same numbers everywhere.
class numbers {
 public:
  std::uint32_t next() { return state_ = state_ * 1664525u + 1013904223u; }
  int below(int n) {
    return static_cast<int>(static_cast<std::uint64_t>(next()) * static_cast<std::uint64_t>(n) >>
                            32);
  }

 private:
  std::uint32_t state_ = 1;
};

/// `n` elements that begin on a line; written, so that their pages are there.
template <class T>
class array {
 public:
  array() = default;
  explicit array(index_t n) : size_(n) {
    data_.reset(static_cast<T*>(::operator new (bytes(), std::align_val_t{64})));
    fill();
  }
  /// In memory of the caller.
  array(void* memory, index_t n) : data_(static_cast<T*>(memory), release{false}), size_(n) {
    fill();
  }
  T* data() const { return data_.get(); }
  index_t size() const { return size_; }
  std::size_t bytes() const { return size_of(size_) * sizeof(T); }
  /// No result is this: NaN, or -1.
  void poison() const { std::memset(static_cast<void*>(data()), 0xff, bytes()); }

 private:
  void fill() {
    for (index_t i = 0; i < size_; ++i) {
      auto const hash = static_cast<std::uint32_t>(i) * 2654435761u;
      data_[size_of(i)] = value(hash >> 25);
    }
  }
  static T value(std::uint32_t bits) {  // 0.5 to 1.5
    if constexpr (expar::element<T>)
      return expar::narrow<T>(0.5f + static_cast<float>(bits) / 128);
    else
      return static_cast<T>(bits);
  }
  struct release {
    bool owns = true;
    void operator()(T* p) const {
      if (owns) ::operator delete (p, std::align_val_t{64});
    }
  };
  std::unique_ptr<T[], release> data_;
  index_t size_ = 0;
};

/// Ids of `k` different experts for each token, evenly drawn.
inline std::vector<std::int32_t> draw_ids(shape s, numbers random = {}) {
  std::vector<std::int32_t> ids(size_of(index_t{s.tokens} * s.top_k));
  for (auto token = ids.begin(); token != ids.end(); token += s.top_k)
    for (auto id = token; id != token + s.top_k;) {
      *id = random.below(s.experts);
      if (std::find(token, id, *id) == id) ++id;
    }
  return ids;
}

inline bool close(double a, double b, double relative) {
  return std::abs(a - b) <= relative * std::abs(b);
}
/// How far results may be apart that were rounded once to T, or `times` times.
template <class T>
double tolerance(int times = 1) {
  return sizeof(T) == 4 ? 1e-5 : times * 0.0079;
}

}  // namespace benchmarks

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace bench {

/// A layer: tokens T, experts E, choices k, and bf16 rows of H elements.
struct config {
  std::string name;
  int tokens, experts, top_k, hidden;
};
inline std::vector<config> const& configs() {
  static std::vector<config> const all{
      {"mixtral", 4096, 8, 2, 4096},       {"dsmoe-16b", 8192, 64, 6, 2048},
      {"deepseek-v3", 4096, 256, 8, 7168}, {"qwen3-235b", 8192, 128, 8, 4096},
      {"kimi-k2", 8192, 384, 8, 7168},     {"decode-128", 128, 256, 8, 7168},
      {"gpt-oss", 16384, 128, 4, 2880}};
  return all;
}
/// For --check: small, no multiple of a tile or of a warp, one choice, every expert, many experts.
inline std::vector<config> const& tiny_configs() {
  static std::vector<config> const all{{"tiny", 77, 8, 2, 264},
                                       {"tiny-one-choice", 65, 7, 1, 64},
                                       {"tiny-every-expert", 19, 6, 6, 1032},
                                       {"tiny-groups", 21, 256, 8, 128},
                                       {"tiny-many-experts", 40, 384, 8, 256}};
  return all;
}

/// How ids are drawn; the experts of a token always differ.
enum class spread {
  uniform,
  zipf,   // expert e with a probability proportional to 1 / (e + 1)
  hot,    // expert 0 is the first choice of half of the tokens
  local,  // uniform, but only the first eighth of the experts is here: the other ids are -1
};
inline constexpr spread spreads[] = {spread::uniform, spread::zipf, spread::hot, spread::local};
inline char const* name_of(spread s) {
  constexpr char const* names[] = {"uniform", "zipf", "hot", "7/8 masked"};
  return names[static_cast<int>(s)];
}

/// splitmix64: the same numbers with every library.
class random {
 public:
  explicit random(std::uint64_t seed) : state_(seed) {}
  double operator()() {  // in [0, 1)
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

 private:
  std::uint64_t state_;
};

/// The routes of a batch, and what every plan of them must say: the integers that variants are
/// checked against, made here by counting and by nothing of the library.
struct problem : config {
  spread ids_drawn;
  std::vector<std::int32_t> ids;               // [T,k]
  std::vector<std::int32_t> offsets;           // [E + 1]
  std::vector<std::int32_t> row_of;            // [T,k], -1: no expert
  std::vector<std::int32_t> route_of;          // [N]: t * k + j
  std::int64_t rows = 0, tokens_with_row = 0;  // N

  problem(config const& c, spread s) : config(c), ids_drawn(s) {
    draw();
    count();
  }
  /// Of ids that a router has chosen.
  problem(config const& c, std::vector<std::int32_t> chosen)
      : config(c), ids_drawn(spread::uniform), ids(std::move(chosen)) {
    count();
  }

  std::int64_t routes() const { return std::int64_t{tokens} * top_k; }
  std::int64_t row_bytes() const { return std::int64_t{hidden} * 2; }

 private:
  void count() {
    offsets.assign(static_cast<std::size_t>(experts) + 1, 0);
    for (auto const id : ids)
      if (id >= 0) ++offsets[static_cast<std::size_t>(id) + 1], ++rows;
    for (std::size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
    auto next = offsets;
    route_of.resize(static_cast<std::size_t>(rows));
    for (std::size_t at = 0; at < ids.size(); ++at) {
      auto const row = ids[at] < 0 ? -1 : next[static_cast<std::size_t>(ids[at])]++;
      row_of.push_back(row);
      if (row >= 0) route_of[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(at);
    }
    auto const k = static_cast<std::size_t>(top_k);
    for (std::size_t at = 0; at < ids.size(); at += k)
      tokens_with_row += std::any_of(&ids[at], &ids[at] + k, [](int id) { return id >= 0; });
  }

  void draw() {
    random next(static_cast<std::uint64_t>(tokens) * 1000003u +
                static_cast<std::uint64_t>(experts * 8 + static_cast<int>(ids_drawn)));
    std::vector<double> up_to;  // the running sum of probabilities
    for (int e = 0; e < experts; ++e)
      up_to.push_back((e == 0 ? 0 : up_to.back()) + (ids_drawn == spread::zipf ? 1. / (e + 1) : 1));
    for (int t = 0; t < tokens; ++t) {
      auto const first = ids.size();
      if (ids_drawn == spread::hot && next() < .5) ids.push_back(0);
      while (ids.size() < first + static_cast<std::size_t>(top_k)) {
        auto const at = std::upper_bound(up_to.begin(), up_to.end(), next() * up_to.back());
        auto const e = std::min(static_cast<int>(at - up_to.begin()), experts - 1);
        if (std::find(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end(), e) == ids.end())
          ids.push_back(e);
      }
    }
    if (ids_drawn == spread::local)
      for (auto& id : ids)
        if (id >= (experts + 7) / 8) id = -1;
  }
};

}  // namespace bench

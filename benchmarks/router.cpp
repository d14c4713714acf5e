// SPDX-License-Identifier: Apache-2.0
// What route() costs on one core of the host, beside what else could be done with the same logits.
// Each round times all of them one after the other; the counters are medians over the rounds:
//   limit         M tokens/s of a scan that reads the logits and takes the largest of each row
//   route         M tokens/s of route() on one thread
//   lowest, highest  route in the slowest and in the fastest round
//   of_limit      route / limit
//   known         not of this run: M tokens/s of AVX-512 code that was written for these shapes
//                 alone, with weights within a relative 1.3e-6, on one core of another Zen 4
//   partial_sort  route / plain code for the same router that selects by std::partial_sort
//   insertion     route / the same code, selecting by insertion
//   two_threads   route() on two threads / on one, for as many tokens as have 8 MiB of logits
// The plain code takes std::exp of every score, or of the selected ones alone, row by row.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory_resource>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include <expar/router/detail/transpose.hpp>
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

namespace {

constexpr float none = -std::numeric_limits<float>::infinity();

struct shape {
  int tokens, experts, top_k, groups, top_groups;
};
constexpr shape shapes[] = {{16384, 8, 2, 4, 2},
                            {4096, 64, 6, 8, 4},
                            {4096, 128, 8, 8, 4},
                            {4096, 256, 8, 8, 4},
                            {4096, 384, 8, 8, 4}};

std::size_t size_of(int rows, int columns) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
}

struct : std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t) override {
    return ::operator new (bytes, std::align_val_t{64});
  }
  void do_deallocate(void* p, std::size_t, std::size_t) override {
    ::operator delete (p, std::align_val_t{64});
  }
  bool do_is_equal(memory_resource const& other) const noexcept override { return this == &other; }
} lines;

struct problem {
  shape s;
  int tokens_of_many;
  std::pmr::vector<float> logits;  // on a cache line, as tensors of frameworks are
  std::vector<float> bias, largest;
  expar::routes<float> routes, routes_of_many;

  explicit problem(shape of)
      : s(of),
        tokens_of_many((2 << 20) / s.experts),
        logits(size_of(tokens_of_many, s.experts), &lines),
        bias(size_of(s.experts, 1)),
        largest(size_of(s.tokens, 1)),
        routes(s.tokens, s.top_k),
        routes_of_many(tokens_of_many, s.top_k) {
    std::mt19937 bits(1);
    std::normal_distribution<float> normal;
    for (float& z : logits) z = normal(bits);
    for (float& b : bias) b = .1f * normal(bits);
  }

  auto view() const { return expar::make_view(logits.data(), s.tokens, s.experts); }
  auto many() const { return expar::make_view(logits.data(), tokens_of_many, s.experts); }
  float const* row(int t) const { return logits.data() + size_of(t, s.experts); }
};

/// The limit: each logit is read once, and the largest of a row taken.
template <int Experts>
void scan_rows(problem& p) {
  using pack = expar::detail::pack<float>;
  constexpr int lanes = pack::lanes, width = Experts < lanes ? Experts : lanes;
  alignas(64) float rows[lanes * width], columns[lanes * width];
  for (int t = 0; t < p.s.tokens; t += lanes) {
    if constexpr (Experts >= lanes) {
      for (int l = 0; l < lanes; ++l) {
        float const* const z = p.row(t + l);
        pack most[4] = {pack::load(z), pack::load(z), pack::load(z), pack::load(z)};
        for (int e = 0; e < Experts / lanes; ++e)
          most[e % 4] = larger(pack::load(z + e * lanes), most[e % 4]);
        larger(larger(most[0], most[1]), larger(most[2], most[3])).store(rows + l * width);
      }
    }
    expar::detail::transpose(Experts < lanes ? p.row(t) : static_cast<float const*>(rows), width,
                             width, static_cast<float*>(columns));
    pack most = pack::load(columns);
    for (int i = 1; i < width; ++i) most = larger(pack::load(columns + i * lanes), most);
    most.store(p.largest.data() + t);
  }
}
void scan(problem& p) {
  switch (p.s.experts) {
    case 8:
      return scan_rows<8>(p);
    case 64:
      return scan_rows<64>(p);
    case 128:
      return scan_rows<128>(p);
    case 256:
      return scan_rows<256>(p);
    default:
      return scan_rows<384>(p);
  }
}

/// Routers as one writes them down.
enum class plain_kind { softmax, full_softmax, selected_softmax, sigmoid };
template <plain_kind Kind>
struct plain_router {
  problem& p;
  std::vector<float> scores, keys, sums;
  std::vector<std::int32_t> order;

  explicit plain_router(problem& of)
      : p(of), scores(p.bias.size()), keys(scores), sums(scores), order(scores.size()) {}

  template <bool Sorts>
  void route() {
    int const experts = p.s.experts, k = p.s.top_k;
    for (int t = 0; t < p.s.tokens; ++t) {
      float const* const z = p.row(t);
      std::int32_t* const ids = p.routes.ids.row(t);
      float* const w = p.routes.weights.row(t);
      if (Kind == plain_kind::sigmoid)
        sigmoid_keys(z);
      else if (Kind == plain_kind::selected_softmax)
        std::copy_n(z, experts, keys.begin());
      else
        softmax_keys(z);
      if (Sorts) {
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int a, int b) {
          return key(a) > key(b) || (key(a) == key(b) && a < b);
        });
        std::copy_n(order.begin(), k, ids);
      } else {
        int found = 0;
        for (int e = 0; e < experts; ++e) {
          if (found == k && !(key(e) > key(ids[k - 1]))) continue;
          int at = found < k ? found++ : k - 1;
          for (; at > 0 && key(e) > key(ids[at - 1]); --at) ids[at] = ids[at - 1];
          ids[at] = e;
        }
      }
      float sum = 0;
      for (int j = 0; j < k; ++j)
        sum += w[j] = Kind == plain_kind::selected_softmax
                          ? std::exp(z[ids[j]] - z[ids[0]])
                          : scores[static_cast<std::size_t>(ids[j])];
      for (int j = 0; Kind != plain_kind::full_softmax && j < k; ++j) w[j] /= sum;
    }
  }

 private:
  float key(int e) const { return keys[static_cast<std::size_t>(e)]; }

  void softmax_keys(float const* z) {
    float const most = *std::max_element(z, z + p.s.experts);
    float sum = 0;
    for (std::size_t e = 0; e < scores.size(); ++e) sum += scores[e] = std::exp(z[e] - most);
    for (std::size_t e = 0; e < scores.size(); ++e) keys[e] = scores[e] /= sum;
  }
  void sigmoid_keys(float const* z) {
    for (std::size_t e = 0; e < scores.size(); ++e) {
      scores[e] = 1 / (1 + std::exp(-z[e]));
      keys[e] = scores[e] + p.bias[e];
    }
    auto const size = scores.size() / static_cast<std::size_t>(p.s.groups);
    for (int g = 0; g < p.s.groups; ++g) {
      float first = none, second = none;
      for (std::size_t i = 0; i < size; ++i) {
        float const key = keys[static_cast<std::size_t>(g) * size + i];
        if (key > first)
          second = first, first = key;
        else if (key > second)
          second = key;
      }
      sums[static_cast<std::size_t>(g)] = first + second;
    }
    for (int g = 0; g < p.s.groups; ++g) {
      float const mine = sums[static_cast<std::size_t>(g)];
      auto const better = std::count_if(sums.begin(), sums.begin() + p.s.groups,
                                        [mine](float sum) { return sum > mine; });
      if (better >= p.s.top_groups)
        std::fill_n(keys.begin() + g * static_cast<std::ptrdiff_t>(size), size, none);
    }
  }
};

template <class Route, class Plain>
void compare(benchmark::State& state, problem& p, Route route, Plain plain,
             double const* known = nullptr) {
  expar::host_context const one(1), two(2);
  auto const seconds = [](auto&& f) {  // of the second call: caches hold what they can
    f();
    benchmark::ClobberMemory();
    auto const start = std::chrono::steady_clock::now();
    f();
    benchmark::ClobberMemory();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::vector<double> limit, mine, of_limit, sorted, inserted, threads;
  auto const round = [&] {
    double const read = seconds([&] { scan(p); });
    double const alone = seconds([&] { route(one, p.view(), p.routes); });
    double const many = seconds([&] { route(one, p.many(), p.routes_of_many); });
    double const many_by_two = seconds([&] { route(two, p.many(), p.routes_of_many); });
    double const insertion = seconds([&] { plain.template route<false>(); });
    double const partial_sort = seconds([&] { plain.template route<true>(); });
    limit.push_back(p.s.tokens / read * 1e-6);
    mine.push_back(p.s.tokens / alone * 1e-6);
    of_limit.push_back(read / alone);
    sorted.push_back(partial_sort / alone);
    inserted.push_back(insertion / alone);
    threads.push_back(many / many_by_two);
    return alone;
  };
  round();
  for (auto* v : {&limit, &mine, &of_limit, &sorted, &inserted, &threads}) v->clear();
  for (auto _ : state) state.SetIterationTime(round());
  auto const median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  state.counters["limit"] = median(limit);
  state.counters["route"] = median(mine);
  state.counters["lowest"] = *std::min_element(mine.begin(), mine.end());
  state.counters["highest"] = *std::max_element(mine.begin(), mine.end());
  state.counters["of_limit"] = median(of_limit);
  if (known != nullptr) state.counters["known"] = known[state.range(0)];
  state.counters["partial_sort"] = median(sorted);
  state.counters["insertion"] = median(inserted);
  state.counters["two_threads"] = median(threads);
}

/// `make`: a model of this library that takes no bias.
template <plain_kind Kind, class Make>
void compare_model(benchmark::State& state, Make make, double const* known = nullptr) {
  problem p(shapes[state.range(0)]);
  auto const r = make(expar::router_shape{.experts = p.s.experts, .top_k = p.s.top_k});
  compare(
      state, p,
      [&](auto const& ctx, auto const& z, auto& routes) { expar::route(ctx, r, z, routes); },
      plain_router<Kind>(p), known);
}

// Softmax over all experts; the weights are divided by their sum (Arctic).
void route_softmax(benchmark::State& state) {
  compare_model<plain_kind::softmax>(state,
                                     [](auto shape) { return expar::models::arctic(shape); });
}

// Softmax over all experts (Qwen2-MoE).
void route_full_softmax(benchmark::State& state) {
  constexpr double known[] = {343, 28.3, 20.7, 12.1, 6.7};
  compare_model<plain_kind::full_softmax>(
      state, [](auto shape) { return expar::models::qwen2_moe(shape); }, known);
}

// The softmax of the selected logits alone (Mixtral, Qwen3-MoE): the weights of route_softmax, but
// for rounding.
void route_selected_softmax(benchmark::State& state) {
  constexpr double known[] = {623, 41.2, 33, 22.8, 11};
  compare_model<plain_kind::selected_softmax>(
      state, [](auto shape) { return expar::models::mixtral(shape); }, known);
}

// Sigmoid, bias and groups (DeepSeek-V3).
void route_sigmoid_groups(benchmark::State& state) {
  problem p(shapes[state.range(0)]);
  auto const r = expar::models::deepseek_v3({.experts = p.s.experts,
                                             .top_k = p.s.top_k,
                                             .groups = p.s.groups,
                                             .top_groups = p.s.top_groups,
                                             .scale = 2.5});
  compare(
      state, p,
      [&](auto const& ctx, auto const& z, auto& routes) {
        expar::route(ctx, r, z, p.bias, routes);
      },
      plain_router<plain_kind::sigmoid>(p));
}

BENCHMARK(route_softmax)->DenseRange(0, 4)->UseManualTime()->Iterations(25);
BENCHMARK(route_full_softmax)->DenseRange(0, 4)->UseManualTime()->Iterations(25);
BENCHMARK(route_selected_softmax)->DenseRange(0, 4)->UseManualTime()->Iterations(25);
BENCHMARK(route_sigmoid_groups)->DenseRange(0, 4)->UseManualTime()->Iterations(25);

}  // namespace

// SPDX-License-Identifier: Apache-2.0
// A whole layer forward and backward on two threads: a gate, and experts of two GEMMs with a ReLU
// between them, by OpenBLAS. T 2048, hidden 1024, inner 4096, 8 experts, 2 of them for each token.
// Counters, medians over the rounds:
//   ours        route, plan, encode, decode and all adjoints, as a share of the time of the layer
//   route, permute   parts of it: route with its adjoint and the plan; encode, decode, adjoints
//   gate        the GEMMs of the gate, a share that is not ours
#include <cblas.h>

#include <problem.hpp>
#include <rounds.hpp>

#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

namespace {

using namespace benchmarks;
constexpr index_t tokens = 2048, hidden = 1024, inner = 4096, experts = 8, top_k = 2;
constexpr index_t routes = tokens * top_k;
constexpr int threads = 2;

/// c = a * b, or with a or b transposed: c is [m, n], and the sum runs over k.
void gemm(bool a_transposed, bool b_transposed, index_t m, index_t n, index_t k, float const* a,
          float const* b, float* c) {
  auto const i = [](index_t v) { return static_cast<blasint>(v); };
  cblas_sgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans,
              b_transposed ? CblasTrans : CblasNoTrans, i(m), i(n), i(k), 1, a,
              i(a_transposed ? m : k), b, i(b_transposed ? k : n), 0, c, i(n));
}

class layer {
 public:
  layer() : routes_(tokens, top_k) {
    // Numbers of both signs, for a gate that prefers no expert.
    auto const center = [](array<float> const& a, float scale) {
      std::uint32_t state = 7;
      for (index_t i = 0; i < a.size(); ++i) {
        state = state * 1664525u + 1013904223u;
        a.data()[i] = (static_cast<float>(state >> 8) / (1 << 24) - 0.5f) * scale;
      }
    };
    center(x, 1), center(gate, .1f), center(d_out, 1);
    center(first, .1f), center(second, .1f);
  }

  void forward() {
    timed(gate_, [&] { gemm(false, true, tokens, experts, hidden, x.data(), gate.data(), z()); });
    timed(route_, [&] {
      expar::route(ctx, router, logits(), routes_);
      expar::make_plan(ctx, routes_.ids, int{experts}, expar::ragged{}, plan);
    });
    timed(permute_, [&] { expar::encode(ctx, plan, matrix(x), matrix(rows)); });
    timed(experts_, [&] {
      each_expert([&](index_t e, index_t from, index_t n) {
        float* const h = middle.data() + from * inner;
        gemm(false, true, n, inner, hidden, rows.data() + from * hidden, w1(e), h);
        for (index_t i = 0; i < n * inner; ++i) h[i] = h[i] > 0 ? h[i] : 0;
        gemm(false, true, n, hidden, inner, h, w2(e), y.data() + from * hidden);
      });
    });
    timed(permute_, [&] { expar::decode(ctx, plan, matrix(y), routes_.weights, matrix(out)); });
  }
  void backward() {
    timed(permute_, [&] {
      expar::decode_backward(ctx, plan, matrix(d_out), matrix(y), routes_.weights, matrix(d_y),
                             expar::make_view(d_weights.data(), tokens, top_k));
    });
    timed(experts_, [&] {
      each_expert([&](index_t e, index_t from, index_t n) {
        float const* const h = middle.data() + from * inner;
        float* const d_h = d_middle.data() + from * inner;
        float const* const d = d_y.data() + from * hidden;
        gemm(true, false, hidden, inner, n, d, h, d_second.data() + e * hidden * inner);
        gemm(false, false, n, inner, hidden, d, w2(e), d_h);
        for (index_t i = 0; i < n * inner; ++i) d_h[i] = h[i] > 0 ? d_h[i] : 0;
        gemm(true, false, inner, hidden, n, d_h, rows.data() + from * hidden,
             d_first.data() + e * hidden * inner);
        gemm(false, false, n, hidden, inner, d_h, w1(e), d_rows.data() + from * hidden);
      });
    });
    timed(permute_, [&] { expar::encode_backward(ctx, plan, matrix(d_rows), matrix(d_x)); });
    timed(route_, [&] {
      expar::route_backward(ctx, router, logits(), routes_,
                            expar::make_view(d_weights.data(), tokens, top_k),
                            expar::make_view(d_z.data(), tokens, experts));
    });
    timed(gate_, [&] {
      gemm(true, false, experts, hidden, tokens, d_z.data(), x.data(), d_gate.data());
      gemm(false, false, tokens, hidden, experts, d_z.data(), gate.data(), d_x_of_gate.data());
      for (index_t i = 0; i < d_x.size(); ++i) d_x.data()[i] += d_x_of_gate.data()[i];
    });
  }

  /// Along the gradient of x, the loss <out, d_out> grows by its square.
  bool is_right() {
    forward(), backward();
    array<float> const start(x.size()), slope(x.size());
    std::memcpy(start.data(), x.data(), x.bytes());
    std::memcpy(slope.data(), d_x.data(), d_x.bytes());
    double square = 0;
    for (index_t i = 0; i < x.size(); ++i) square += double{slope.data()[i]} * slope.data()[i];
    float const step = static_cast<float>(0.01 / std::sqrt(square / static_cast<double>(x.size())));
    auto const loss_at = [&](float at) {
      for (index_t i = 0; i < x.size(); ++i) x.data()[i] = start.data()[i] + at * slope.data()[i];
      forward();
      double sum = 0;
      for (index_t i = 0; i < x.size(); ++i) sum += double{out.data()[i]} * d_out.data()[i];
      return sum;
    };
    double const growth = (loss_at(step) - loss_at(-step)) / (2 * double{step});
    std::memcpy(x.data(), start.data(), x.bytes());
    return close(growth, square, 0.02);
  }

  double gate_ = 0, route_ = 0, permute_ = 0, experts_ = 0;

 private:
  template <class F>
  static void timed(double& sum, F f) {
    double const start = seconds_now();
    f();
    sum += seconds_now() - start;
  }
  template <class F>
  void each_expert(F f) {
    for (index_t e = 0; e < experts; ++e) {
      index_t const from = plan.offsets()[size_of(e)];
      f(e, from, plan.offsets()[size_of(e + 1)] - from);
    }
  }
  static expar::tensor_view<float, 2> matrix(array<float> const& a) {
    return expar::make_view(a.data(), a.size() / hidden, hidden);
  }
  float* z() const { return scores.data(); }
  expar::tensor_view<float, 2> logits() const { return expar::make_view(z(), tokens, experts); }
  float const* w1(index_t e) const { return first.data() + e * inner * hidden; }
  float const* w2(index_t e) const { return second.data() + e * hidden * inner; }

  array<float> x{tokens * hidden}, gate{experts * hidden}, scores{tokens * experts};
  array<float> first{experts * inner * hidden}, second{experts * hidden * inner};
  array<float> rows{routes * hidden}, middle{routes * inner}, y{rows.size()}, out{x.size()};
  array<float> d_out{x.size()}, d_y{y.size()}, d_middle{middle.size()}, d_rows{rows.size()};
  array<float> d_first{first.size()}, d_second{second.size()}, d_gate{gate.size()};
  array<float> d_weights{routes}, d_z{scores.size()}, d_x{x.size()}, d_x_of_gate{x.size()};

  expar::host_context ctx{threads};
  expar::route_plan plan;
  expar::routes<float> routes_;
  static constexpr auto router =
      expar::models::mixtral({.experts = int{experts}, .top_k = int{top_k}});
};

void whole_layer(benchmark::State& state) {
  openblas_set_num_threads(threads);
  layer l;
  if (!l.is_right()) fail("whole_layer");
  std::vector<double> ours, route, permute, gate;
  double waited = seconds_waited();
  int disturbed = 0;
  for (auto _ : state) {
    l.gate_ = l.route_ = l.permute_ = l.experts_ = 0;
    l.forward(), l.backward();
    double const all = l.gate_ + l.route_ + l.permute_ + l.experts_;
    state.SetIterationTime(all);
    ours.push_back((l.route_ + l.permute_) / all), route.push_back(l.route_ / all);
    permute.push_back(l.permute_ / all), gate.push_back(l.gate_ / all);
    double const now = seconds_waited();
    disturbed += now - waited > most_waited * all;
    waited = now;
  }
  put_quartiles(state, "ours", ours), put_quartiles(state, "route", route);
  put_quartiles(state, "permute", permute), put_quartiles(state, "gate", gate);
  state.counters["disturbed"] = disturbed;
}
BENCHMARK(whole_layer)->UseManualTime()->Iterations(9)->Unit(benchmark::kMillisecond);

}  // namespace

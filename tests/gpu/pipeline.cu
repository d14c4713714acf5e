// SPDX-License-Identifier: Apache-2.0
// The whole path on one rank: logits to routes, a plan and rows, rows to token rows, and back.
#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>
#include <expar/plan/plan.hpp>
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include <cmath>
#include <cstring>

#include "gpu/device.cuh"
#include "support/catch.hpp"
#include "support/one_rank.hpp"
#include "support/random.hpp"

using expar::index_t;
using expar_test::device_array;
using expar_test::runtime_calls;

namespace {

struct sizes {
  int tokens, k, experts, hidden;
};

using router_type = decltype(expar::models::mixtral({1, 1}));

/// Rows that any routing of a batch fits in: what a caller knows before the device does.
index_t most_rows(sizes const& s, expar::ragged layout) {
  return index_t{s.tokens} * s.k + index_t{s.experts} * (layout.alignment - 1);
}
index_t most_rows(sizes const& s, expar::fixed_capacity layout) {
  return s.experts * expar::capacity_of(layout, s.tokens, s.experts, s.k, 0);
}

/// What goes into the path.
struct inputs {
  std::vector<float> logits, tokens, d_out;

  inputs(std::uint64_t seed, sizes const& s) {
    expar_test::random rng(seed);
    auto const fill = [&](std::vector<float>& v, int columns, bool ties) {
      for (int i = 0; i < s.tokens * columns; ++i)
        v.push_back(ties && rng.chance(.2) ? static_cast<float>(rng.integer(-1, 1))
                                           : static_cast<float>(rng.uniform(-2, 2)));
    };
    fill(logits, s.experts, true);
    fill(tokens, s.hidden, false);
    fill(d_out, s.hidden, false);
  }
};

/// What comes out of it.
struct outputs {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, rows, out, d_y, d_weights, d_tokens, d_logits;

  friend bool operator==(outputs const&, outputs const&) = default;
};

/// Views of arrays that stand anywhere. The experts give what they get, so that what decode reads
/// is what encode wrote.
struct path {
  sizes size;
  index_t max_rows;

  auto per_expert(auto* p) const { return expar::make_view(p, size.tokens, size.experts); }
  auto per_choice(auto* p) const { return expar::make_view(p, size.tokens, size.k); }
  auto per_token(auto* p) const { return expar::make_view(p, size.tokens, size.hidden); }
  auto per_row(auto* p) const { return expar::make_view(p, max_rows, size.hidden); }
};

template <class Layout>
outputs on_host(sizes const& s, inputs in, Layout layout, expar::route_plan& plan) {
  expar::host_context const ctx;
  router_type const router = expar::models::mixtral({s.experts, s.k});
  outputs o;
  auto const n = static_cast<std::size_t>(s.tokens);
  o.ids.resize(n * static_cast<std::size_t>(s.k));
  o.weights.resize(o.ids.size());
  o.d_weights.resize(o.ids.size());
  o.d_logits.resize(in.logits.size());
  o.out.resize(in.tokens.size());
  o.d_tokens.resize(in.tokens.size());
  path const p{s, 0};
  expar::routes_view const routes{p.per_choice(o.ids.data()), p.per_choice(o.weights.data())};
  expar::route(ctx, router, p.per_expert(in.logits.data()), routes);
  plan = expar::make_plan(ctx, routes.ids, s.experts, layout);
  o.rows.resize(static_cast<std::size_t>(plan.rows() * s.hidden));
  o.d_y.resize(o.rows.size());
  path const q{s, plan.rows()};
  auto const rows = q.per_row(o.rows.data()), d_y = q.per_row(o.d_y.data());
  auto const d_weights = q.per_choice(o.d_weights.data());
  expar::encode(ctx, plan, q.per_token(in.tokens.data()), rows);
  expar::decode(ctx, plan, rows, routes.weights, q.per_token(o.out.data()));
  expar::decode_backward(ctx, plan, q.per_token(in.d_out.data()), rows, routes.weights, d_y,
                         d_weights);
  expar::encode_backward(ctx, plan, d_y, q.per_token(o.d_tokens.data()));
  expar::route_backward(ctx, router, q.per_expert(in.logits.data()), routes, d_weights,
                        q.per_expert(o.d_logits.data()));
  return o;
}

/// The path on the device: its arrays, and its operations in two directions.
template <class Layout>
class device_path {
 public:
  device_path(sizes const& s, Layout layout, index_t rows)
      : at_{s, rows},
        layout_(layout),
        router_(expar::models::mixtral({s.experts, s.k})),
        logits_(floats(s.tokens * index_t{s.experts})),
        tokens_(floats(s.tokens * index_t{s.hidden})),
        d_out_(floats(s.tokens * index_t{s.hidden})),
        ids_(std::vector<std::int32_t>(static_cast<std::size_t>(s.tokens * s.k), 77)),
        weights_(floats(s.tokens * index_t{s.k})),
        rows_(floats(rows * s.hidden)),
        out_(floats(s.tokens * index_t{s.hidden})),
        d_y_(floats(rows * s.hidden)),
        d_weights_(floats(s.tokens * index_t{s.k})),
        d_tokens_(floats(s.tokens * index_t{s.hidden})),
        d_logits_(floats(s.tokens * index_t{s.experts})) {}

  /// In stream order, to where the inputs before stood.
  void put(inputs const& in) const {
    put(in.logits, logits_), put(in.tokens, tokens_), put(in.d_out, d_out_);
  }
  void forward() {
    expar::gpu::gate_plan(ctx, router_, at_.per_expert(logits_.data()), layout_, routes(), plan_);
    expar::gpu::encode(ctx, plan_, at_.per_token(tokens_.data()), at_.per_row(rows_.data()));
    expar::gpu::decode(ctx, plan_, at_.per_row(rows_.data()), routes().weights,
                       at_.per_token(out_.data()));
  }
  void backward() const {
    expar::gpu::decode_backward(ctx, plan_, at_.per_token(d_out_.data()), at_.per_row(rows_.data()),
                                routes().weights, at_.per_row(d_y_.data()),
                                at_.per_choice(d_weights_.data()));
    expar::gpu::encode_backward(ctx, plan_, at_.per_row(d_y_.data()),
                                at_.per_token(d_tokens_.data()));
    expar::gpu::route_backward(ctx, router_, at_.per_expert(logits_.data()), routes(),
                               at_.per_choice(d_weights_.data()), at_.per_expert(d_logits_.data()));
  }
  /// Waits.
  outputs results() const {
    stream.wait();
    return {ids_.read(), weights_.read(),   rows_.read(),     out_.read(),
            d_y_.read(), d_weights_.read(), d_tokens_.read(), d_logits_.read()};
  }
  expar::gpu::plan_sums sums() const { return expar::gpu::read_sync(ctx, plan_); }
  std::vector<long long> rows() const { return expar_test::rows_of(ctx, plan_); }

  expar_test::own_stream const stream{};
  expar::gpu::context const ctx{stream};

 private:
  static std::vector<float> floats(index_t n) {
    return std::vector<float>(static_cast<std::size_t>(n), 77);
  }
  void put(std::vector<float> const& from, device_array<float> const& to) const {
    if (!from.empty())
      expar_test::require_success(cudaMemcpyAsync(to.data(), from.data(),
                                                  from.size() * sizeof(float),
                                                  cudaMemcpyHostToDevice, stream.get()));
  }
  expar::routes_view<float> routes() const {
    return {at_.per_choice(ids_.data()), at_.per_choice(weights_.data())};
  }

  path at_;
  Layout layout_;
  router_type router_;
  device_array<float> logits_, tokens_, d_out_;
  device_array<std::int32_t> ids_;
  device_array<float> weights_, rows_, out_, d_y_, d_weights_, d_tokens_, d_logits_;
  expar::gpu::route_plan plan_{ctx};
};

constexpr sizes all_sizes[] = {{50, 2, 8, 24}, {33, 1, 5, 7},   {20, 4, 4, 64},
                               {0, 2, 4, 8},   {64, 8, 60, 12}, {9, 1, 1, 3}};

/// The rows of the layout, of arrays with room for more.
std::vector<float> first(std::vector<float> v, std::size_t n) {
  REQUIRE(v.size() >= n);
  v.resize(n);
  return v;
}

template <class Layout>
void require_path_of_host(sizes const& s, Layout layout, std::uint64_t seed) {
  CAPTURE(s.tokens, s.k, s.experts, s.hidden, seed);
  inputs const in(seed, s);
  expar::route_plan plan;
  outputs const host = on_host(s, in, layout, plan);
  device_path device(s, layout, most_rows(s, layout));
  device.put(in);
  device.forward();
  device.backward();
  outputs o = device.results();

  REQUIRE(o.ids == host.ids);
  REQUIRE(o.weights == host.weights);
  std::vector<long long> rows;
  for (int t = 0; t < s.tokens; ++t)
    for (int j = 0; j < s.k; ++j) rows.push_back(plan.row(t, j));
  REQUIRE(device.rows() == rows);
  REQUIRE(device.sums().dropped() == plan.dropped());
  REQUIRE(first(o.rows, host.rows.size()) == host.rows);
  REQUIRE(o.out == host.out);
  REQUIRE(first(o.d_y, host.d_y.size()) == host.d_y);
  REQUIRE(o.d_tokens == host.d_tokens);

  // Dot products are summed in another order: both have the error of a sum of `hidden` products.
  constexpr double u = expar_test::rounding<float>();
  std::vector<double> error(o.ids.size());
  for (int t = 0; t < s.tokens; ++t)
    for (int j = 0; j < s.k; ++j) {
      auto const at = static_cast<std::size_t>(t * s.k + j);
      expar_test::exact_sum dot;
      for (int h = 0; h < s.hidden && rows[at] >= 0; ++h)
        dot.add(double{host.rows[static_cast<std::size_t>(rows[at] * s.hidden + h)]} *
                double{in.d_out[static_cast<std::size_t>(t * s.hidden + h)]});
      REQUIRE(dot.holds(o.d_weights[at], 0, u));
      REQUIRE(dot.holds(host.d_weights[at], 0, u));
      error[at] = std::abs(double{o.d_weights[at]} - double{host.d_weights[at]});
    }

  // From there on the bytes are those of the host again.
  std::vector<float> d_logits(o.d_logits.size());
  path const p{s, 0};
  expar::route_backward(
      expar::host_context{}, expar::models::mixtral({s.experts, s.k}),
      p.per_expert(in.logits.data()),
      expar::routes_view<float>{p.per_choice(o.ids.data()), p.per_choice(o.weights.data())},
      p.per_choice(o.d_weights.data()), p.per_expert(d_logits.data()));
  REQUIRE(o.d_logits == d_logits);

  // The gradient of a token's logits is linear in those of its weights, which are a softmax over
  // the chosen: its coefficients w (1 - w) and -w w' are at most 1/4. Each side makes k + 8
  // roundings of numbers that are at most four times the sum of the gradients.
  for (int t = 0; t < s.tokens; ++t) {
    double carried = 0, size = 0;
    for (int j = 0; j < s.k; ++j) {
      auto const at = static_cast<std::size_t>(t * s.k + j);
      carried += error[at];
      size += std::abs(double{host.d_weights[at]});
    }
    for (int e = 0; e < s.experts; ++e) {
      auto const at = static_cast<std::size_t>(t * s.experts + e);
      REQUIRE(std::abs(double{o.d_logits[at]} - double{host.d_logits[at]}) <=
              carried / 4 + 8 * (s.k + 8) * u * size);
    }
  }
}

}  // namespace

TEST_CASE("the whole path gives on the device what it gives on the host") {
  std::uint64_t seed = 1;
  for (sizes const& s : all_sizes) {
    require_path_of_host(s, expar::ragged{}, seed++);
    require_path_of_host(s, expar::ragged{4}, seed++);
    require_path_of_host(s, expar::fixed_capacity{.75, 2}, seed++);
  }
}

TEST_CASE("three launches there and three back, and nothing else") {
  if (!runtime_calls::counted()) {
    WARN("nothing counts the calls of a real device; passed over");
    return;
  }
  auto const require = [](sizes const& s, auto layout) {
    CAPTURE(s.tokens, s.k, s.experts, s.hidden);
    device_path device(s, layout, most_rows(s, layout));
    device.put(inputs(1, s));
    device.forward();  // the plan grows
    for (int i = 0; i < 3; ++i) {
      device.put(inputs(static_cast<std::uint64_t>(i) + 2, s));
      auto const start = runtime_calls::now();
      device.forward();
      REQUIRE(runtime_calls::now().since(start) == std::vector<unsigned long>{3, 0, 0, 0, 0});
      auto const middle = runtime_calls::now();
      device.backward();
      REQUIRE(runtime_calls::now().since(middle) == std::vector<unsigned long>{3, 0, 0, 0, 0});
    }
    device.stream.wait();
  };
  for (sizes const& s : {sizes{50, 2, 8, 24}, sizes{64, 8, 60, 12}}) {
    require(s, expar::ragged{});
    require(s, expar::ragged{4});
    require(s, expar::fixed_capacity{1});
  }
}

namespace {

/// A captured graph, ready to be launched.
struct captured {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;

  captured() = default;
  captured(captured const&) = delete;
  ~captured() {
    if (ready != nullptr) static_cast<void>(cudaGraphExecDestroy(ready));
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  }
};

}  // namespace

TEST_CASE("the path is captured once and replayed for other logits and tokens") {
  auto const require = [](auto layout) {
    sizes const s{50, 2, 8, 24};
    index_t const rows = most_rows(s, layout);
    device_path replayed(s, layout, rows), eager(s, layout, rows);
    for (auto* const d : {&replayed, &eager}) {
      d->put(inputs(1, s));
      d->forward();  // the plans grow
      d->backward();
      d->stream.wait();
    }
    cudaError_t const code =
        cudaStreamBeginCapture(replayed.stream.get(), cudaStreamCaptureModeGlobal);
    if (code == cudaErrorNotSupported) {
      static_cast<void>(cudaGetLastError());
      WARN("this device captures no graphs; passed over");
      return;
    }
    expar_test::require_success(code);
    replayed.forward();
    replayed.backward();
    captured graph;
    expar_test::require_success(cudaStreamEndCapture(replayed.stream.get(), &graph.graph));
    std::size_t nodes = 0;
    expar_test::require_success(cudaGraphGetNodes(graph.graph, nullptr, &nodes));
    REQUIRE(nodes == 6);
    expar_test::require_success(cudaGraphInstantiate(&graph.ready, graph.graph, 0));
    for (std::uint64_t seed = 2; seed < 8; ++seed) {
      CAPTURE(seed);
      inputs const in(seed, s);
      replayed.put(in);
      eager.put(in);
      expar_test::require_success(cudaGraphLaunch(graph.ready, replayed.stream.get()));
      eager.forward();
      eager.backward();
      REQUIRE(replayed.rows() == eager.rows());
      auto const sums = replayed.sums();
      REQUIRE(sums.counts == eager.sums().counts);
      REQUIRE(sums.offsets == eager.sums().offsets);
      // Rows behind the layout keep what they held, and both paths held the same.
      bool const same = replayed.results() == eager.results();
      REQUIRE(same);
    }
  };
  require(expar::ragged{});
  require(expar::fixed_capacity{.75, 2});
}

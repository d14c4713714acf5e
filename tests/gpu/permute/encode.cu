// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/encode.cuh>

#include <expar/permute/encode.hpp>

#include "problem.cuh"

using namespace expar_test;
using expar::index_t;

TEMPLATE_TEST_CASE("rows encoded on the device have the bytes of the host", "", double, float,
                   expar::half, expar::bfloat16, expar::float8_e4m3) {
  for (shape const& s : shapes())
    in_all_layouts(s, [&](auto& p) {
      auto x = p.template values<TestType>(s.tokens, s.hidden);
      auto w = p.template values<weight_t<TestType>>(s.tokens, s.k);
      grid<TestType> const blank(p.host.rows(), s.hidden, s.gap);
      auto rows = blank, weighted = blank;
      expar::encode(p.on_host, p.host, x.view(), rows.view());
      expar::encode(p.on_host, p.host, x.view(), w.view(), weighted.view());

      auto const dx = p.on_device(x);
      auto const dw = p.on_device(w);
      auto const plain_out = p.on_device(blank), weighted_out = p.on_device(blank);
      REQUIRE(
          (launches_of(
               1, [&] { expar::gpu::encode(p.ctx, p.device, dx.view(), plain_out.view()); }) == 1 ||
           s.tokens == 0));
      expar::gpu::encode(p.ctx, p.device, dx.view(), dw.view(), weighted_out.view());
      auto got = p.back(plain_out, blank), got_weighted = p.back(weighted_out, blank);
      REQUIRE(same_bytes(got, rows));
      REQUIRE(same_bytes(got_weighted, weighted));
    });
}

TEMPLATE_TEST_CASE("what comes back through encode_backward has the bytes of the host", "", float,
                   expar::bfloat16) {
  for (shape const& s : shapes())
    in_all_layouts(s, [&](auto& p) {
      auto d_rows = p.template rows<TestType>();
      auto x = p.template values<TestType>(s.tokens, s.hidden);
      auto w = p.template values<float>(s.tokens, s.k);
      grid<TestType> const blank(s.tokens, s.hidden, s.gap);
      grid<float> const blank_w(s.tokens, s.k, s.gap);
      auto plain = blank, d_x = blank;
      auto d_w = blank_w;
      expar::encode_backward(p.on_host, p.host, d_rows.view(), plain.view());
      expar::encode_backward(p.on_host, p.host, d_rows.view(), x.view(), w.view(), d_x.view(),
                             d_w.view());

      auto const rows = p.on_device(d_rows);
      auto const tokens = p.on_device(x);
      auto const weights = p.on_device(w);
      auto const plain_out = p.on_device(blank), d_x_out = p.on_device(blank);
      auto const d_w_out = p.on_device(blank_w);
      expar::gpu::encode_backward(p.ctx, p.device, rows.view(), plain_out.view());
      REQUIRE((launches_of(2,
                           [&] {
                             expar::gpu::encode_backward(p.ctx, p.device, rows.view(),
                                                         tokens.view(), weights.view(),
                                                         d_x_out.view(), d_w_out.view());
                           }) == 2 ||
               s.tokens == 0));
      auto got_plain = p.back(plain_out, blank), got_x = p.back(d_x_out, blank);
      auto got_w = p.back(d_w_out, blank_w);
      REQUIRE(same_bytes(got_plain, plain));
      REQUIRE(same_bytes(got_x, d_x));
      REQUIRE(got_w.gaps_intact());
      require_dots<TestType>(p, d_rows, x, got_w);
    });
}

TEST_CASE("weights travel with the rows in the same launch") {
  auto all = shapes();
  all.push_back({5, 2, 4, 0});  // weights alone
  for (shape const& s : all)
    in_all_layouts(s, [&](auto& p) {
      auto x = p.template values<expar::bfloat16>(s.tokens, s.hidden);
      auto w = p.template values<float>(s.tokens, s.k);
      grid<expar::bfloat16> const blank(p.host.rows(), s.hidden, s.gap);
      auto rows = blank;
      std::vector<float> const blank_w(static_cast<std::size_t>(p.host.rows()), 77);
      auto row_weights = blank_w;
      expar::encode(p.on_host, p.host, x.view(), w.view(), rows.view(), row_weights);

      auto const dx = p.on_device(x), rows_out = p.on_device(blank);
      auto const dw = p.on_device(w);
      device_array<float> const w_out(blank_w);
      auto const w_view = expar::make_view(w_out.data(), p.host.rows());
      REQUIRE((launches_of(1,
                           [&] {
                             expar::gpu::encode(p.ctx, p.device, dx.view(), dw.view(),
                                                rows_out.view(), w_view);
                           }) == 1 ||
               s.tokens == 0));
      auto got = p.back(rows_out, blank);
      REQUIRE(same_bytes(got, rows));
      REQUIRE(w_out.read() == row_weights);
    });
}

TEST_CASE("with fill::none rows on the device that no route has keep what they hold") {
  auto const keep = expar::fill::none;
  in_all_layouts(shape{12, 2, 5, 20}, [&](auto& p) {
    auto x = p.template values<float>(12, 20), w = p.template values<float>(12, 2);
    grid<float> const blank(p.host.rows(), 20);
    auto none = blank, weighted = blank;
    expar::encode(p.on_host, p.host, x.view(), none.view(), keep);
    expar::encode(p.on_host, p.host, x.view(), w.view(), weighted.view(), keep);
    auto const dx = p.on_device(x), dw = p.on_device(w), none_out = p.on_device(blank),
               weighted_out = p.on_device(blank), carried_out = p.on_device(blank);
    device_array<float> const w_out(std::vector<float>(p.host.rows(), 77));
    expar::gpu::encode(p.ctx, p.device, dx.view(), none_out.view(), keep);
    expar::gpu::encode(p.ctx, p.device, dx.view(), dw.view(), weighted_out.view(), keep);
    expar::gpu::encode(p.ctx, p.device, dx.view(), dw.view(), carried_out.view(),
                       expar::make_view(w_out.data(), p.host.rows()), keep);
    auto got = p.back(none_out, blank), got_weighted = p.back(weighted_out, blank),
         got_carried = p.back(carried_out, blank);
    REQUIRE(same_bytes(got, none));
    REQUIRE(same_bytes(got_weighted, weighted));
    REQUIRE(same_bytes(got_carried, none));
    std::vector<float> row_weights(p.host.rows(), 77);
    expar::encode_weights(p.on_host, p.host, w.view(), row_weights, keep);
    REQUIRE(w_out.read() == row_weights);
  });
}

TEST_CASE("encode leaves rows behind the layout alone, and those that are missing out") {
  two_plans p(shape{40, 3, 5, 12}, expar::ragged{4});
  auto x = p.values<float>(40, 12);
  grid<float> wanted(p.host.rows(), 12);
  expar::encode(p.on_host, p.host, x.view(), wanted.view());
  auto const dx = p.on_device(x);
  for (index_t const n : {p.host.rows() - 9, p.host.rows(), p.device.max_rows() + 2, index_t{0}}) {
    CAPTURE(n);
    grid<float> blank(n, 12);
    auto const out = p.on_device(blank);
    expar::gpu::encode(p.ctx, p.device, dx.view(), out.view());
    auto const got = p.back(out, blank);
    bool same = true;
    for (index_t r = 0; r < n; ++r)
      for (int c = 0; c < 12; ++c)
        same = same && got.get(r, c) == (r < p.host.rows() ? wanted.get(r, c) : 77);
    REQUIRE(same);

    auto const d_x = p.on_device(x);
    expar::gpu::encode_backward(p.ctx, p.device, out.view(), d_x.view());
    auto const back = p.back(d_x, x);
    same = true;
    for (int t = 0; t < 40; ++t) {
      int kept = 0;
      for (int j = 0; j < 3; ++j) kept += p.host.row(t, j) >= 0 && p.host.row(t, j) < n;
      for (int c = 0; c < 12; ++c)
        same = same && std::abs(back.get(t, c) - kept * x.get(t, c)) <= 1e-6;
    }
    REQUIRE(same);
  }
}

TEST_CASE("one launch encodes, and two come back with the gradient of weights") {
  two_plans p(shape{6, 2, 4, 16}, expar::ragged{4});
  auto x = p.values<float>(6, 16), w = p.values<float>(6, 2), y = p.rows<float>();
  auto const dx = p.on_device(x), dw = p.on_device(w), rows = p.on_device(y);
  using expar::gpu::encode;
  using expar::gpu::encode_backward;
  CHECK(launches_of(1, [&] { encode(p.ctx, p.device, dx.view(), rows.view()); }) == 1);
  CHECK(launches_of(1, [&] { encode(p.ctx, p.device, dx.view(), dw.view(), rows.view()); }) == 1);
  CHECK(launches_of(1, [&] { encode_backward(p.ctx, p.device, rows.view(), dx.view()); }) == 1);
  auto const back = p.on_device(x);
  auto const d_w = p.on_device(w);
  CHECK(launches_of(2, [&] {
          encode_backward(p.ctx, p.device, rows.view(), dx.view(), dw.view(), back.view(),
                          d_w.view());
        }) == 2);
}

TEST_CASE("encode on the device says what it cannot do, by name") {
  two_plans p(shape{2, 1, 2, 4, 0, 0, 0}, expar::fixed_capacity{1});  // two rows
  device_array<float> const a(std::vector<float>(64)), b(std::vector<float>(64));
  auto const view = [](device_array<float> const& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  REQUIRE(p.device.max_rows() == 2);
  CHECK_THROWS_WITH(
      expar::gpu::encode(p.ctx, p.device, view(a, 3, 4), view(b, 2, 4)),
      "expar: encode: tokens has extent 3 in dimension 0, but the number of tokens in the "
      "plan is 2");
  CHECK_THROWS_WITH(
      expar::gpu::encode(p.ctx, p.device, view(a, 2, 4), view(b, 3, 4)),
      "expar: encode: rows has extent 3 in dimension 0, but the number of rows in the plan "
      "is 2");
  CHECK_THROWS_WITH(
      expar::gpu::encode(p.ctx, p.device, view(a, 2, 4), view(b, 2, 5)),
      "expar: encode: rows has extent 5 in dimension 1, but the row size on the other side "
      "is 4");
  CHECK_THROWS_WITH(
      expar::gpu::encode(p.ctx, p.device, view(a, 2, 4), view(a, 2, 4)),
      "expar: encode: rows overlaps tokens in memory; the operation cannot work in place");
  CHECK_THROWS_WITH(
      expar::gpu::encode(p.ctx, p.device, view(a, 2, 4), view(a, 2, 2), view(b, 2, 4)),
      "expar: encode: weights has extent 2 in dimension 1, but top_k of the plan is 1");
  CHECK_THROWS_WITH(
      expar::gpu::encode(p.ctx, p.device, view(a, 2, 4), view(a, 2, 1), view(b, 2, 4),
                         expar::make_view(b.data() + 8, 3)),
      "expar: encode: row_weights has extent 3 in dimension 0, but the number of rows is 2");
  CHECK_THROWS_WITH(
      expar::gpu::encode_backward(p.ctx, p.device, view(a, 2, 4), view(b, 1, 4)),
      "expar: encode_backward: d_tokens has extent 1 in dimension 0, but the number of "
      "tokens in the plan is 2");
  CHECK_THROWS_WITH(
      expar::gpu::encode_backward(p.ctx, p.device, view(a, 2, 4), view(a, 2, 5), view(a, 2, 1),
                                  view(b, 2, 4), view(b, 2, 1)),
      "expar: encode_backward: tokens has extent 5 in dimension 1, but the row size on the other "
      "side is 4");
}

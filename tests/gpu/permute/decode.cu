// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/decode.cuh>

#include <expar/permute/decode.hpp>

#include "problem.cuh"

using namespace expar_test;
using expar::index_t;

TEMPLATE_TEST_CASE("tokens decoded on the device have the bytes of the host", "", double, float,
                   expar::half, expar::bfloat16, expar::float8_e4m3) {
  auto all = shapes();
  for (int k : {1, 2, 4, 5, 6, 8, 33}) all.push_back({5, k, 9, 48});  // known counts, and others
  for (shape const& s : all)
    in_all_layouts(s, [&](auto& p) {
      auto rows = p.template rows<TestType>();
      auto w = p.template values<weight_t<TestType>>(s.tokens, s.k);
      grid<TestType> const blank(s.tokens, s.hidden, s.gap);
      auto plain = blank, weighted = blank;
      expar::decode(p.on_host, p.host, rows.view(), plain.view());
      expar::decode(p.on_host, p.host, rows.view(), w.view(), weighted.view());

      auto const dy = p.on_device(rows);
      auto const dw = p.on_device(w);
      auto const plain_out = p.on_device(blank), weighted_out = p.on_device(blank);
      expar::gpu::decode(p.ctx, p.device, dy.view(), plain_out.view());
      expar::gpu::decode(p.ctx, p.device, dy.view(), dw.view(), weighted_out.view());
      auto got = p.back(plain_out, blank), got_weighted = p.back(weighted_out, blank);
      REQUIRE(same_bytes(got, plain));
      REQUIRE(same_bytes(got_weighted, weighted));
    });
}

TEST_CASE("decode rounds once into the type of its output") {
  for (shape const& s : shapes())
    in_all_layouts(s, [&](auto& p) {
      auto rows = p.template rows<expar::bfloat16>();
      auto w = p.template values<expar::half>(s.tokens, s.k);
      grid<float> const blank(s.tokens, s.hidden, s.gap);
      auto wanted = blank;
      expar::decode(p.on_host, p.host, rows.view(), w.view(), wanted.view());
      auto const dy = p.on_device(rows);
      auto const dw = p.on_device(w);
      auto const out = p.on_device(blank);
      expar::gpu::decode(p.ctx, p.device, dy.view(), dw.view(), out.view());
      auto got = p.back(out, blank);
      REQUIRE(same_bytes(got, wanted));
    });
}

TEST_CASE("a residual is the first term, as on the host") {
  auto all = shapes();
  for (int k : {1, 2, 4, 6, 8}) all.push_back({5, k, 9, 48});
  for (shape const& s : all)
    in_all_layouts(s, [&](auto& p) {
      auto rows = p.template rows<expar::bfloat16>();
      auto residual = p.template values<expar::bfloat16>(s.tokens, s.hidden);
      auto w = p.template values<float>(s.tokens, s.k);
      grid<expar::bfloat16> const blank(s.tokens, s.hidden, s.gap);
      auto wanted = blank;
      expar::decode(p.on_host, p.host, rows.view(), w.view(), residual.view(), wanted.view());
      auto const dy = p.on_device(rows), dr = p.on_device(residual), out = p.on_device(blank);
      auto const dw = p.on_device(w);
      expar::gpu::decode(p.ctx, p.device, dy.view(), dw.view(), dr.view(), out.view());
      expar::gpu::decode(p.ctx, p.device, dy.view(), dw.view(), dr.view(), dr.view());
      auto got = p.back(out, blank), in_place = p.back(dr, blank);
      REQUIRE(same_bytes(got, wanted));
      REQUIRE(same_bytes(in_place, wanted));
    });
}

TEMPLATE_TEST_CASE("decode_backward gives the rows of the host, and dots within their rounding", "",
                   double, float, expar::half, expar::bfloat16) {
  auto all = shapes();
  for (int k : {1, 2, 4, 5, 6, 8, 33}) all.push_back({5, k, 9, 48});
  for (int h : {1024 + 8, 2048 + 16, 4096 + 32}) all.push_back({3, 2, 4, h});  // 2, 4, 8 warps
  for (shape const& s : all)
    in_all_layouts(s, [&](auto& p) {
      auto rows = p.template rows<TestType>();
      auto d_out = p.template values<TestType>(s.tokens, s.hidden);
      auto w = p.template values<weight_t<TestType>>(s.tokens, s.k);
      grid<TestType> const blank(p.host.rows(), s.hidden, s.gap);
      grid<weight_t<TestType>> const blank_w(s.tokens, s.k, s.gap);
      auto plain = blank, d_rows = blank;
      auto d_w = blank_w;
      expar::decode_backward(p.on_host, p.host, d_out.view(), plain.view());
      expar::decode_backward(p.on_host, p.host, d_out.view(), rows.view(), w.view(), d_rows.view(),
                             d_w.view());

      auto const dd = p.on_device(d_out), dy = p.on_device(rows);
      auto const dw = p.on_device(w);
      auto const plain_out = p.on_device(blank), d_rows_out = p.on_device(blank);
      auto const d_w_out = p.on_device(blank_w), again_out = p.on_device(blank_w);
      expar::gpu::decode_backward(p.ctx, p.device, dd.view(), plain_out.view());
      expar::gpu::decode_backward(p.ctx, p.device, dd.view(), dy.view(), dw.view(),
                                  d_rows_out.view(), d_w_out.view());
      auto got_plain = p.back(plain_out, blank), got = p.back(d_rows_out, blank);
      auto got_w = p.back(d_w_out, blank_w);
      REQUIRE(same_bytes(got_plain, plain));
      REQUIRE(same_bytes(got, d_rows));
      REQUIRE(got_w.gaps_intact());
      require_dots<TestType>(p, rows, d_out, got_w);

      // In place, and the same dots.
      expar::gpu::decode_backward(p.ctx, p.device, dd.view(), dy.view(), dw.view(), dy.view(),
                                  again_out.view());
      auto got_here = p.back(dy, blank);
      auto got_again = p.back(again_out, blank_w);
      REQUIRE(same_bytes(got_here, d_rows));
      REQUIRE(same_bytes(got_again, got_w));
    });
}

TEST_CASE("decode skips rows that are missing past the end") {
  two_plans p(shape{40, 3, 5, 12}, expar::ragged{4});
  auto const rows = p.rows<float>();
  auto const d_out = p.values<float>(40, 12);
  auto const w = p.values<float>(40, 3);
  index_t const n = p.host.rows() - 9;
  grid<float> fewer(n, 12), blank(40, 12), blank_w(40, 3);
  for (index_t r = 0; r < n; ++r)
    for (int c = 0; c < 12; ++c) fewer.set(r, c, rows.get(r, c));
  auto const dy = p.on_device(fewer), out = p.on_device(blank), dd = p.on_device(d_out);
  auto const dw = p.on_device(w), d_w = p.on_device(blank_w);
  expar::gpu::decode(p.ctx, p.device, dy.view(), out.view());
  expar::gpu::decode_backward(p.ctx, p.device, dd.view(), dy.view(), dw.view(), dy.view(),
                              d_w.view());
  auto const got = p.back(out, blank), got_w = p.back(d_w, blank_w);
  bool holds = true;
  for (int t = 0; t < 40; ++t)
    for (int c = 0; c < 12; ++c) {
      exact_sum sum;
      for (int j = 0; j < 3; ++j)
        if (p.host.row(t, j) >= 0 && p.host.row(t, j) < n)
          sum.add(rows.get(p.host.row(t, j), c));
        else if (c == 0)
          holds = holds && got_w.get(t, j) == 0;
      holds = holds && sum.holds(got.get(t, c), 0, sum_rounding<float>());
    }
  REQUIRE(holds);
}

TEST_CASE("with fill::none rows that no route has keep what they hold on the way back") {
  auto const keep = expar::fill::none;
  in_all_layouts(shape{12, 2, 5, 20}, [&](auto& p) {
    auto d = p.template values<float>(12, 20), w = p.template values<float>(12, 2);
    auto y = p.template rows<float>();
    grid<float> const blank(p.host.rows(), 20);
    auto plain = blank, weighted = blank;
    grid<float> d_w(12, 2);
    expar::decode_backward(p.on_host, p.host, d.view(), plain.view(), keep);
    expar::decode_backward(p.on_host, p.host, d.view(), y.view(), w.view(), weighted.view(),
                           d_w.view(), keep);
    auto const dd = p.on_device(d), dw = p.on_device(w), dy = p.on_device(y),
               plain_out = p.on_device(blank), weighted_out = p.on_device(blank),
               d_w_out = p.on_device(w);
    expar::gpu::decode_backward(p.ctx, p.device, dd.view(), plain_out.view(), keep);
    expar::gpu::decode_backward(p.ctx, p.device, dd.view(), dy.view(), dw.view(),
                                weighted_out.view(), d_w_out.view(), keep);
    auto got = p.back(plain_out, blank), got_weighted = p.back(weighted_out, blank);
    REQUIRE(same_bytes(got, plain));
    REQUIRE(same_bytes(got_weighted, weighted));
  });
}

TEST_CASE("one launch decodes, and one comes back") {
  two_plans p(shape{6, 2, 4, 16}, expar::ragged{4});
  auto x = p.values<float>(6, 16), w = p.values<float>(6, 2), y = p.rows<float>();
  auto const dx = p.on_device(x), dw = p.on_device(w), d_w = p.on_device(w), rows = p.on_device(y);
  using expar::gpu::decode;
  using expar::gpu::decode_backward;
  CHECK(launches_of(1, [&] { decode(p.ctx, p.device, rows.view(), dx.view()); }) == 1);
  CHECK(launches_of(1, [&] { decode(p.ctx, p.device, rows.view(), dw.view(), dx.view()); }) == 1);
  CHECK(launches_of(1, [&] { decode_backward(p.ctx, p.device, dx.view(), rows.view()); }) == 1);
  CHECK(launches_of(1, [&] {
          decode_backward(p.ctx, p.device, dx.view(), rows.view(), dw.view(), rows.view(),
                          d_w.view());
        }) == 1);
}

TEST_CASE("decode on the device says what it cannot do, by name") {
  two_plans p(shape{2, 1, 2, 4, 0, 0, 0}, expar::fixed_capacity{1});  // two rows
  device_array<float> const a(std::vector<float>(64)), b(std::vector<float>(64));
  auto const view = [](device_array<float> const& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  CHECK_THROWS_WITH(
      expar::gpu::decode(p.ctx, p.device, view(a, 3, 4), view(b, 2, 4)),
      "expar: decode: rows has extent 3 in dimension 0, but the number of rows in the plan "
      "is 2");
  CHECK_THROWS_WITH(
      expar::gpu::decode(p.ctx, p.device, view(a, 2, 4), view(b, 4, 1), view(b, 2, 4)),
      "expar: decode: weights has extent 4 in dimension 0, but the number of tokens in the "
      "plan is 2");
  CHECK_THROWS_WITH(
      expar::gpu::decode(p.ctx, p.device, view(a, 2, 4), view(b, 2, 3)),
      "expar: decode: out has extent 3 in dimension 1, but the row size on the other side "
      "is 4");
  CHECK_THROWS_WITH(
      expar::gpu::decode(p.ctx, p.device, view(a, 2, 4), view(a, 2, 4)),
      "expar: decode: out overlaps rows in memory; the operation cannot work in place");
  CHECK_THROWS_WITH(
      expar::gpu::decode(p.ctx, p.device, view(a, 2, 4), view(a, 2, 1),
                         expar::make_view(b.data() + 1, 2, 4), view(b, 2, 4)),
      "expar: decode: out overlaps residual in memory; it is that very tensor, or apart from it");
  CHECK_THROWS_WITH(
      expar::gpu::decode_backward(p.ctx, p.device, view(a, 2, 4), view(a, 2, 4), view(a, 2, 1),
                                  view(b, 2, 4), view(b, 2, 2)),
      "expar: decode_backward: d_weights has extent 2 in dimension 1, but top_k of the plan is 1");
  two_plans q(shape{2, 1, 2, 4, 0, 0, 0}, expar::ragged{});
  CHECK_THROWS_WITH(
      expar::gpu::decode_backward(q.ctx, q.device, view(a, 2, 4), view(a, 2, 4), view(a, 2, 1),
                                  view(b, 3, 4), view(a, 2, 1)),
      "expar: decode_backward: d_rows has extent 3 in dimension 0, but the number of rows is 2");
}

TEST_CASE("rows of no elements are ordinary on the device") {
  two_plans p(shape{3, 2, 4, 0}, expar::ragged{});
  expar::tensor_view<float, 2> const tokens{nullptr, {3, 0}, {0, 1}};
  expar::tensor_view<float, 2> const rows{nullptr, {p.host.rows(), 0}, {0, 1}};
  auto const w = p.values<float>(3, 2);
  auto const dw = p.on_device(w), d_w = p.on_device(w);
  expar::gpu::decode(p.ctx, p.device, rows, tokens);
  expar::gpu::decode_backward(p.ctx, p.device, tokens, rows, dw.view(), rows, d_w.view());
  auto const got = p.back(d_w, w);
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 2; ++j) CHECK(got.get(t, j) == 0);
}

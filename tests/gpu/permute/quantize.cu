// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/quantize.cuh>

#include <limits>

#include "problem.cuh"

using namespace expar_test;
using expar::float8_e4m3;
using expar::index_t;

namespace {

std::vector<shape> quantized_shapes() {
  auto all = shapes();
  for (int k : {1, 2, 4, 5, 6, 8, 33}) all.push_back({5, k, 9, 264});
  all.push_back({9, 2, 4, 128});
  all.push_back({9, 2, 4, 257, 1});
  all.push_back({3, 2, 4, 2600});  // rows that several warps share
  all.push_back({6, 2, 4, 640, 16, 8});
  return all;
}

// Blocks of very different size, and now and then what is no ordinary number.
template <class T, class Plans>
grid<T> spread(Plans& p) {
  auto x = p.template values<T>(p.size.tokens, p.size.hidden);
  double const special[] = {0,
                            -0.0,
                            std::numeric_limits<double>::quiet_NaN(),
                            std::numeric_limits<double>::infinity(),
                            1e-30,
                            6e4};
  expar_test::random rng(7);
  for (int t = 0; t < p.size.tokens; ++t)
    for (int c0 = 0; c0 < p.size.hidden; c0 += 128) {
      double const size = rng.chance(.1) ? 0 : std::ldexp(1, static_cast<int>(rng.integer(-9, 9)));
      int const end = c0 + 128 < p.size.hidden ? c0 + 128 : p.size.hidden;
      for (int c = c0; c < end; ++c) x.set(t, c, size * x.get(t, c));
      if (rng.chance(.2)) x.set(t, rng.integer(c0, end - 1), special[rng.integer(0, 5)]);
    }
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("rows quantized on the device have the codes and scales of the host", "", double,
                   float, expar::half, expar::bfloat16) {
  for (shape const& s : quantized_shapes())
    in_all_layouts(s, [&](auto& p) {
      auto x = spread<TestType>(p);
      index_t const blocks = (s.hidden + 127) / 128;
      grid<float8_e4m3> const blank(p.host.rows(), s.hidden, s.gap);
      grid<float> const blank_scales(p.host.rows(), blocks, s.gap);
      auto rows = blank;
      auto scales = blank_scales;
      auto const fillers = s.k % 2 == 0 ? expar::fill::zero : expar::fill::none;
      expar::encode_quantized(p.on_host, p.host, x.view(), rows.view(), scales.view(), fillers);
      auto const dx = p.on_device(x);
      auto const rows_out = p.on_device(blank);
      auto const scales_out = p.on_device(blank_scales);
      REQUIRE((launches_of(1,
                           [&] {
                             expar::gpu::encode_quantized(p.ctx, p.device, dx.view(),
                                                          rows_out.view(), scales_out.view(),
                                                          fillers);
                           }) == 1 ||
               s.tokens == 0));
      auto got = p.back(rows_out, blank);
      auto got_scales = p.back(scales_out, blank_scales);
      REQUIRE(same_bytes(got, rows));
      REQUIRE(same_bytes(got_scales, scales));
    });
}

TEMPLATE_TEST_CASE("tokens decoded from 8-bit rows have the bytes of the host", "", float,
                   expar::bfloat16) {
  for (shape const& s : quantized_shapes())
    in_all_layouts(s, [&](auto& p) {
      auto rows = p.template rows<float8_e4m3>();
      auto scales = p.template values<float>(p.host.rows(), (s.hidden + 127) / 128);
      auto w = p.template values<float>(s.tokens, s.k);
      grid<TestType> const blank(s.tokens, s.hidden, s.gap);
      auto plain = blank, weighted = blank;
      expar::decode_quantized(p.on_host, p.host, rows.view(), scales.view(), plain.view());
      expar::decode_quantized(p.on_host, p.host, rows.view(), scales.view(), w.view(),
                              weighted.view());
      auto const dy = p.on_device(rows);
      auto const ds = p.on_device(scales), dw = p.on_device(w);
      auto const plain_out = p.on_device(blank), weighted_out = p.on_device(blank);
      REQUIRE((launches_of(1,
                           [&] {
                             expar::gpu::decode_quantized(p.ctx, p.device, dy.view(), ds.view(),
                                                          plain_out.view());
                           }) == 1 ||
               s.tokens == 0));
      expar::gpu::decode_quantized(p.ctx, p.device, dy.view(), ds.view(), dw.view(),
                                   weighted_out.view());
      auto got = p.back(plain_out, blank), got_weighted = p.back(weighted_out, blank);
      REQUIRE(same_bytes(got, plain));
      REQUIRE(same_bytes(got_weighted, weighted));
    });
}

TEST_CASE("quantized rows on the device that are missing past the end") {
  two_plans p(shape{20, 2, 4, 200}, expar::ragged{4});
  auto x = p.values<float>(20, 200);
  grid<float8_e4m3> all(p.host.rows(), 200);
  grid<float> all_scales(p.host.rows(), 2);
  expar::encode_quantized(p.on_host, p.host, x.view(), all.view(), all_scales.view());
  index_t const n = p.host.rows() - 7;
  auto const dx = p.on_device(x);
  auto const rows = p.on_device(grid<float8_e4m3>(n, 200));
  auto const scales = p.on_device(grid<float>(n, 2));
  expar::gpu::encode_quantized(p.ctx, p.device, dx.view(), rows.view(), scales.view());
  auto const got = p.back(rows, grid<float8_e4m3>(n, 200));
  auto const got_scales = p.back(scales, grid<float>(n, 2));
  bool same = true;
  for (index_t r = 0; r < n; ++r) {
    for (int c = 0; c < 200; ++c) same = same && got.get(r, c) == all.get(r, c);
    for (int b = 0; b < 2; ++b) same = same && got_scales.get(r, b) == all_scales.get(r, b);
  }
  REQUIRE(same);
  grid<float> const blank(20, 200);
  auto const out = p.on_device(blank);
  expar::gpu::decode_quantized(p.ctx, p.device, rows.view(), scales.view(), out.view());
  auto const back = p.back(out, blank);
  for (int t = 0; t < 20; ++t)
    for (int c = 0; c < 200; ++c) {
      int kept = 0;
      for (int j = 0; j < 2; ++j) kept += p.host.row(t, j) >= 0 && p.host.row(t, j) < n;
      same = same && std::abs(back.get(t, c) - kept * x.get(t, c)) <= .07 * kept * 2;
    }
  REQUIRE(same);
}

TEST_CASE("quantized rows on the device are refused by name") {
  two_plans p(shape{2, 1, 2, 4, 0, 0, 0}, expar::fixed_capacity{1});  // two rows
  device_array<float> const x(std::vector<float>(400)), s(std::vector<float>(8));
  device_array<float8_e4m3> const y(std::vector<float8_e4m3>(400));
  auto const view = [](auto& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  CHECK_THROWS_WITH(
      expar::gpu::encode_quantized(p.ctx, p.device, view(x, 2, 130), view(y, 2, 130),
                                   view(s, 2, 1)),
      "expar: encode_quantized: scales has extent 1 in dimension 1, but the number of blocks of "
      "128 columns in a row is 2");
  CHECK_THROWS_WITH(
      expar::gpu::decode_quantized(p.ctx, p.device, view(y, 3, 130), view(s, 3, 2),
                                   view(x, 2, 130)),
      "expar: decode_quantized: rows has extent 3 in dimension 0, but the number of rows in the "
      "plan is 2");
}

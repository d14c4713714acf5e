// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/weights.cuh>

#include <expar/permute/weights.hpp>

#include "problem.cuh"

using namespace expar_test;
using expar::index_t;

TEST_CASE("weights on the device go to their rows and their gradients come back") {
  auto all = shapes();
  all.push_back({400, 3, 300, 4});  // more than one block of routes
  for (shape const& s : all)
    in_all_layouts(s, [&](auto& p) {
      auto w = p.template values<double>(s.tokens, s.k);
      std::vector<double> const blank(static_cast<std::size_t>(p.host.rows()) + 3, 77);
      // A fixed capacity knows the number of rows; a ragged tensor may have more.
      index_t const n = p.host.rows() + (p.host.capacity() >= 0 ? 0 : 3);
      for (auto const fillers : {expar::fill::zero, expar::fill::none}) {
        auto wanted = blank;
        expar::encode_weights(p.on_host, p.host, w.view(),
                              expar::make_view(wanted.data(), p.host.rows()), fillers);
        auto const dw = p.on_device(w);
        device_array<double> const out(blank);
        REQUIRE((launches_of(1,
                             [&] {
                               expar::gpu::encode_weights(p.ctx, p.device, dw.view(),
                                                          expar::make_view(out.data(), n), fillers);
                             }) == 1 ||
                 s.tokens == 0));
        p.stream.wait();
        REQUIRE(out.read() == wanted);

        grid<float> const unwritten(s.tokens, s.k, s.gap);
        auto d_w = unwritten;
        expar::encode_weights_backward(p.on_host, p.host,
                                       expar::make_view(wanted.data(), p.host.rows()), d_w.view());
        auto const back = p.on_device(unwritten);
        REQUIRE((launches_of(1,
                             [&] {
                               expar::gpu::encode_weights_backward(
                                   p.ctx, p.device, expar::make_view(out.data(), n), back.view());
                             }) == 1 ||
                 s.tokens == 0));
        auto got = p.back(back, unwritten);
        REQUIRE(same_bytes(got, d_w));
      }
    });
}

TEST_CASE("weights of rows that are missing past the end go nowhere") {
  two_plans p(shape{20, 2, 4, 1}, expar::ragged{});
  auto const w = p.values<float>(20, 2);
  auto const dw = p.on_device(w), back = p.on_device(w);
  index_t const n = p.host.rows() - 7;
  device_array<float> const out(std::vector<float>(static_cast<std::size_t>(n)));
  expar::gpu::encode_weights(p.ctx, p.device, dw.view(), expar::make_view(out.data(), n));
  expar::gpu::encode_weights_backward(p.ctx, p.device, expar::make_view(out.data(), n),
                                      back.view());
  auto const got = p.back(back, w);
  auto const rows = out.read();
  for (int t = 0; t < 20; ++t)
    for (int j = 0; j < 2; ++j) {
      auto const row = p.host.row(t, j);
      bool const there = row >= 0 && row < n;
      REQUIRE(got.get(t, j) == (there ? w.get(t, j) : 0));
      if (there) REQUIRE(rows[static_cast<std::size_t>(row)] == w.get(t, j));
    }
}

TEST_CASE("weights per row on the device are refused by name where the shape is wrong") {
  two_plans p(shape{2, 1, 2, 4, 0, 0, 0}, expar::fixed_capacity{1});  // two rows
  device_array<float> const a(std::vector<float>(8));
  auto const matrix = expar::make_view(a.data(), 2, 1);
  CHECK_THROWS_WITH(
      expar::gpu::encode_weights(p.ctx, p.device, matrix, expar::make_view(a.data(), 3)),
      "expar: encode_weights: out has extent 3 in dimension 0, but the number of rows in "
      "the plan is 2");
  CHECK_THROWS_WITH(
      expar::gpu::encode_weights_backward(p.ctx, p.device, expar::make_view(a.data(), 3), matrix),
      "expar: encode_weights_backward: d_out has extent 3 in dimension 0, but the number "
      "of rows in the plan is 2");
  CHECK_THROWS_WITH(
      expar::gpu::encode_weights(p.ctx, p.device, expar::make_view(a.data(), 1, 1),
                                 expar::make_view(a.data(), 2)),
      "expar: encode_weights: weights has extent 1 in dimension 0, but the number of tokens in the "
      "plan is 2");
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/tokens.cuh>

#include <expar/permute/tokens.hpp>

#include "problem.cuh"

using namespace expar_test;
using expar::index_t;

TEST_CASE("every row on the device knows its token and its choice") {
  auto all = shapes();
  all.push_back({400, 3, 300, 4});  // more than one block of routes
  for (shape const& s : all)
    in_all_layouts(s, [&](auto& p) {
      auto const rows = static_cast<std::size_t>(p.host.rows());
      std::vector<std::int32_t> tokens(rows), choices(rows);
      expar::row_tokens(p.on_host, p.host, tokens, choices);
      // Rows behind the layout fill too.
      auto const n = rows + (p.host.capacity() >= 0 ? 0 : 5);
      tokens.resize(n, -1), choices.resize(n, -1);
      device_array<std::int32_t> const alone(std::vector<std::int32_t>(n, 77)),
          both(std::vector<std::int32_t>(n, 77)), chosen(std::vector<std::int32_t>(n, 77));
      auto const view = [&](auto& a) {
        return expar::make_view(a.data(), static_cast<index_t>(n));
      };
      REQUIRE(launches_of(1, [&] { expar::gpu::row_tokens(p.ctx, p.device, view(alone)); }) == 1);
      expar::gpu::row_tokens(p.ctx, p.device, view(both), view(chosen));
      p.stream.wait();
      REQUIRE(alone.read() == tokens);
      REQUIRE(both.read() == tokens);
      REQUIRE(chosen.read() == choices);
    });
}

TEST_CASE("rows that are missing past the end have no token") {
  two_plans p(shape{20, 2, 4, 1}, expar::ragged{});
  std::vector<std::int32_t> wanted(static_cast<std::size_t>(p.host.rows()));
  expar::row_tokens(p.on_host, p.host, wanted);
  wanted.resize(wanted.size() - 7);
  device_array<std::int32_t> const out(std::vector<std::int32_t>(wanted.size(), 77));
  expar::gpu::row_tokens(p.ctx, p.device,
                         expar::make_view(out.data(), static_cast<index_t>(wanted.size())));
  p.stream.wait();
  REQUIRE(out.read() == wanted);
}

TEST_CASE("row_tokens on the device refuses what it cannot do, by name") {
  two_plans p(shape{2, 1, 2, 4, 0, 0, 0}, expar::fixed_capacity{1});  // two rows
  device_array<std::int32_t> const a(std::vector<std::int32_t>(8));
  CHECK_THROWS_WITH(expar::gpu::row_tokens(p.ctx, p.device, expar::make_view(a.data(), 3)),
                    "expar: row_tokens: tokens has extent 3 in dimension 0, but the number of rows "
                    "in the plan is 2");
  CHECK_THROWS_WITH(expar::gpu::row_tokens(p.ctx, p.device, expar::make_view(a.data(), 2),
                                           expar::make_view(a.data() + 2, 3)),
                    "expar: row_tokens: choices has extent 3 in dimension 0, but the number of "
                    "rows is 2");
  CHECK_THROWS_WITH(expar::gpu::row_tokens(p.ctx, p.device, expar::make_view(a.data(), 2),
                                           expar::tensor_view<std::int32_t, 1>{nullptr, {2}, {1}}),
                    "expar: row_tokens: choices has 2 elements but its data is null");
}

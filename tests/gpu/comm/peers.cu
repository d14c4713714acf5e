// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/comm/peers.cuh>
#include <expar/gpu/expert_parallel.cuh>

#include "gpu/comm/local_ranks.cuh"
#include "support/catch.hpp"
#include "support/random.hpp"

using expar::index_t;
using expar_test::device_array;

namespace {

/// Four ranks on as many devices as there are: each with a stream of its own.
class four_ranks {
 public:
  four_ranks() {
    int devices = 0;
    expar_test::require_success(cudaGetDeviceCount(&devices));
    for (int r = 0; r < 4; ++r) {
      expar::gpu::detail::device_guard const here(r % devices, "tests");
      streams_.push_back(std::make_unique<expar_test::own_stream>());
      places_.push_back({r % devices, expar::gpu::context(*streams_.back())});
    }
  }
  std::span<expar::gpu::peer_ranks::place const> places() const { return places_; }
  void wait() const {
    for (auto const& s : streams_) s->wait();
  }

 private:
  std::vector<std::unique_ptr<expar_test::own_stream>> streams_;
  std::vector<expar::gpu::peer_ranks::place> places_;
};

struct routes_of_rank {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

}  // namespace

TEST_CASE("peers write each other's windows, and have the collectives of the lower tiers") {
  four_ranks const ranks;
  expar::gpu::peer_ranks group(ranks.places());
  REQUIRE(group.size() == 4);
  REQUIRE(group.first_rank() == 0);
  REQUIRE(group.local_ranks() == 4);
  int before = -1, after = -1;
  expar_test::require_success(cudaGetDevice(&before));
  expar_test::require_windows_that_peers_write(group);
  expar_test::require_collectives(group);
  expar_test::require_success(cudaGetDevice(&after));
  REQUIRE(after == before);
  ranks.wait();
}

TEST_CASE("peers work on the device of their rank") {
  four_ranks const ranks;
  expar::gpu::peer_ranks group(ranks.places());
  for (int r = 0; r < 4; ++r)
    group.on(r, [&](expar::gpu::context const& ctx) {
      int device = -1;
      expar_test::require_success(cudaGetDevice(&device));
      REQUIRE(device == ranks.places()[static_cast<std::size_t>(r)].device);
      REQUIRE(ctx.stream() == ranks.places()[static_cast<std::size_t>(r)].on.stream());
    });
}

TEST_CASE("tokens go from peer to peer and come home") {
  four_ranks const ranks;
  expar::gpu::peer_ranks group(ranks.places());
  constexpr int tokens = 7, k = 2, experts = 6, hidden = 8;
  expar::gpu::expert_parallel moe(group, {experts, k, hidden});
  auto batch = moe.make_batch<float>({moe.worst_case_rows(tokens)});
  std::vector<std::unique_ptr<device_array<float>>> x, w, out;
  std::vector<std::unique_ptr<device_array<std::int32_t>>> ids;
  std::vector<std::vector<float>> x_host;
  std::vector<routes_of_rank> routes;
  std::vector<expar::tensor_view<float, 2>> x_views, out_views;
  for (int r = 0; r < 4; ++r)
    group.on(r, [&](expar::gpu::context const&) {
      expar_test::random rng(static_cast<std::uint64_t>(r));
      std::vector<std::int32_t> id;
      for (int i = 0; i < tokens * k; ++i)
        id.push_back(static_cast<std::int32_t>(rng.integer(0, experts - 1)));
      std::vector<float> values;
      for (int i = 0; i < tokens * hidden; ++i)
        values.push_back(static_cast<float>(rng.integer(-9, 9)));
      x_host.push_back(values);
      x.push_back(std::make_unique<device_array<float>>(values));
      out.push_back(std::make_unique<device_array<float>>(std::vector<float>(values.size(), 77)));
      w.push_back(std::make_unique<device_array<float>>(std::vector<float>(tokens * k, .5f)));
      ids.push_back(std::make_unique<device_array<std::int32_t>>(id));
      x_views.push_back(expar::make_view(x.back()->data(), tokens, hidden));
      out_views.push_back(expar::make_view(out.back()->data(), tokens, hidden));
      routes.push_back({expar::make_view<std::int32_t const>(ids.back()->data(), tokens, k),
                        expar::make_view<float const>(w.back()->data(), tokens, k)});
    });
  moe.dispatch(x_views, routes, batch);
  for (auto const& s : moe.read_sync(batch)) REQUIRE(s.lost_rows == 0);
  for (int r = 0; r < 4; ++r)
    group.on(r, [&](expar::gpu::context const& ctx) {
      auto const y = batch.y(r);
      expar_test::require_success(cudaMemcpyAsync(
          y.data, batch.rows(r).data, static_cast<std::size_t>(y.size()) * sizeof(float),
          cudaMemcpyDeviceToDevice, ctx.stream()));
    });
  moe.combine(batch, out_views);
  ranks.wait();
  for (int r = 0; r < 4; ++r)
    REQUIRE(out[static_cast<std::size_t>(r)]->read() == x_host[static_cast<std::size_t>(r)]);
}

TEST_CASE("a group of peers has at least one") {
  REQUIRE_THROWS_WITH(expar::gpu::peer_ranks({}),
                      "expar: peer_ranks: there are no places; at least 1 is needed");
}

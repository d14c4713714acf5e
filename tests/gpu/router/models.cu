// SPDX-License-Identifier: Apache-2.0
#include "router/models/all.hpp"

#include "gpu/router/support.cuh"
#include "support/catch.hpp"

using namespace gate_test;

namespace {

constexpr int experts = 8, tokens = 64;

/// A thread routes a token, and takes its gradient back.
template <class Router>
__global__ void route_tokens(Router router, float const* z, float const* bias, float* scratch,
                             int scratch_size, std::int32_t* ids, float* w, float* dz) {
  auto const t = threadIdx.x;
  auto const bound = expar::detail::bind(router, 0);
  auto const k = static_cast<unsigned>(router.top_k);
  z += t * experts, dz += t * experts, ids += t * k, w += t * k,
      scratch += t * static_cast<unsigned>(scratch_size);
  bound.forward(z, bias, scratch, ids, w);
  bound.vjp(z, static_cast<std::int32_t const*>(ids), static_cast<float const*>(w), scratch, dz);
}

}  // namespace

TEST_CASE("every router of expar::models has the bits of the host on the device") {
  expar_test::random rng(11);
  auto logits = random_logits<float>(rng, tokens, experts, 0);
  std::vector<float> const z(logits.view().data, logits.view().data + tokens * experts);
  auto const bias = random_numbers<float>(rng, experts);
  device_array<float> const z_there(z), bias_there(bias);
  device_array<unsigned char> const tables_there(std::vector<unsigned char>(
      reinterpret_cast<unsigned char const*>(&model_list::tables::here()),
      reinterpret_cast<unsigned char const*>(&model_list::tables::here() + 1)));
  auto const& there = *reinterpret_cast<model_list::tables const*>(tables_there.data());

  struct routed {
    std::vector<std::int32_t> ids;
    std::vector<float> w, dz;
  };
  std::vector<routed> on_host;
  auto const route_here = [&](char const*, auto const& r) {
    routed out;
    auto const k = static_cast<std::size_t>(r.top_k);
    std::vector<float> scratch(
        static_cast<std::size_t>(std::max(r.forward_scratch(), r.vjp_scratch())));
    out.ids.resize(tokens * k), out.w.resize(tokens * k), out.dz.resize(tokens * experts);
    auto const bound = expar::detail::bind(r, 0);
    for (std::size_t t = 0; t < tokens; ++t) {
      float const* const row = z.data() + t * experts;
      bound.forward(row, bias.data(), scratch.data(), &out.ids[t * k], &out.w[t * k]);
      bound.vjp(row, static_cast<std::int32_t const*>(&out.ids[t * k]),
                static_cast<float const*>(&out.w[t * k]), scratch.data(), &out.dz[t * experts]);
    }
    on_host.push_back(out);
  };
  model_list::for_each(2, route_here);
  model_list::for_each_drawn(model_list::tables::here(), route_here);

  std::size_t at = 0;
  auto const route_there = [&](char const* name, auto const& r) {
    CAPTURE(name);
    routed const& host = on_host[at++];
    auto const room = static_cast<int>(std::max(r.forward_scratch(), r.vjp_scratch()));
    device_array<float> const scratch(std::vector<float>(static_cast<std::size_t>(tokens * room))),
        w(host.w), dz(host.dz);
    device_array<std::int32_t> const ids(std::vector<std::int32_t>(host.ids.size(), 77));
    route_tokens<<<1, tokens>>>(r, static_cast<float const*>(z_there.data()),
                                static_cast<float const*>(bias_there.data()), scratch.data(), room,
                                ids.data(), w.data(), dz.data());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    REQUIRE(ids.read() == host.ids);
    REQUIRE(same_bytes(w.read(), host.w));
    REQUIRE(same_bytes(dz.read(), host.dz));
  };
  model_list::for_each(2, there, route_there);
  model_list::for_each_drawn(there, route_there);
}

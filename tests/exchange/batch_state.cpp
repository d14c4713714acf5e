// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_parallel.hpp>

#include <expar/comm/self.hpp>

#include <memory_resource>
#include <vector>

#include "support/catch.hpp"

using expar::index_t;
using expar::make_view;

namespace {

/// Counts the bytes that are taken from it and not given back.
struct counting_resource : std::pmr::memory_resource {
  index_t bytes = 0;

 private:
  void* do_allocate(std::size_t n, std::size_t alignment) override {
    bytes += static_cast<index_t>(n);
    return std::pmr::get_default_resource()->allocate(n, alignment);
  }
  void do_deallocate(void* p, std::size_t n, std::size_t alignment) override {
    bytes -= static_cast<index_t>(n);
    std::pmr::get_default_resource()->deallocate(p, n, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override {
    return this == &other;
  }
};

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// What the comment of expert_batch says, of one rank that has all slots.
index_t bytes_of_batch(index_t tokens, index_t k, index_t experts, index_t slots, index_t shards,
                       bool renumbered) {
  return tokens * k * (8 + 4 * shards) + (renumbered ? tokens * k * shards * 8 : 0) + 20 * experts +
         48 * slots + 24;
}

}  // namespace

TEST_CASE("batches that wait hold routes alone, and sides are as many as are held at once") {
  constexpr index_t tokens = 4096, k = 8, hidden = 7168, experts = 256;
  std::vector<expar::bfloat16> const x(static_cast<std::size_t>(tokens * hidden));
  std::vector<std::int32_t> ids;
  std::vector<float> const weights(static_cast<std::size_t>(tokens * k), 0.5f);
  for (index_t i = 0; i < tokens * k; ++i)
    ids.push_back(static_cast<std::int32_t>(i * 7 % experts));
  route_list const routes{make_view(ids.data(), tokens, k), make_view(weights.data(), tokens, k)};
  auto const rows_of_tokens = make_view(x.data(), tokens, hidden);

  expar::host_context const ctx;
  expar::self_communicator comm;
  counting_resource of_transport, of_batches;
  expar::messages shared(comm, &of_transport);
  expar::expert_parallel moe(shared, {experts, k, hidden}, expar::ragged{},
                             expar::weights_at_decode{}, &of_batches);
  index_t const before = of_batches.bytes, words = of_transport.bytes;
  CHECK(words == 888 + 8 * experts * 2 + 96);

  std::vector<expar::expert_batch<expar::bfloat16>> live;
  for (int i = 0; i < 8; ++i) {
    live.push_back(moe.make_batch<expar::bfloat16>());
    moe.dispatch(ctx, rows_of_tokens, routes, live.back());
    if (i < 7) live.back().release(expar::side::rows);
  }
  CHECK(of_batches.bytes - before == 8 * bytes_of_batch(tokens, k, experts, experts, 1, false));
  index_t const one_side = tokens * k * hidden * 2;
  CHECK(of_transport.bytes - words == one_side);

  // Another side of another batch is one more; what is released serves it again.
  live.back().release(expar::side::rows);
  CHECK(live[0].y().extents[0] == tokens * k);
  CHECK(of_transport.bytes - words == one_side);
  moe.dispatch(ctx, rows_of_tokens, live[0]);
  CHECK(of_transport.bytes - words == 2 * one_side);
  CHECK(of_batches.bytes - before == 8 * bytes_of_batch(tokens, k, experts, experts, 1, false));
}

TEST_CASE("batches of shards and copies hold the routes to their slots as well") {
  constexpr index_t tokens = 100, k = 3, experts = 8;
  std::vector<std::int32_t> const ids(tokens * k, 2);
  std::vector<float> const weights(tokens * k, 0.5f);
  route_list const routes{make_view(ids.data(), tokens, k), make_view(weights.data(), tokens, k)};
  expar::host_context const ctx;
  expar::self_communicator comm;
  expar::messages shared(comm);
  for (int times : {1, 2, 3})
    for (bool sharded : {false, true}) {
      counting_resource memory;
      expar::expert_parallel moe(shared, {experts, k, 16});
      moe.place(sharded ? expar::placement::sharded(experts, 1, times)
                        : expar::placement::replicated(experts, 1, times));
      expar::expert_batch<float> batch(&memory);
      moe.prepare(ctx, routes, batch);
      CHECK(memory.bytes ==
            bytes_of_batch(tokens, k, experts, experts * times, sharded ? times : 1, times > 1));
    }
}

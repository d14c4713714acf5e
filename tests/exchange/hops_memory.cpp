// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/hops.hpp>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

using expar::chain;
using expar::index_t;
using expar::make_view;
using expar::topology;

namespace {

/// Counts the bytes that are taken from it.
class counting_resource final : public std::pmr::memory_resource {
 public:
  index_t live = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    live += static_cast<index_t>(bytes);
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    live -= static_cast<index_t>(bytes);
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(memory_resource const& other) const noexcept override { return this == &other; }
};

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

enum class way { once, each, all };

/// Rows that are on `rank` before the second hop, and behind it.
struct parcels {
  index_t before_second, all;
};
parcels count(std::vector<std::vector<std::int32_t>> const& ids, index_t tokens, int k, int experts,
              topology const& nodes, way how, int rank) {
  auto const ranks = nodes.ranks();
  auto const place = expar::placement::blocks(experts, ranks);
  parcels n{tokens, tokens};
  for (int from = 0; from < ranks; ++from)
    for (index_t t = 0; t < tokens; ++t) {
      std::multiset<std::pair<int, int>> hops[2];
      auto const go = [&](int to) {
        int const between = nodes.on_rail(from, nodes.node_of(to));
        std::pair<int, int> const steps[] = {{from, between}, {between, to}};
        for (int h = 0; h < 2; ++h)
          if (how == way::each || hops[h].count(steps[h]) == 0) hops[h].insert(steps[h]);
      };
      for (int j = 0; how != way::all && j < k; ++j)
        go(place.rank_of(ids[static_cast<std::size_t>(from)][static_cast<std::size_t>(t * k + j)]));
      for (int to = 0; how == way::all && to < ranks; ++to) go(to);
      for (int h = 0; h < 2; ++h)
        for (auto const& [left, came] : hops[h])
          if (came == rank && left != rank)
            n.before_second += h == 0 || (left == from && nodes.nodes() > 1), ++n.all;
    }
  return n;
}

}  // namespace

TEST_CASE("hops: a transport and a batch take the memory that the header says") {
  constexpr int experts = 11;
  constexpr index_t tokens = 9, hidden = 3;
  for (int const ranks : {2, 5, 8})
    for (int const on_node : {1, 2, 3})
      for (way const how : {way::once, way::each, way::all})
        for (int const k : {1, 3, 7}) {
          auto const nodes = topology::blocks(ranks, on_node);
          auto const steps = how == way::once   ? chain::once_per_node(nodes)
                             : how == way::each ? chain::aggregated(nodes)
                                                : chain::gathered(nodes);
          expar_test::random rng(static_cast<std::uint64_t>(100 * ranks + 10 * on_node + k));
          std::vector<std::vector<std::int32_t>> ids(static_cast<std::size_t>(ranks));
          for (auto& of_rank : ids)
            for (index_t i = 0; i < tokens; ++i) {
              auto const first = rng.integer(0, experts - 1);
              for (int j = 0; j < k; ++j)
                of_rank.push_back(static_cast<std::int32_t>((first + 4 * j) % experts));
            }
          std::vector<index_t> wrong(static_cast<std::size_t>(ranks));
          expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
            auto const me = static_cast<std::size_t>(comm.rank());
            counting_resource of_x, of_layer, of_batch, of_other;
            index_t const R = ranks, N = nodes.nodes(), P = nodes.most();
            expar::hops x(comm, steps, &of_x);
            expar::messages straight(comm);
            expar::expert_shape const shape{experts, k, hidden};
            expar::expert_parallel a(x, shape, expar::ragged{}, {}, &of_layer);
            expar::expert_parallel b(straight, shape);
            wrong[me] = of_x.live - (1280 * R + 8 * (experts + R + N) * (R + 1) + 96);
            expar::expert_batch<float, float> batch(&of_batch), other(&of_other);
            std::vector<float> const rows(tokens * hidden, 1.f),
                weights(static_cast<std::size_t>(tokens * k), 1.f);
            route_list const routes{make_view(ids[me].data(), tokens, k),
                                    make_view(weights.data(), tokens, k)};
            a.dispatch({}, make_view(rows.data(), tokens, hidden), routes, batch);
            b.dispatch({}, make_view(rows.data(), tokens, hidden), routes, other);
            auto const passed = count(ids, tokens, k, experts, nodes, how, comm.rank());
            index_t const first = how == way::each  ? k
                                  : how == way::all ? N
                                                    : std::min<index_t>(k, N);
            index_t const second = how == way::each  ? k
                                   : how == way::all ? P
                                                     : std::min<index_t>(k, P);
            index_t const more = 32 * R + 8 * experts + passed.all * k * (12 + 4) +
                                 8 * first * tokens + 8 * second * passed.before_second;
            wrong[me] |= of_batch.live - of_other.live - more;
          });
          INFO("ranks " << ranks << ", " << on_node << " on a node, k " << k);
          CHECK(wrong == std::vector<index_t>(wrong.size()));
        }
}

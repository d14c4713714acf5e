// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/hops.hpp>

#include <map>
#include <set>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"
#include "support/counting.hpp"
#include "support/random.hpp"
#include "support/thrown_by.hpp"

using expar::chain;
using expar::index_t;
using expar::make_view;
using expar::topology;

namespace {

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// Real numbers for every rank, of different numbers of tokens.
struct layer {
  int ranks, experts, top_k, hidden;
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<std::vector<float>> weights, x;

  layer(std::uint64_t seed, int of_ranks, int of_experts, int k, int columns)
      : ranks(of_ranks), experts(of_experts), top_k(k), hidden(columns) {
    expar_test::random rng(seed);
    for (int r = 0; r < ranks; ++r) {
      auto const tokens = r == 1 ? 0 : rng.integer(1, 12);
      auto& i = ids.emplace_back();
      auto& w = weights.emplace_back();
      auto& v = x.emplace_back();
      for (int n = 0; n < tokens * k; ++n) {
        i.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
        w.push_back(static_cast<float>(rng.normal()));
      }
      for (int n = 0; n < tokens * columns; ++n) v.push_back(static_cast<float>(rng.normal()));
    }
  }
  index_t tokens(int r) const { return std::ssize(ids[at(r)]) / top_k; }
  route_list routes(int r) const {
    return {make_view(ids[at(r)].data(), tokens(r), top_k),
            make_view(weights[at(r)].data(), tokens(r), top_k)};
  }
  auto rows(int r) const { return make_view(x[at(r)].data(), tokens(r), hidden); }
  int id(int r, index_t t, int j) const {
    return ids[at(r)][static_cast<std::size_t>(t * top_k + j)];
  }
  static std::size_t at(int r) { return static_cast<std::size_t>(r); }
};

int rank_of(layer const& l, int expert) {
  return expar::placement::blocks(l.experts, l.ranks).rank_of(expert);
}

/// Rows of each rank's tokens that pass between two ranks, by each hop, as the table in `chain`
/// says.
std::map<std::pair<int, int>, index_t> rows_between(layer const& l, topology const& nodes, int hop,
                                                    bool each, bool all) {
  std::map<std::pair<int, int>, index_t> n;
  for (int source = 0; source < l.ranks; ++source)
    for (index_t t = 0; t < l.tokens(source); ++t) {
      std::multiset<int> to_nodes, to_ranks;
      for (int j = 0; j < l.top_k; ++j)
        if (int const e = l.id(source, t, j); e >= 0) {
          int const r = rank_of(l, e);
          if (each || to_ranks.count(r) == 0) to_ranks.insert(r);
          if (each || to_nodes.count(nodes.node_of(r)) == 0) to_nodes.insert(nodes.node_of(r));
        }
      if (all) {
        to_nodes.clear(), to_ranks.clear();
        for (int r = 0; r < l.ranks; ++r) {
          to_ranks.insert(r);
          if (to_nodes.count(nodes.node_of(r)) == 0) to_nodes.insert(nodes.node_of(r));
        }
      }
      int const own = nodes.node_of(source), direct = nodes.nodes() > 1 ? 0 : 1;
      for (int const node : to_nodes)
        if (hop == 0 && node != own) ++n[{source, nodes.on_rail(source, node)}];
      for (int const r : to_ranks) {
        bool const is_here = nodes.node_of(r) == own;
        if (hop == (is_here ? direct : 1))
          ++n[{is_here ? source : nodes.on_rail(source, nodes.node_of(r)), r}];
      }
    }
  for (int r = 0; r < l.ranks; ++r) n.erase({r, r});
  return n;
}

constexpr index_t word = 64;
index_t padded(index_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace

TEST_CASE("hops: what is sent is what the table says, and a collective for each hop") {
  struct {
    chain way;
    bool each, all;
  } const cases[] = {{chain::once_per_node(topology::blocks(6, 2)), false, false},
                     {chain::once_per_node(topology::blocks(6, 4)), false, false},
                     {chain::once_per_rank(6), false, false},
                     {chain::once_per_node(topology::blocks(6, 6)), false, false},
                     {chain::aggregated(topology::blocks(6, 3)), true, false},
                     {chain::gathered(topology::blocks(6, 2)), false, true}};
  for (auto const& c : cases)
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      layer const l(seed, 6, 13, 4, 24);
      std::vector<std::vector<index_t>> sent(6);
      std::vector<int> counts(6), calls(6), home(6);
      expar::run_ranks(6, [&](expar::thread_communicator& threads) {
        expar_test::counting<true> comm{threads};
        expar::host_context const ctx;
        int const me = comm.rank();
        expar::hops x(comm, c.way);
        expar::expert_parallel moe(x, {.experts = 13, .top_k = 4, .hidden = 24});
        auto batch = moe.make_batch<float>();
        comm.calls = 0;
        moe.prepare(ctx, l.routes(me), batch);
        counts[layer::at(me)] = std::exchange(comm.calls, 0);
        comm.restart();
        moe.dispatch(ctx, l.rows(me), batch);
        calls[layer::at(me)] = std::exchange(comm.calls, 0);
        sent[layer::at(me)] = comm.sent;
        std::vector<float> out(l.x[layer::at(me)].size());
        moe.combine(ctx, batch, batch.rows(), make_view(out.data(), l.tokens(me), 24));
        home[layer::at(me)] = comm.calls;
      });
      int const of_hops = c.way.has_first_hop() + c.way.has_second_hop();
      for (int r = 0; r < 6; ++r) {
        CHECK(counts[layer::at(r)] == 1);
        CHECK(calls[layer::at(r)] == of_hops);
        CHECK(home[layer::at(r)] == 1);
      }
      index_t const row = 24 * 4, beside = 4 * (4 + 4 + 4);
      for (int from = 0; from < 6; ++from)
        for (int to = 0; to < 6; ++to) {
          if (from == to) continue;
          index_t wanted = 0;
          for (int hop = 0; hop < 2; ++hop) {
            if (hop == 0 ? !c.way.has_first_hop() : !c.way.has_second_hop()) continue;
            auto const rows = rows_between(l, c.way.nodes(), hop, c.each, c.all);
            auto const n = rows.count({from, to}) ? rows.at({from, to}) : 0;
            wanted += word + padded(n * row) + padded(n * beside);
          }
          INFO("seed " << seed << ", from " << from << " to " << to);
          REQUIRE(sent[layer::at(from)][layer::at(to)] == wanted);
        }
    }
}

namespace {

/// The sums that chain's documentation defines, in the types it names, for experts that return
/// their rows times expert + 1.
std::vector<expar::bfloat16> per_hop(layer const& l, topology const& nodes, int rank) {
  auto const rounded = [](float x) { return expar::widen(expar::narrow<expar::bfloat16>(x)); };
  std::vector<expar::bfloat16> out;
  auto const add = [](std::vector<std::pair<int, float>>& sums, int key, float x) {
    for (auto& [k, s] : sums)
      if (k == key) {
        s += x;
        return;
      }
    sums.push_back({key, x});
  };
  for (index_t t = 0; t < l.tokens(rank); ++t)
    for (int h = 0; h < l.hidden; ++h) {
      float const x = rounded(l.x[layer::at(rank)][static_cast<std::size_t>(t * l.hidden + h)]);
      std::vector<std::pair<int, float>> of_ranks, of_nodes;  // in the order of their first choice
      for (int j = 0; j < l.top_k; ++j) {
        int const e = l.id(rank, t, j);
        if (e < 0) continue;
        float const w = l.weights[layer::at(rank)][static_cast<std::size_t>(t * l.top_k + j)];
        add(of_ranks, rank_of(l, e), w * rounded(static_cast<float>(e + 1) * x));
      }
      for (auto const& [r, s] : of_ranks) add(of_nodes, nodes.node_of(r), rounded(s));
      float sum = 0;
      bool first = true;
      for (auto const& [n, s] : of_nodes)
        sum = std::exchange(first, false) ? rounded(s) : sum + rounded(s);
      out.push_back(expar::narrow<expar::bfloat16>(sum));
    }
  return out;
}

}  // namespace

TEST_CASE("hops: sums per hop are those that the chain defines, to the bit") {
  for (int const ranks : {1, 2, 3, 5, 8})
    for (int const per_node : {1, 2, 3, 8})
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        auto const nodes = topology::blocks(ranks, per_node);
        layer const l(seed, ranks, 11, 5, 37);
        std::vector<int> same(layer::at(ranks));
        expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
          expar::host_context const ctx;
          int const me = comm.rank();
          expar::hops x(comm, chain::once_per_node(nodes, expar::sum::per_hop));
          expar::expert_parallel moe(x, {.experts = 11, .top_k = 5, .hidden = 37});
          std::vector<expar::bfloat16> tokens;
          for (float const v : l.x[layer::at(me)])
            tokens.push_back(expar::narrow<expar::bfloat16>(v));
          std::vector<expar::bfloat16> out(tokens.size());
          auto batch = moe.dispatch(ctx, make_view(tokens.data(), l.tokens(me), 37), l.routes(me));
          auto const rows = batch.rows(), y = batch.y();
          for (int s = 0; s < batch.local_slots(); ++s)
            for (index_t i = batch.slot_offsets()[layer::at(s)];
                 i < batch.slot_offsets()[layer::at(s) + 1]; ++i)
              for (int h = 0; h < 37; ++h)
                y(i, h) = expar::narrow<expar::bfloat16>(
                    static_cast<float>(batch.expert_of(s) + 1) * expar::widen(rows(i, h)));
          moe.combine(ctx, batch, make_view(out.data(), l.tokens(me), 37));
          auto const wanted = per_hop(l, nodes, me);
          same[layer::at(me)] = out.size() == wanted.size() &&
                                (out.empty() || std::memcmp(out.data(), wanted.data(),
                                                            out.size() * sizeof out[0]) == 0);
        });
        INFO("ranks " << ranks << ", a node " << per_node << ", seed " << seed);
        for (int const s : same) REQUIRE(s == 1);
      }
}

namespace {

/// What each rank throws.
template <class F>
std::vector<std::string> thrown_on(int ranks, F f) {
  std::vector<std::string> said(layer::at(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    said[layer::at(comm.rank())] = expar_test::thrown_by([&] { f(comm); });
  });
  return said;
}
template <class Comm>
void make_engine(Comm& comm, chain const& way) {
  expar::hops x(comm, way);
  expar::expert_parallel moe(x, {.experts = 4, .top_k = 2, .hidden = 3});
}

}  // namespace

TEST_CASE("hops: all ranks pass the same chain, of as many ranks as there are") {
  auto const different = thrown_on(3, [](auto& comm) {
    make_engine(comm, comm.rank() == 2 ? chain::gathered(topology::blocks(3, 2))
                                       : chain::once_per_node(topology::blocks(3, 2)));
  });
  for (auto const& s : different) {
    CHECK(s == different[0]);
    CHECK(s.find("expar: hops: the chain (its hash) is ") == 0);
    CHECK(s.find(" on rank 2; all ranks must pass the same") != std::string::npos);
  }
  for (auto const& s : thrown_on(3, [](auto& comm) { make_engine(comm, chain::once_per_rank(4)); }))
    CHECK(s == "expar: hops: the chain is of 4 ranks, and the communicator has 3");
  for (auto const& s :
       thrown_on(2, [](auto& comm) { make_engine(comm, chain::once_per_rank(2 + comm.rank())); }))
    CHECK(s ==
          "expar: hops: the number of ranks of the chain is 2 on rank 0 but 3 on rank 1; all "
          "ranks must pass the same");
}

TEST_CASE("hops: weights at encode have no dispatch_backward that sums per hop") {
  auto const said = thrown_on(3, [](auto& comm) {
    expar::host_context const ctx;
    expar::hops x(comm, chain::once_per_rank(3, expar::sum::per_hop));
    expar::expert_parallel moe(x, {.experts = 3, .top_k = 1, .hidden = 2}, expar::ragged{},
                               expar::weights_at_encode{});
    std::int32_t const ids[] = {0, 2};
    float const weights[] = {1, 2}, tokens[] = {1, 2, 3, 4};
    float d_tokens[4], d_weights[2];
    auto const in = make_view(tokens, 2, 2);
    auto batch = moe.dispatch(ctx, in, route_list{make_view(ids, 2, 1), make_view(weights, 2, 1)});
    moe.combine_backward(ctx, batch, in);
    auto const d_rows = batch.d_rows();
    for (index_t i = 0; i < d_rows.size(); ++i) d_rows.data[i] = 1;
    moe.dispatch_backward(ctx, batch, in, make_view(d_tokens, 2, 2), make_view(d_weights, 2, 1));
  });
  for (auto const& s : said)
    CHECK(s ==
          "expar: dispatch_backward: weights were applied at encode, and their gradients need "
          "every row at home; a chain that sums per hop brings none (rank 0)");
}

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/topology.hpp>

namespace expar::inline v0 {

/// Where rows that come home are summed: all on their token's rank, in the order of its choices; or
/// at every hop, in the accumulator's type, rounded to the type of the rows there.
enum class sum { exact, per_hop };

/// The way of rows from tokens to experts. A row goes to a node first, to the rank on the sender's
/// rail, and from there to ranks of that node; on its own node it goes to the ranks at once, while
/// others are on their way to nodes. On one node, or nodes of one rank, all that is one hop.
/// A value. Rows that experts get are the same bytes on every chain.
///
/// The way home. sum::exact: every row goes home by itself and straight, with the bits that linear
/// gives. sum::per_hop: back by the chain, one row for each that it sent. Of token t
///   out[t] = sum over nodes n of N(n),  N(n) = sum over ranks r of n of P(r),
///   P(r) = sum over the choices j of t on r of w[t,j] * y[row(t,j)],
/// nodes, ranks and choices in the order in which the choices name them first, each sum in one
/// accumulator, and P and N rounded to the type of y. It depends on the chain's topology, not on
/// where tokens are.
///
/// What is sent, for T tokens a rank, k choices, M(t) nodes of token t besides its own, D(t) ranks
/// on nodes besides its own rank and those that got t by rail, in rows:
///   linear            k T, less those on the own rank
///   once_per_rank     one for each other rank that has a choice of the token
///   once_per_node     sum M(t) between nodes, and sum D(t) within nodes
///   aggregated        k T, less those on the own node, between nodes; in fewer, longer messages
///   gathered          T to every other node, and within nodes as many to every rank
class chain {
 public:
  /// Every row straight to the rank of its expert.
  static chain linear(int ranks) { return {topology::blocks(ranks, 1), way::straight, sum::exact}; }
  /// Each token once to every rank that has an expert of it.
  static chain once_per_rank(int ranks, sum how = sum::exact) {
    return {topology::blocks(ranks, 1), way::once, how};
  }
  /// Each token once to every node, and there once to every rank.
  static chain once_per_node(topology const& nodes, sum how = sum::exact) {
    return {nodes, way::once, how};
  }
  /// A row for each choice, in one message for all ranks of a node: where messages have a price.
  static chain aggregated(topology const& nodes) { return {nodes, way::each, sum::exact}; }
  /// Each token to every rank: what is sent does not depend on the routes.
  static chain gathered(topology const& nodes) { return {nodes, way::all, sum::exact}; }

  topology const& nodes() const noexcept { return nodes_; }
  sum sums() const noexcept { return sums_; }
  bool is_linear() const noexcept { return way_ == way::straight; }
  /// Whether every token goes everywhere, and whether each choice goes by itself.
  bool sends_all() const noexcept { return way_ == way::all; }
  bool sends_each() const noexcept { return way_ == way::each; }
  /// Whether rows change hands between nodes, and then within one.
  bool has_first_hop() const noexcept { return nodes_.nodes() > 1; }
  bool has_second_hop() const noexcept { return nodes_.most() > 1; }

  std::uint64_t hash() const noexcept {
    return (nodes_.hash() * 8 + static_cast<std::uint64_t>(way_) * 2 +
            static_cast<std::uint64_t>(sums_)) *
           0x100000001b3u;
  }
  friend bool operator==(chain const&, chain const&) noexcept = default;

 private:
  enum class way { straight, once, each, all };
  chain(topology nodes, way w, sum s) : nodes_(static_cast<topology&&>(nodes)), way_(w), sums_(s) {}

  topology nodes_;
  way way_;
  sum sums_;
};

}  // namespace expar::inline v0

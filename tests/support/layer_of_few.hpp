// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"

/// A layer of a few numbers, and what its ranks say when something fails.
namespace expar_test {

using expar::index_t;
using expar::make_view;

constexpr int tokens = 4, k = 2, experts = 5, hidden = 3;

struct routes_of_rank {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// The tensors of one rank.
struct layer_data {
  index_t columns;
  std::vector<float> x, out, weights;
  std::vector<std::int32_t> ids;

  explicit layer_data(int rank, index_t columns_of_row = hidden)
      : columns(columns_of_row),
        x(static_cast<std::size_t>(tokens * columns), static_cast<float>(rank + 1)),
        out(x.size()),
        weights(tokens * k, 0.5f) {
    for (int i = 0; i < tokens * k; ++i) ids.push_back((i + rank) % experts);
  }
  auto rows() { return make_view(x.data(), tokens, columns); }
  auto result() { return make_view(out.data(), tokens, columns); }
  routes_of_rank routes() const {
    return {make_view(ids.data(), tokens, k), make_view(weights.data(), tokens, k)};
  }
};

/// A layer of experts that give back what they get; empty where all tokens come home.
template <class Moe, class Batch>
std::string run_layer(Moe& moe, Batch& batch, layer_data& d, expar::host_context const& ctx = {}) {
  moe.dispatch(ctx, d.rows(), d.routes(), batch);
  auto const rows = batch.rows(), y = batch.y();
  for (index_t i = 0; i < batch.row_count(); ++i)
    for (index_t c = 0; c < d.columns; ++c) y(i, c) = rows(i, c);
  moe.combine(ctx, batch, d.result());
  return d.out == d.x ? "" : "a token did not come home";
}

/// f(transport) over a communicator by windows or by messages.
template <class Comm, class F>
auto with_transport(bool by_windows, Comm& comm, F f) {
  if (!by_windows) {
    expar::messages x(comm);
    return f(x);
  }
  expar::windows x(comm);
  return f(x);
}

/// f(transport, comm) on as many ranks as there are sentences, over both transports: each rank says
/// what is wanted of it.
template <class F>
void over_both(std::vector<std::string> const& wanted, F f) {
  for (bool by_windows : {false, true}) {
    std::vector<std::string> said(wanted.size());
    expar::run_ranks(static_cast<int>(wanted.size()), [&](expar::thread_communicator& comm) {
      said[static_cast<std::size_t>(comm.rank())] =
          with_transport(by_windows, comm, [&](auto& x) { return f(x, comm); });
    });
    INFO((by_windows ? "windows" : "messages"));
    CHECK(said == wanted);
  }
}

}  // namespace expar_test

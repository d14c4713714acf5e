// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/cargo.hpp>

#include <cstring>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"

using expar::index_t;
using expar::make_view;

namespace {

/// Four values in two bits each, and a scale: a block that the library cannot read.
struct block {
  float scale;
  std::uint8_t bits;

  float at(int i) const { return scale * static_cast<float>(bits >> 2 * i & 3); }
};
constexpr int row_bytes = 5;

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// Whether all came home. (Catch2 counts on one thread alone.)
template <class From>
bool send_blocks(From& from, expar::thread_communicator& comm) {
  bool good = true;
  constexpr int tokens = 6, k = 2, experts = 4;
  expar::host_context const ctx;
  std::vector<std::byte> rows(tokens * row_bytes);
  std::vector<block> blocks;
  std::vector<std::int32_t> ids;
  std::vector<float> const weights(tokens * k, 0.5f);
  for (int t = 0; t < tokens; ++t) {
    blocks.push_back({static_cast<float>(1 << t % 3), static_cast<std::uint8_t>(29 * t + 7)});
    std::memcpy(rows.data() + t * row_bytes, &blocks.back().scale, 4);
    std::memcpy(rows.data() + t * row_bytes + 4, &blocks.back().bits, 1);
    for (int j = 0; j < k; ++j) ids.push_back((t + j + comm.rank()) % experts);
  }
  expar::expert_parallel moe(
      from, {.experts = experts, .top_k = k, .hidden = row_bytes, .hidden_out = 4});
  expar::expert_batch<std::byte, float, double> batch;
  moe.dispatch(ctx, make_view(rows.data(), tokens, row_bytes),
               route_list{make_view(ids.data(), tokens, k), make_view(weights.data(), tokens, k)},
               batch);
  auto const in = batch.rows();
  auto const y = batch.y();
  good = good && in.extents[1] == row_bytes && y.extents[1] == 4;
  for (index_t row = 0; row < batch.row_count(); ++row) {
    block b;
    std::memcpy(&b.scale, in.row(row), 4);
    std::memcpy(&b.bits, in.row(row) + 4, 1);
    for (int i = 0; i < 4; ++i) y(row, i) = static_cast<double>(b.at(i));
  }
  double out[tokens * 4];
  moe.combine(ctx, batch, make_view(out, tokens, 4));
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < 4; ++i)
      good =
          good &&
          out[t * 4 + i] > static_cast<double>(blocks[static_cast<std::size_t>(t)].at(i)) - 1e-9 &&
          out[t * 4 + i] < static_cast<double>(blocks[static_cast<std::size_t>(t)].at(i)) + 1e-9;
  return good;
}

}  // namespace

TEST_CASE("rows that only their experts can read travel as bytes") {
  for (int ranks : {1, 2, 3}) {
    std::vector<int> good(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      expar::messages by_messages(comm);
      expar::windows by_windows(comm);
      good[static_cast<std::size_t>(comm.rank())] =
          send_blocks(by_messages, comm) && send_blocks(by_windows, comm);
    });
    CHECK(good == std::vector<int>(static_cast<std::size_t>(ranks), 1));
  }
}

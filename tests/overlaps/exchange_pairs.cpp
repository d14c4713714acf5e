// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/exchange/window.hpp>
#include <expar/expert_parallel.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 4, k = 2, experts = 3, columns = 8, row_count = tokens * k;
constexpr expar::expert_shape shape{.experts = experts, .top_k = k, .hidden = columns};
constexpr auto in = access::read, out = access::written;
constexpr std::size_t of_tokens = tokens * columns * 4, of_rows = row_count * columns * 4,
                      of_routes = tokens * k * 4, of_vector = row_count * 4;
expar::host_context const ctx;

struct fixed_routes {
  expar::tensor_view<std::int64_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};
fixed_routes routes() {
  static std::int64_t const ids[row_count] = {0, 1, 2, 0, 1, 1, 2, 2};
  static float const weights[row_count] = {1, 2, 3, 4, 5, 6, 7, 8};
  return {make_view(ids, tokens, k), make_view(weights, tokens, k)};
}
auto token_rows(std::byte* at) {
  return make_view(as<float>(at), tokens, columns);
}
auto expert_rows(std::byte* at) {
  return make_view(as<float>(at), row_count, columns);
}
auto matrix(std::byte* at) {
  return make_view(as<float>(at), tokens, k);
}

/// An engine of one rank, and a batch that has its rows.
template <class Site>
struct layer {
  explicit layer(Site site) : moe(comm, shape, expar::ragged{}, site) {
    float const x[tokens * columns] = {};
    moe.dispatch(ctx, make_view(x, tokens, columns), routes(), batch);
  }
  expar::self_communicator comm;
  expar::expert_parallel<expar::self_communicator, expar::ragged, Site> moe;
  expar::expert_batch<float> batch;
};

}  // namespace

TEST_CASE("overlaps: what an exchange writes is apart from all else") {
  layer at_decode(expar::weights_at_decode{});
  layer at_encode(expar::weights_at_encode{});
  layer per_row(expar::weights_per_row{});
  check_all({
      {"combine",
       {{"y", in, of_rows}, {"out", out, of_tokens}},
       {},
       [&](auto at) {
         at_decode.moe.combine(ctx, at_decode.batch, expert_rows(at[0]), token_rows(at[1]));
       }},
      {"combine_backward",
       {{"d_out", in, of_tokens},
        {"y", in, of_rows},
        {"d_y", out, of_rows},
        {"d_weights", out, of_routes}},
       {},
       [&](auto at) {
         at_decode.moe.combine_backward(ctx, at_decode.batch, token_rows(at[0]), expert_rows(at[1]),
                                        expert_rows(at[2]), matrix(at[3]));
       }},
      {"combine_backward",
       {{"d_out", in, of_tokens}, {"d_y", out, of_rows}},
       {},
       [&](auto at) {
         at_encode.moe.combine_backward(ctx, at_encode.batch, token_rows(at[0]),
                                        expert_rows(at[1]));
       }},
      {"dispatch_backward",
       {{"d_rows", in, of_rows}, {"d_tokens", out, of_tokens}},
       {},
       [&](auto at) {
         at_decode.moe.dispatch_backward(ctx, at_decode.batch, expert_rows(at[0]),
                                         token_rows(at[1]));
       }},
      {"dispatch_backward",
       {{"d_rows", in, of_rows},
        {"tokens", in, of_tokens},
        {"d_tokens", out, of_tokens},
        {"d_weights", out, of_routes}},
       {},
       [&](auto at) {
         at_encode.moe.dispatch_backward(ctx, at_encode.batch, expert_rows(at[0]),
                                         token_rows(at[1]), token_rows(at[2]), matrix(at[3]));
       }},
      {"dispatch_backward",
       {{"d_rows", in, of_rows},
        {"d_row_weights", in, of_vector},
        {"d_tokens", out, of_tokens},
        {"d_weights", out, of_routes}},
       {},
       [&](auto at) {
         per_row.moe.dispatch_backward(ctx, per_row.batch, expert_rows(at[0]),
                                       make_view(as<float>(at[1]), row_count), token_rows(at[2]),
                                       matrix(at[3]));
       }},
  });
}

TEST_CASE("overlaps: what windows give to the caller is apart from the windows") {
  expar::run_ranks(1, [](auto& comm) {
    expar::window_parallel moe(comm, shape);
    auto batch = moe.template make_batch<float>({.rows = row_count});
    float x[tokens * columns] = {};
    moe.dispatch(ctx, make_view(x, tokens, columns), routes(), batch);
    std::string const end = " in memory; the operation cannot work in place (rank 0)";
    auto const in_buffer = [](auto const& buffer, auto n, auto m) {
      return make_view(buffer.data, n, m);
    };
    CHECK_THROWS_WITH(moe.dispatch(ctx, in_buffer(batch.rows(), tokens, columns), batch),
                      "expar: dispatch: rows overlaps tokens" + end);
    CHECK_THROWS_WITH(moe.combine(ctx, batch, in_buffer(batch.y(), tokens, columns)),
                      "expar: combine: out overlaps y" + end);
    CHECK_THROWS_WITH(moe.combine_backward(ctx, batch, in_buffer(batch.d_y(), tokens, columns),
                                           make_view(x, tokens, k)),
                      "expar: combine_backward: d_y overlaps d_out" + end);
    CHECK_THROWS_WITH(
        moe.combine_backward(ctx, batch, make_view(x, tokens, columns), make_view(x, tokens, k)),
        "expar: combine_backward: d_weights overlaps d_out" + end);
    CHECK_THROWS_WITH(moe.combine_backward(ctx, batch, make_view(x, tokens, columns),
                                           in_buffer(batch.y(), tokens, k)),
                      "expar: combine_backward: d_weights overlaps y" + end);
    CHECK_THROWS_WITH(moe.combine_backward(ctx, batch, make_view(x, tokens, columns),
                                           in_buffer(batch.d_y(), tokens, k)),
                      "expar: combine_backward: d_weights overlaps d_y" + end);
    CHECK_THROWS_WITH(moe.dispatch_backward(ctx, batch, in_buffer(batch.d_rows(), tokens, columns)),
                      "expar: dispatch_backward: d_tokens overlaps d_rows" + end);
  });
}

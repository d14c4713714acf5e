// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>
#include <expar/plan/local_routes.hpp>

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

/// An engine of one rank over messages or windows, and a batch that has all its sides.
template <class X, class Site>
struct layer {
  layer(X& x, Site site) : moe(x, shape, expar::ragged{}, site) {
    float values[tokens * columns] = {}, d_weights[tokens * k];
    auto const v = make_view(values, tokens, columns), w = make_view(d_weights, tokens, k);
    moe.dispatch(ctx, v, routes(), batch);
    static_cast<void>(batch.y());
    if constexpr (std::is_same_v<Site, expar::weights_at_decode>)
      moe.combine_backward(ctx, batch, v, w);
    else
      moe.combine_backward(ctx, batch, v);
    static_cast<void>(batch.d_rows());
  }
  expar::expert_parallel<X, expar::ragged, Site> moe;
  expar::expert_batch<float> batch;
};

template <class X>
void check_rows_of_the_caller(X& x) {
  layer at_decode(x, expar::weights_at_decode{}), to_dispatch(x, expar::weights_at_decode{});
  layer at_encode(x, expar::weights_at_encode{});
  layer per_row(x, expar::weights_per_row{});
  check_all({
      {"dispatch",
       {{"tokens", in, of_tokens}, {"rows", out, of_rows}},
       {},
       [&](auto at) {
         to_dispatch.moe.dispatch(ctx, token_rows(at[0]), to_dispatch.batch, expert_rows(at[1]));
       }},
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

/// What stands in the sides of a batch is an argument of whatever reads or writes them.
template <class X>
void check_sides(X& x) {
  layer l(x, expar::weights_at_decode{});
  auto& batch = l.batch;
  float values[row_count * columns] = {};
  auto const mine = make_view(values, tokens, columns), weights = make_view(values, tokens, k);
  auto const rows = make_view(values, row_count, columns);
  float others[row_count * columns] = {};
  auto const other_rows = make_view(others, row_count, columns);
  auto const in_side = [](auto const& side, auto n, auto m) { return make_view(side.data, n, m); };
  auto const y = in_side(batch.y(), tokens, columns), d_y = in_side(batch.d_y(), tokens, columns),
             d_rows = in_side(batch.d_rows(), tokens, columns);
  std::string const end = " in memory; the operation cannot work in place";
  auto const check = [&](auto call, char const* sentence) {
    CHECK_THROWS_WITH(call(), sentence + end);
  };
  check([&] { l.moe.combine(ctx, batch, y); }, "expar: combine: out overlaps y");
  check([&] { l.moe.combine_backward(ctx, batch, d_y, weights); },
        "expar: combine_backward: d_y overlaps d_out");
  check([&] { l.moe.combine_backward(ctx, batch, mine, weights); },
        "expar: combine_backward: d_weights overlaps d_out");
  check([&] { l.moe.combine_backward(ctx, batch, mine, in_side(y, tokens, k)); },
        "expar: combine_backward: d_weights overlaps y");
  check([&] { l.moe.combine_backward(ctx, batch, mine, in_side(d_y, tokens, k)); },
        "expar: combine_backward: d_weights overlaps d_y");
  check([&] { l.moe.dispatch_backward(ctx, batch, d_rows); },
        "expar: dispatch_backward: d_tokens overlaps d_rows");

  // What the caller brings instead goes through them where rows stand in windows.
  check([&] { l.moe.combine(ctx, batch, rows, y); }, "expar: combine: out overlaps batch.y()");
  check(
      [&] { l.moe.combine_backward(ctx, batch, y, rows, other_rows, in_side(d_rows, tokens, k)); },
      "expar: combine_backward: batch.y() overlaps d_out");
  check(
      [&] {
        l.moe.combine_backward(ctx, batch, d_y, rows, other_rows, in_side(d_rows, tokens, k));
      },
      "expar: combine_backward: batch.d_y() overlaps d_out");
  check([&] { l.moe.dispatch_backward(ctx, batch, rows, d_rows); },
        "expar: dispatch_backward: d_tokens overlaps batch.d_rows()");

  check([&] { l.moe.dispatch(ctx, in_side(batch.rows(), tokens, columns), batch); },
        "expar: dispatch: rows overlaps tokens");
  check([&] { l.moe.dispatch(ctx, in_side(batch.rows(), tokens, columns), batch, rows); },
        "expar: dispatch: batch.rows() overlaps tokens");

  // A side by its name is the side.
  CHECK_NOTHROW(l.moe.dispatch(ctx, mine, batch, batch.rows()));
  CHECK_NOTHROW(l.moe.combine(ctx, batch, batch.y(), mine));
  CHECK_NOTHROW(l.moe.combine_backward(ctx, batch, mine, batch.y(), batch.d_y(),
                                       make_view(others, tokens, k)));
  CHECK_NOTHROW(l.moe.dispatch_backward(ctx, batch, batch.d_rows(), mine));
}

}  // namespace

TEST_CASE("overlaps: what an exchange writes is apart from all else") {
  expar::self_communicator alone;
  expar::messages x(alone);
  check_rows_of_the_caller(x);
  check_sides(x);
}

TEST_CASE("overlaps: what an exchange writes is apart from all else, in windows, too") {
  expar::run_ranks(1, [](auto& comm) {
    expar::windows x(comm);
    check_rows_of_the_caller(x);
    check_sides(x);
  });
}

TEST_CASE("overlaps: local routes are apart from those of all ranks") {
  check_all({{"local_routes", {{"ids", in, of_routes}, {"out", out, of_routes}}, {}, [](auto at) {
                auto const place = expar::placement::blocks(experts, 2);
                expar::local_routes(ctx, place, 1, make_view(as<std::int32_t>(at[0]), tokens, k),
                                    make_view(as<std::int32_t>(at[1]), tokens, k));
              }}});
}

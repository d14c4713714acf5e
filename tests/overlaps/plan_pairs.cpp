// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/drop.hpp>
#include <expar/plan/keep_choice.hpp>
#include <expar/plan/renormalize_kept.hpp>
#include <expar/plan/reroute.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 4, k = 2, experts = 3;
expar::host_context const ctx;
constexpr auto in = access::read, out = access::written;
constexpr std::size_t of_ids = tokens * k * 8, of_weights = tokens * k * 4;

auto ids(std::byte* at) {
  return make_view(as<std::int64_t>(at), tokens, k);
}
auto weights(std::byte* at) {
  return make_view(as<float>(at), tokens, k);
}
auto marks(std::byte* at) {
  return make_view(as<std::uint8_t>(at), tokens);
}

}  // namespace

TEST_CASE("overlaps: what drops write is apart from all but the ids that it may be") {
  check_all({
      {"drop_to_capacity",
       {{"ids", in, of_ids}, {"kept", out, of_ids}, {"dropped", out, experts * 8}},
       {{0, 1}},
       [](auto at) {
         expar::drop_to_capacity(ctx, ids(at[0]), experts, 2, expar::by_choice{}, ids(at[1]),
                                 make_view(as<std::int64_t>(at[2]), experts));
       }},
      {"drop_to_capacity",
       {{"ids", in, of_ids},
        {"values", in, of_weights},
        {"kept", out, of_ids},
        {"dropped", out, experts * 8}},
       {{0, 2}},
       [](auto at) {
         expar::drop_to_capacity(ctx, ids(at[0]), experts, 2, expar::by_value{weights(at[1])},
                                 ids(at[2]), make_view(as<std::int64_t>(at[3]), experts));
       }},
      {"take_first_free",
       {{"ids", in, of_ids}, {"kept", out, of_ids}},
       {{0, 1}},
       [](auto at) { expar::take_first_free(ctx, ids(at[0]), experts, 2, ids(at[1])); }},
      {"reroute_dropped",
       {{"ids", in, of_ids}, {"uniform", in, of_weights}, {"kept", out, of_ids}},
       {},
       [](auto at) {
         expar::reroute_dropped(ctx, ids(at[0]), experts, 2, weights(at[1]), ids(at[2]));
       }},
      {"keep_choice",
       {{"ids", in, of_ids}, {"weights", in, of_weights}, {"kept", out, of_ids}},
       {{0, 2}},
       [](auto at) {
         expar::keep_choice(ctx, ids(at[0]), weights(at[1]), 1, expar::kept_above{.5}, ids(at[2]));
       }},
      {"keep_choice",
       {{"ids", in, of_ids},
        {"weights", in, of_weights},
        {"uniform", in, tokens * 4},
        {"kept", out, of_ids}},
       {{0, 3}},
       [](auto at) {
         expar::kept_at_random const rule{.5, make_view(as<float>(at[2]), tokens)};
         expar::keep_choice(ctx, ids(at[0]), weights(at[1]), 1, rule, ids(at[3]));
       }},
      {"renormalize_kept",
       {{"kept", in, of_ids}, {"weights", in, of_weights}, {"out", out, of_weights}},
       {{1, 2}},
       [](auto at) {
         expar::renormalize_kept(ctx, ids(at[0]), weights(at[1]), expar::renormalize{},
                                 weights(at[2]));
       }},
      {"renormalize_kept_backward",
       {{"kept", in, of_ids},
        {"weights", in, of_weights},
        {"d_out", in, of_weights},
        {"d_weights", out, of_weights}},
       {{1, 3}, {2, 3}},
       [](auto at) {
         expar::renormalize_kept_backward(ctx, ids(at[0]), weights(at[1]), expar::renormalize{},
                                          weights(at[2]), weights(at[3]));
       }},
  });
}

TEST_CASE("overlaps: a mask is apart from what is written") {
  alignas(8) std::byte memory[256] = {};
  expar::only const some(marks(memory + 64), ids(memory));
  REQUIRE_THROWS_WITH(
      expar::take_first_free(ctx, some, experts, 2, ids(memory + 64)),
      "expar: take_first_free: kept overlaps valid in memory; the operation cannot work in place");
}

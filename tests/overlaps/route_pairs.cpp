// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 4, experts = 8, k = 2;
expar::host_context const ctx;

struct routes_at {
  expar::tensor_view<std::int32_t, 2> ids;
  expar::tensor_view<float, 2> weights;
};
routes_at routes(std::byte* ids, std::byte* weights) {
  return {make_view(as<std::int32_t>(ids), tokens, k), make_view(as<float>(weights), tokens, k)};
}
auto logits_at(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
constexpr argument logits{"logits", access::read, tokens*experts * 4},
    d_logits{"d_logits", access::written, tokens*experts * 4},
    weights{"weights", access::written, tokens*k * 4}, ids{"ids", access::written, tokens*k * 4},
    read_ids{"ids", access::read, tokens*k * 4}, d_weights{"d_weights", access::read, tokens*k * 4},
    bias{"bias", access::read, experts * 4};

}  // namespace

TEST_CASE("overlaps: route writes apart from what it reads") {
  auto const router = expar::models::deepseek_v3({experts, k, 4, 2, 2.5});
  check_all({
      {"route",
       {logits, bias, ids, weights},
       {},
       [&](auto at) {
         expar::route(ctx, router, logits_at(at[0]), make_view(as<float>(at[1]), experts),
                      routes(at[2], at[3]));
       }},
      {"route_backward",
       {logits, read_ids, d_weights, d_logits},
       {{0, 3}},
       [&](auto at) {
         auto const d = make_view(as<float>(at[2]), tokens, k);
         expar::route_backward(ctx, router, logits_at(at[0]), routes(at[1], at[2]), d,
                               logits_at(at[3]));
       }},
      {"route_backward",
       {logits, read_ids, d_weights, d_logits},
       {},
       [&](auto at) {
         auto const d = make_view(as<float>(at[2]), tokens, k);
         expar::route_backward(ctx, router, logits_at(at[0]), routes(at[1], at[2]), d,
                               expar::add_to(logits_at(at[3])));
       }},
  });
}

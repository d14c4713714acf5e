// SPDX-License-Identifier: Apache-2.0
#include <expar/router/expert_choice.hpp>
#include <expar/router/replay.hpp>
#include <expar/router/research/balanced_assignment.hpp>
#include <expar/router/routes_of_tokens.hpp>
#include <expar/router/shared_experts.hpp>
#include <expar/router/variable_routes.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 16, experts = 4, k = 2;
expar::host_context const ctx;

expar::routes_view<float> routes(std::byte* ids, std::byte* weights, int rows, int columns) {
  return {make_view(as<std::int32_t>(ids), rows, columns),
          make_view(as<float>(weights), rows, columns)};
}
auto logits_at(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
auto valid_at(std::byte* at) {
  return make_view(as<std::uint8_t>(at), tokens);
}
constexpr argument logits{"logits", access::read, tokens*experts * 4},
    valid{"valid", access::read, tokens}, d_logits{"d_logits", access::written, tokens*experts * 4};

// Variable routes of 3 tokens to 2 experts, of which each chose the first two.
struct variable {
  expar::tensor_view<std::int64_t, 1> offsets;
  expar::tensor_view<std::int32_t, 1> ids;
  expar::tensor_view<float, 1> weights;
};
constexpr int few = 3, routes_of_few = 4;
constexpr argument offsets{"offsets", access::read, (few + 1) * 8},
    variable_ids{"variable ids", access::read, routes_of_few * 4};
variable variable_at(std::byte* offset, std::byte* ids, std::byte* weights) {
  return {make_view(as<std::int64_t>(offset), few + 1),
          make_view(as<std::int32_t>(ids), routes_of_few),
          make_view(as<float>(weights), routes_of_few)};
}
void fill(std::byte* offset, std::byte* ids) {
  for (int t = 0; t <= few; ++t) as<std::int64_t>(offset)[t] = t < 2 ? 2 * t : 4;
  for (int i = 0; i < routes_of_few; ++i) as<std::int32_t>(ids)[i] = i % 2;
}

}  // namespace

TEST_CASE("overlaps: what experts choose, and what chooses for tokens") {
  expar::expert_choice const choice{experts, k, expar::expert_choice::softmax::over_experts, true};
  check_all({
      {"choose_tokens",
       {logits,
        valid,
        {"ids", access::written, experts * k * 4},
        {"weights", access::written, experts * k * 4}},
       {},
       [&](auto at) {
         expar::choose_tokens(ctx, choice, expar::only(valid_at(at[1]), logits_at(at[0])),
                              routes(at[2], at[3], experts, k));
       }},
      {"choose_tokens_backward",
       {logits,
        valid,
        {"ids", access::read, experts * k * 4},
        {"d_weights", access::read, experts * k * 4},
        d_logits},
       {{0, 4}},
       [&](auto at) {
         auto const chosen = routes(at[2], at[3], experts, k);
         expar::choose_tokens_backward(ctx, choice, expar::only(valid_at(at[1]), logits_at(at[0])),
                                       chosen, chosen.weights, logits_at(at[4]));
       }},
      {"gates_of_experts",
       {{"ids", access::read, 2 * 4 * 4},
        offsets,
        variable_ids,
        {"d_weights", access::read, routes_of_few * 4},
        {"d_gates", access::written, 2 * 4 * 4}},
       {},
       [&](auto at) {
         auto const v = variable_at(at[1], at[2], at[3]);
         expar::gates_of_experts(ctx, routes(at[0], at[4], 2, 4), v, v.weights,
                                 make_view(as<float>(at[4]), 2, 4));
       },
       [](auto at) {
         fill(at[1], at[2]);
         for (int i = 0; i < 8; ++i) as<std::int32_t>(at[0])[i] = i % 4 < 2 ? i % 4 : -1;
       }},
      {"balanced_assignment",
       {{"scores", access::read, tokens * experts * 4}, {"ids", access::written, tokens * 4}},
       {},
       [&](auto at) {
         expar::balanced_assignment(ctx, logits_at(at[0]), {},
                                    make_view(as<std::int32_t>(at[1]), tokens, 1));
       }},
  });
}

TEST_CASE("overlaps: routes of other shapes, and their records") {
  expar::shared_experts const shared{experts, 2};
  constexpr std::size_t some = tokens * k * 4, all = tokens * (k + 2) * 4;
  auto const bytes = expar::record_bytes(experts, k);
  auto const record = [&](std::byte* at) { return make_view(as<std::uint8_t>(at), tokens, bytes); };
  auto const record_size = static_cast<std::size_t>(tokens * bytes);
  expar::router const router({4, 4}, expar::relu_score{}, expar::score_key{},
                             expar::positive_keys{});
  check_all({
      {"append_shared",
       {{"ids", access::read, some},
        {"weights", access::read, some},
        {"out ids", access::written, all},
        {"out weights", access::written, all}},
       {},
       [&](auto at) {
         expar::append_shared(ctx, shared, routes(at[0], at[1], tokens, k),
                              routes(at[2], at[3], tokens, k + 2));
       }},
      {"append_shared_backward",
       {{"ids", access::read, some},
        {"d_all", access::read, all},
        {"d_weights", access::written, some}},
       {},
       [&](auto at) {
         auto const from = routes(at[0], at[2], tokens, k);
         expar::append_shared_backward(ctx, shared, from.ids,
                                       make_view(as<float>(at[1]), tokens, k + 2), from.weights);
       }},
      {"record_ids",
       {{"ids", access::read, some}, {"record", access::written, record_size}},
       {},
       [&](auto at) {
         expar::record_ids(ctx, make_view(as<std::int32_t>(at[0]), tokens, k), experts,
                           record(at[1]));
       }},
      {"replay_ids",
       {{"record", access::read, record_size}, {"ids", access::written, some}},
       {},
       [&](auto at) {
         expar::replay_ids(ctx, record(at[0]), experts,
                           make_view(as<std::int32_t>(at[1]), tokens, k));
       }},
      {"to_fixed",
       {offsets,
        variable_ids,
        {"variable weights", access::read, routes_of_few * 4},
        {"ids", access::written, few * 4 * 4},
        {"weights", access::written, few * 4 * 4}},
       {},
       [&](auto at) {
         expar::to_fixed(ctx, variable_at(at[0], at[1], at[2]), routes(at[3], at[4], few, 4));
       },
       [](auto at) { fill(at[0], at[1]); }},
      {"route_variable_backward",
       {{"logits", access::read, few * 4 * 4},
        offsets,
        variable_ids,
        {"d_weights", access::read, routes_of_few * 4},
        {"d_logits", access::written, few * 4 * 4}},
       {{0, 4}},
       [&](auto at) {
         auto const v = variable_at(at[1], at[2], at[3]);
         expar::route_variable_backward(ctx, router, make_view(as<float>(at[0]), few, 4), v,
                                        v.weights, make_view(as<float>(at[4]), few, 4));
       },
       [](auto at) { fill(at[1], at[2]); }},
  });
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/draw_numbers.hpp>
#include <expar/router/expert_scale_backward.hpp>
#include <expar/router/jitter.hpp>
#include <expar/router/models.hpp>
#include <expar/router/noise.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 4, experts = 8, k = 2;
expar::host_context const ctx;

auto matrix_at(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
auto given_at(std::byte* at) {
  return expar::given_numbers{matrix_at(at)};
}
constexpr argument read(char const* name) {
  return {name, access::read, tokens * experts * 4};
}
constexpr argument written(char const* name) {
  return {name, access::written, tokens * experts * 4};
}

}  // namespace

TEST_CASE("overlaps: noise, and the numbers that it takes") {
  check_all({
      {"draw_numbers",
       {read("given numbers"), written("out")},
       {{0, 1}},
       [&](auto at) { expar::draw_numbers(ctx, given_at(at[0]), matrix_at(at[1])); }},
      {"jitter",
       {read("x"), read("given numbers"), written("out")},
       {{0, 2}, {1, 2}},
       [&](auto at) {
         expar::jitter(ctx, matrix_at(at[0]), .1, given_at(at[1]), matrix_at(at[2]));
       }},
      {"jitter_backward",
       {read("d_out"), read("given numbers"), written("d_x")},
       {{0, 2}, {1, 2}},
       [&](auto at) {
         expar::jitter_backward(ctx, matrix_at(at[0]), .1, given_at(at[1]), matrix_at(at[2]));
       }},
      {"input_dropout",
       {read("x"), read("given numbers"), written("out")},
       {{0, 2}, {1, 2}},
       [&](auto at) {
         expar::input_dropout(ctx, matrix_at(at[0]), .1, given_at(at[1]), matrix_at(at[2]));
       }},
      {"input_dropout_backward",
       {read("d_out"), read("given numbers"), written("d_x")},
       {},
       [&](auto at) {
         expar::input_dropout_backward(ctx, matrix_at(at[0]), .1, given_at(at[1]),
                                       expar::add_to(matrix_at(at[2])));
       }},
      {"learned_noise_backward",
       {read("raw"), read("given numbers"), read("d_noisy"), written("d_raw")},
       {{0, 3}, {1, 3}, {2, 3}},
       [&](auto at) {
         expar::learned_noise_backward(
             ctx, expar::add_learned_noise{matrix_at(at[0]), .01, given_at(at[1])},
             matrix_at(at[2]), matrix_at(at[3]));
       }},
      {"expert_scale_backward",
       {{"factors", access::read, experts * 4},
        read("logits"),
        {"ids", access::read, tokens * k * 4},
        {"d_weights", access::read, tokens * k * 4},
        {"d_factors", access::written, experts * 4}},
       {},
       [&](auto at) {
         auto const router = expar::models::gemma_4(
             {experts, k}, expar::expert_scale{make_view(as<float>(at[0]), experts)});
         expar::routes_view<float> const routes{make_view(as<std::int32_t>(at[2]), tokens, k),
                                                make_view(as<float>(at[3]), tokens, k)};
         expar::expert_scale_backward(ctx, router, matrix_at(at[1]), routes, routes.weights,
                                      make_view(as<float>(at[4]), experts));
       }},
  });
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/logits/normalize_rows.hpp>
#include <expar/router/research/attention_logits.hpp>
#include <expar/router/research/soft_moe.hpp>
#include <expar/router/sinkhorn.hpp>
#include <expar/router/transform_logits.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 16, experts = 8;
expar::host_context const ctx;

auto matrix_at(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
constexpr argument read(char const* name) {
  return {name, access::read, tokens * experts * 4};
}
constexpr argument written(char const* name) {
  return {name, access::written, tokens * experts * 4};
}

}  // namespace

TEST_CASE("overlaps: what transforms and normalizes logits") {
  expar::unit_rms const rms;
  check_all({
      {"transform_logits",
       {read("logits"), read("addend"), written("out")},
       {{0, 2}},
       [&](auto at) {
         expar::transform_logits(ctx, expar::add_rows{matrix_at(at[1])}, matrix_at(at[0]),
                                 matrix_at(at[2]));
       }},
      {"transform_logits_backward",
       {read("logits"), read("addend"), read("d_out"), written("d_logits")},
       {{0, 3}, {2, 3}},
       [&](auto at) {
         expar::transform_logits_backward(ctx, expar::add_rows{matrix_at(at[1])}, matrix_at(at[0]),
                                          matrix_at(at[2]), matrix_at(at[3]));
       }},
      {"normalize_rows",
       {read("x"), written("y")},
       {{0, 1}},
       [&](auto at) { expar::normalize_rows(ctx, rms, matrix_at(at[0]), matrix_at(at[1])); }},
      {"normalize_rows_backward",
       {read("x"), read("d"), written("dx")},
       {{0, 2}, {1, 2}},
       [&](auto at) {
         expar::normalize_rows_backward(ctx, rms, matrix_at(at[0]), matrix_at(at[1]),
                                        matrix_at(at[2]));
       }},
  });
}

TEST_CASE("overlaps: what makes logits and weights") {
  check_all({
      {"attention_logits",
       {read("q"), read("k"), read("v"), written("logits")},
       {},
       [&](auto at) {
         expar::attention_logits(ctx, matrix_at(at[0]), matrix_at(at[1]), matrix_at(at[2]),
                                 matrix_at(at[3]));
       }},
      {"attention_logits_backward",
       {read("q"), read("k"), read("v"), read("d_logits"), written("dq"), written("dk"),
        written("dv")},
       {{0, 4}, {1, 5}, {2, 6}, {3, 4}, {3, 5}, {3, 6}},
       [&](auto at) {
         expar::attention_logits_backward(ctx, matrix_at(at[0]), matrix_at(at[1]), matrix_at(at[2]),
                                          matrix_at(at[3]), matrix_at(at[4]), matrix_at(at[5]),
                                          matrix_at(at[6]));
       }},
      {"soft_moe_weights",
       {read("logits"), written("dispatch"), written("combine")},
       {},
       [&](auto at) {
         expar::soft_moe_weights(ctx, matrix_at(at[0]), matrix_at(at[1]), matrix_at(at[2]));
       }},
      {"soft_moe_weights_backward",
       {read("logits"), read("d_dispatch"), read("d_combine"), written("d_logits")},
       {{0, 3}, {1, 3}, {2, 3}},
       [&](auto at) {
         expar::soft_moe_weights_backward(ctx, matrix_at(at[0]), matrix_at(at[1]), matrix_at(at[2]),
                                          matrix_at(at[3]));
       }},
      {"sinkhorn",
       {read("logits"), {"valid", access::read, tokens}, written("plan")},
       {{0, 2}},
       [&](auto at) {
         auto const valid = make_view(as<std::uint8_t>(at[1]), tokens);
         expar::sinkhorn(ctx, expar::only(valid, matrix_at(at[0])), {}, matrix_at(at[2]));
       }},
  });
}

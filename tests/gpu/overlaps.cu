// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>
#include <expar/gpu/permute/quantize.cuh>
#include <expar/gpu/permute/tokens.cuh>
#include <expar/gpu/permute/weights.cuh>
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/router/models.hpp>

#include "gpu/device.cuh"
#include "support/overlaps.hpp"

// The addresses are those of host memory: a call that is not refused before its launch would fail.
using namespace overlap_test;
using expar::make_view;
namespace gpu = expar::gpu;

namespace {

constexpr int tokens = 4, k = 2, experts = 8, columns = 8, rows = 7;
constexpr auto in = access::read, out = access::written;
constexpr std::size_t of_tokens = tokens * columns * 4, of_rows = rows * columns * 4,
                      of_codes = rows * columns, of_routes = tokens * k * 4,
                      of_vector = 24;  // of the 28 bytes of 7 rows

auto token_rows(std::byte* at) {
  return make_view(as<float>(at), tokens, columns);
}
auto expert_rows(std::byte* at) {
  return make_view(as<float>(at), rows, columns);
}
auto codes(std::byte* at) {
  return make_view(as<expar::float8_e4m3>(at), rows, columns);
}
auto matrix(std::byte* at) {
  return make_view(as<float>(at), tokens, k);
}
auto row_vector(std::byte* at) {
  return make_view(as<float>(at), rows);
}
auto row_numbers(std::byte* at) {
  return make_view(as<std::int32_t>(at), rows);
}
auto scales(std::byte* at) {
  return make_view(as<float>(at), rows, 1);
}
auto logits(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
expar::routes_view<float> routes(std::byte* ids, std::byte* weights) {
  return {make_view(as<std::int32_t>(ids), tokens, k), make_view(as<float>(weights), tokens, k)};
}

struct device_plan {
  expar_test::own_stream stream;
  gpu::context ctx{stream};
  expar_test::device_array<std::int32_t> ids{{0, 1, 2, 0, -1, 1, 2, 2}};
  gpu::route_plan plan = gpu::make_plan(ctx, make_view<std::int32_t const>(ids.data(), tokens, k),
                                        experts, expar::ragged{});
};

}  // namespace

TEST_CASE("on the device what permutes write is apart from all else") {
  device_plan const d;
  auto const& ctx = d.ctx;
  auto const& plan = d.plan;
  check_all_refusals({
      {"encode",
       {{"tokens", in, of_tokens}, {"rows", out, of_rows}},
       {},
       [&](auto at) { gpu::encode(ctx, plan, token_rows(at[0]), expert_rows(at[1])); }},
      {"encode",
       {{"tokens", in, of_tokens}, {"weights", in, of_routes}, {"rows", out, of_rows}},
       {},
       [&](auto at) {
         gpu::encode(ctx, plan, token_rows(at[0]), matrix(at[1]), expert_rows(at[2]));
       }},
      {"encode",
       {{"tokens", in, of_tokens},
        {"weights", in, of_routes},
        {"rows", out, of_rows},
        {"row_weights", out, of_vector}},
       {},
       [&](auto at) {
         gpu::encode(ctx, plan, token_rows(at[0]), matrix(at[1]), expert_rows(at[2]),
                     row_vector(at[3]));
       }},
      {"encode_backward",
       {{"d_rows", in, of_rows}, {"d_tokens", out, of_tokens}},
       {},
       [&](auto at) { gpu::encode_backward(ctx, plan, expert_rows(at[0]), token_rows(at[1])); }},
      {"encode_backward",
       {{"d_rows", in, of_rows},
        {"tokens", in, of_tokens},
        {"weights", in, of_routes},
        {"d_tokens", out, of_tokens},
        {"d_weights", out, of_routes}},
       {},
       [&](auto at) {
         gpu::encode_backward(ctx, plan, expert_rows(at[0]), token_rows(at[1]), matrix(at[2]),
                              token_rows(at[3]), matrix(at[4]));
       }},
      {"decode",
       {{"rows", in, of_rows}, {"out", out, of_tokens}},
       {},
       [&](auto at) { gpu::decode(ctx, plan, expert_rows(at[0]), token_rows(at[1])); }},
      {"decode",
       {{"rows", in, of_rows}, {"weights", in, of_routes}, {"out", out, of_tokens}},
       {},
       [&](auto at) {
         gpu::decode(ctx, plan, expert_rows(at[0]), matrix(at[1]), token_rows(at[2]));
       }},
      {"decode",
       {{"rows", in, of_rows},
        {"weights", in, of_routes},
        {"residual", in, of_tokens},
        {"out", out, of_tokens}},
       {{2, 3}},
       [&](auto at) {
         gpu::decode(ctx, plan, expert_rows(at[0]), matrix(at[1]), token_rows(at[2]),
                     token_rows(at[3]));
       }},
      {"decode_backward",
       {{"d_out", in, of_tokens}, {"d_rows", out, of_rows}},
       {},
       [&](auto at) { gpu::decode_backward(ctx, plan, token_rows(at[0]), expert_rows(at[1])); }},
      {"decode_backward",
       {{"d_out", in, of_tokens},
        {"rows", in, of_rows},
        {"weights", in, of_routes},
        {"d_rows", out, of_rows},
        {"d_weights", out, of_routes}},
       {{1, 3}},
       [&](auto at) {
         gpu::decode_backward(ctx, plan, token_rows(at[0]), expert_rows(at[1]), matrix(at[2]),
                              expert_rows(at[3]), matrix(at[4]));
       }},
      {"encode_weights",
       {{"weights", in, of_routes}, {"out", out, of_vector}},
       {},
       [&](auto at) { gpu::encode_weights(ctx, plan, matrix(at[0]), row_vector(at[1])); }},
      {"encode_weights_backward",
       {{"d_out", in, of_vector}, {"d_weights", out, of_routes}},
       {},
       [&](auto at) { gpu::encode_weights_backward(ctx, plan, row_vector(at[0]), matrix(at[1])); }},
      {"row_tokens",
       {{"tokens", out, of_vector}, {"choices", out, of_vector}},
       {},
       [&](auto at) { gpu::row_tokens(ctx, plan, row_numbers(at[0]), row_numbers(at[1])); }},
      {"encode_quantized",
       {{"tokens", in, of_tokens}, {"rows", out, of_codes}, {"scales", out, of_vector}},
       {},
       [&](auto at) {
         gpu::encode_quantized(ctx, plan, token_rows(at[0]), codes(at[1]), scales(at[2]));
       }},
      {"decode_quantized",
       {{"rows", in, of_codes}, {"scales", in, of_vector}, {"out", out, of_tokens}},
       {},
       [&](auto at) {
         gpu::decode_quantized(ctx, plan, codes(at[0]), scales(at[1]), token_rows(at[2]));
       }},
      {"decode_quantized",
       {{"rows", in, of_codes},
        {"scales", in, of_vector},
        {"weights", in, of_routes},
        {"out", out, of_tokens}},
       {},
       [&](auto at) {
         gpu::decode_quantized(ctx, plan, codes(at[0]), scales(at[1]), matrix(at[2]),
                               token_rows(at[3]));
       }},
  });
}

TEST_CASE("on the device what routers write is apart from all else") {
  device_plan d;
  auto const& ctx = d.ctx;
  auto const router = expar::models::deepseek_v3({experts, k, 4, 2, 2.5});
  std::vector<argument> const gate{{"logits", in, tokens * experts * 4},
                                   {"bias", in, experts * 4},
                                   {"ids", out, of_routes},
                                   {"weights", out, of_routes}};
  auto const bias = [](std::byte* at) { return make_view(as<float>(at), experts); };
  check_all_refusals({
      {"route",
       gate,
       {},
       [&](auto at) { gpu::route(ctx, router, logits(at[0]), bias(at[1]), routes(at[2], at[3])); }},
      {"gate_plan",
       gate,
       {},
       [&](auto at) {
         gpu::gate_plan(ctx, router, logits(at[0]), bias(at[1]), expar::ragged{},
                        routes(at[2], at[3]), d.plan);
       }},
      {"route_backward",
       {{"logits", in, tokens * experts * 4},
        {"ids", in, of_routes},
        {"d_weights", in, of_routes},
        {"d_logits", out, tokens * experts * 4}},
       {{0, 3}},
       [&](auto at) {
         gpu::route_backward(ctx, router, logits(at[0]), routes(at[1], at[2]), matrix(at[2]),
                             logits(at[3]));
       }},
  });
}

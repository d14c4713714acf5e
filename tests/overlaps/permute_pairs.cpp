// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>
#include <expar/permute/quantize.hpp>
#include <expar/permute/tokens.hpp>
#include <expar/permute/weights.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 4, k = 2, experts = 3, columns = 8;
expar::host_context const ctx;

expar::route_plan const& plan() {
  static expar::route_plan const p = [] {
    std::int32_t const ids[tokens * k] = {0, 1, 2, 0, -1, 1, 2, 2};
    return expar::make_plan(ctx, make_view(ids, tokens, k), experts);
  }();
  return p;
}
auto token_rows(std::byte* at) {
  return make_view(as<float>(at), tokens, columns);
}
auto expert_rows(std::byte* at) {
  return make_view(as<float>(at), plan().rows(), columns);
}
auto matrix(std::byte* at) {
  return make_view(as<float>(at), tokens, k);
}
auto row_vector(std::byte* at) {
  return make_view(as<float>(at), plan().rows());
}
constexpr auto in = access::read, out = access::written;
constexpr std::size_t of_tokens = tokens * columns * 4, of_rows = 7 * columns * 4,
                      of_routes = tokens * k * 4, of_vector = 24;  // of the 28 bytes of 7 rows

}  // namespace

TEST_CASE("overlaps: what permutes write is apart from all else") {
  REQUIRE(plan().rows() == 7);
  check_all({
      {"encode",
       {{"tokens", in, of_tokens}, {"rows", out, of_rows}},
       {},
       [](auto at) { expar::encode(ctx, plan(), token_rows(at[0]), expert_rows(at[1])); }},
      {"encode",
       {{"tokens", in, of_tokens},
        {"weights", in, of_routes},
        {"rows", out, of_rows},
        {"row_weights", out, of_vector}},
       {},
       [](auto at) {
         expar::encode(ctx, plan(), token_rows(at[0]), matrix(at[1]), expert_rows(at[2]),
                       row_vector(at[3]));
       }},
      {"encode_backward",
       {{"d_rows", in, of_rows},
        {"tokens", in, of_tokens},
        {"weights", in, of_routes},
        {"d_tokens", out, of_tokens},
        {"d_weights", out, of_routes}},
       {},
       [](auto at) {
         expar::encode_backward(ctx, plan(), expert_rows(at[0]), token_rows(at[1]), matrix(at[2]),
                                token_rows(at[3]), matrix(at[4]));
       }},
      {"decode",
       {{"rows", in, of_rows},
        {"weights", in, of_routes},
        {"residual", in, of_tokens},
        {"out", out, of_tokens}},
       {{2, 3}},
       [](auto at) {
         expar::decode(ctx, plan(), expert_rows(at[0]), matrix(at[1]), token_rows(at[2]),
                       token_rows(at[3]));
       }},
      {"decode_backward",
       {{"d_out", in, of_tokens},
        {"rows", in, of_rows},
        {"weights", in, of_routes},
        {"d_rows", out, of_rows},
        {"d_weights", out, of_routes}},
       {},
       [](auto at) {
         expar::decode_backward(ctx, plan(), token_rows(at[0]), expert_rows(at[1]), matrix(at[2]),
                                expert_rows(at[3]), matrix(at[4]));
       }},
      {"encode_weights",
       {{"weights", in, of_routes}, {"out", out, of_vector}},
       {},
       [](auto at) { expar::encode_weights(ctx, plan(), matrix(at[0]), row_vector(at[1])); }},
      {"encode_weights_backward",
       {{"d_out", in, of_vector}, {"d_weights", out, of_routes}},
       {},
       [](auto at) {
         expar::encode_weights_backward(ctx, plan(), row_vector(at[0]), matrix(at[1]));
       }},
      {"row_tokens",
       {{"tokens", out, of_vector}, {"choices", out, of_vector}},
       {},
       [](auto at) {
         expar::row_tokens(ctx, plan(), make_view(as<std::int32_t>(at[0]), plan().rows()),
                           make_view(as<std::int32_t>(at[1]), plan().rows()));
       }},
      {"encode_quantized",
       {{"tokens", in, of_tokens}, {"rows", out, 56}, {"scales", out, of_vector}},
       {},
       [](auto at) {
         expar::encode_quantized(ctx, plan(), token_rows(at[0]),
                                 make_view(as<expar::float8_e4m3>(at[1]), plan().rows(), columns),
                                 make_view(as<float>(at[2]), plan().rows(), 1));
       }},
      {"decode_quantized",
       {{"rows", in, 56},
        {"scales", in, of_vector},
        {"weights", in, of_routes},
        {"out", out, of_tokens}},
       {},
       [](auto at) {
         expar::decode_quantized(
             ctx, plan(), make_view(as<expar::float8_e4m3>(at[0]), plan().rows(), columns),
             make_view(as<float>(at[1]), plan().rows(), 1), matrix(at[2]), token_rows(at[3]));
       }},
  });
}

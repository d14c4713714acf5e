// SPDX-License-Identifier: Apache-2.0
#include <expar/router/state/bias_update.hpp>
#include <expar/router/state/quantile_balance.hpp>
#include <expar/router/state/quantile_histogram.hpp>

#include "support/overlaps.hpp"

using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 16, experts = 8, k = 2, bins = 4;
expar::host_context const ctx;

auto vector_at(std::byte* at) {
  return make_view(as<float>(at), experts);
}
auto logits_at(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
auto valid_at(std::byte* at) {
  return make_view(as<std::uint8_t>(at), tokens);
}
auto histogram_at(std::byte* at) {
  return make_view(as<std::int32_t>(at), experts, bins);
}
constexpr argument logits{"logits", access::read, tokens*experts * 4},
    valid{"valid", access::read, tokens}, bias{"bias", access::read, experts * 4},
    moved{"bias", access::written, experts * 4};

}  // namespace

TEST_CASE("overlaps: a bias that is moved is apart from what moves it") {
  check_all({
      {"update_bias",
       {{"counts", access::read, experts * 4}, moved},
       {},
       [&](auto at) {
         expar::update_bias(ctx, make_view(as<std::int32_t>(at[0]), experts), {}, vector_at(at[1]));
       }},
      {"quantile_bias",
       {logits, valid, bias, {"target", access::written, experts * 4}},
       {},
       [&](auto at) {
         expar::quantile_bias(ctx, expar::only(valid_at(at[1]), logits_at(at[0])), vector_at(at[2]),
                              k, vector_at(at[3]));
       }},
      {"blend_bias",
       {{"sums", access::read, experts * 8}, moved},
       {},
       [&](auto at) {
         expar::blend_bias(ctx, make_view(as<double>(at[0]), experts), 1, .5, vector_at(at[1]));
       }},
      {"add_quantile_histogram",
       {logits, valid, bias, {"histogram", access::written, experts * bins * 4}},
       {},
       [&](auto at) {
         expar::add_quantile_histogram(ctx, expar::sigmoid_score{},
                                       expar::only(valid_at(at[1]), logits_at(at[0])),
                                       vector_at(at[2]), k, {-1, 1}, histogram_at(at[3]));
       }},
      {"histogram_bias",
       {{"histogram", access::read, experts * bins * 4}, moved},
       {},
       [&](auto at) {
         expar::histogram_bias(ctx, histogram_at(at[0]), k, {-1, 1}, vector_at(at[1]));
       }},
  });
}

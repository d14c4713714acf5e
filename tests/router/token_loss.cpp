// SPDX-License-Identifier: Apache-2.0
#include <expar/router/token_loss.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

namespace {

/// The sum of all logits.
struct sum_term {
  int experts;
  double value(float const* z, float*) const {
    double sum = 0;
    for (int e = 0; e < experts; ++e) sum += static_cast<double>(z[e]);
    return sum;
  }
  void gradient(float const*, float* g) const {
    for (int e = 0; e < experts; ++e) g[e] = 1;
  }
};

}  // namespace

TEST_CASE("a term is summed over valid tokens and its gradient added", "[router]") {
  router_test::matrix<float> z(200, 3, 1), d(200, 3);
  std::vector<std::uint8_t> valid(200, 1);
  for (int t = 0; t < 200; ++t) z.set(t, 0, t), z.set(t, 1, 1), z.set(t, 2, 0);
  valid[7] = 0;
  d.set(0, 0, 5);
  for (int threads : {1, 4}) {
    expar::host_context const ctx(threads);
    auto const marks = expar::detail::marks_of("test: valid", ctx, valid, 200);
    sum_term const term{3};
    REQUIRE(expar::detail::sum_over_tokens(ctx, z.view(), expar::detail::every_token{}, term) ==
            199 * 100 + 200);
    REQUIRE(expar::detail::sum_over_tokens(ctx, z.view(), marks, term) == 199 * 100 + 200 - 8);
    expar::detail::add_gradients(ctx, z.view(), marks, term, d.view());
  }
  REQUIRE(d.row(0) == router_test::row_type{7, 2, 2});
  REQUIRE(d.row(7) == router_test::row_type{0, 0, 0});
}

TEST_CASE("a mean over tokens divides by the valid ones, and never by 0", "[router]") {
  expar::host_context const ctx;
  std::vector<std::uint8_t> const some{1, 0, 2}, none{0, 0, 0};
  auto const count = [&](expar::index_t given, auto const& valid) {
    return expar::detail::token_count(given, 3,
                                      expar::detail::marks_of("test: valid", ctx, valid, 3));
  };
  REQUIRE(count(0, some) == 2);
  REQUIRE(count(0, none) == 1);
  REQUIRE(count(9, none) == 9);
  REQUIRE(expar::detail::token_count(0, 3, expar::detail::every_token{}) == 3);
}

TEST_CASE("a term may depend on the token", "[router]") {
  struct mine {
    int experts;
    sum_term at(expar::index_t token) const { return {token == 1 ? 0 : experts}; }
  };
  router_test::matrix<float> z(std::vector<router_test::row_type>{{1, 2}, {4, 8}, {16, 32}}),
      d(3, 2);
  expar::host_context const ctx;
  REQUIRE(expar::detail::sum_over_tokens(ctx, z.view(), expar::detail::every_token{}, mine{2}) ==
          51);
}

TEST_CASE("rows are summed over valid tokens, for any number of threads", "[router]") {
  for (int tokens : {0, 1, 100, 70000}) {
    std::vector<std::uint8_t> valid(static_cast<std::size_t>(tokens), 1);
    double expected = 0;
    for (int t = 0; t < tokens; ++t) {
      valid[static_cast<std::size_t>(t)] = t % 3 != 0;
      if (t % 3 != 0) expected += t;
    }
    for (int threads : {1, 3}) {
      expar::host_context const ctx(threads);
      auto const marks = expar::detail::marks_of("test: valid", ctx, valid, tokens);
      int const most = ctx.chunks(expar::detail::sum_blocks, 1);
      double sums[2] = {7, 7};
      expar::detail::sum_rows<double>(ctx, tokens, 2, 1, marks, sums,
                                      [&](int part, expar::index_t t, double* row) {
                                        row[0] = static_cast<double>(t);
                                        row[1] = part < most;
                                        row[2] = 9;
                                      });
      REQUIRE(sums[0] == expected);
      REQUIRE(sums[1] == static_cast<double>(std::count(valid.begin(), valid.end(), 1)));
    }
  }
}

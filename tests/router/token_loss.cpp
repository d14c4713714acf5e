// SPDX-License-Identifier: Apache-2.0
#include <expar/router/token_loss.hpp>

#include <utility>

#include "../support/catch.hpp"
#include "support.hpp"

using expar::only;

namespace {

/// The sum of all logits.
struct sum_term {
  int experts;
  float slope = 1;
  double value(float const* z, float*) const {
    double sum = 0;
    for (int e = 0; e < experts; ++e) sum += static_cast<double>(z[e]);
    return sum;
  }
  void gradient(float const*, float* g) const {
    for (int e = 0; e < experts; ++e) g[e] = slope;
  }
};

template <class Logits, class Term, class... DLogits>
double loss_of(expar::host_context const& ctx, Logits const& logits, Term const& term,
               DLogits&&... d_logits) {
  expar::detail::arguments a(ctx, "test");
  auto const z = a.masked("logits", logits);
  auto const dz = expar::detail::gradient_of_loss(a, z, d_logits...);
  return expar::detail::loss_of_tokens(ctx, z, term, dz);
}

}  // namespace

TEST_CASE("a term is summed over valid tokens and its gradient written, or added", "[router]") {
  router_test::matrix<float> z(200, 3, 1), d(200, 3), e(200, 3);
  std::vector<std::uint8_t> valid(200, 1);
  for (int t = 0; t < 200; ++t) z.set(t, 0, t), z.set(t, 1, 1), z.set(t, 2, 0);
  valid[7] = 0;
  d.set(0, 0, 5), d.set(7, 0, 5), e.set(7, 0, 5);
  for (int threads : {1, 4}) {
    expar::host_context const ctx(threads);
    REQUIRE(loss_of(ctx, z.view(), sum_term{3}) == 199 * 100 + 200);
    REQUIRE(loss_of(ctx, only(valid, z.view()), sum_term{3}) == 199 * 100 + 200 - 8);
    loss_of(ctx, only(valid, z.view()), sum_term{3}, expar::add_to(d.view()));
    loss_of(ctx, only(valid, z.view()), sum_term{3}, e.view());
  }
  REQUIRE(d.row(0) == router_test::row_type{7, 2, 2});
  REQUIRE(d.row(7) == router_test::row_type{5, 0, 0});
  REQUIRE(e.row(0) == router_test::row_type{1, 1, 1});
  REQUIRE(e.row(7) == router_test::row_type{0, 0, 0});
}

TEST_CASE("what is added to a narrow gradient is rounded once", "[router]") {
  router_test::matrix<float> z(1, 2);
  router_test::matrix<expar::bfloat16> d(1, 2);
  d.set(0, 0, 256), d.set(0, 1, -256);
  loss_of(expar::host_context(), z.view(), sum_term{2, 1.01f}, expar::add_to(d.view()));
  REQUIRE(d.row(0) == router_test::row_type{258, -255});  // 257.01 and -254.99
}

TEST_CASE("a mean over tokens divides by the valid ones, and never by 0", "[router]") {
  expar::host_context const ctx;
  std::vector<std::uint8_t> const some{1, 0, 2}, none{0, 0, 0};
  router_test::matrix<float> z(3, 1);
  auto const count = [&](expar::index_t given, auto const& logits) {
    expar::detail::arguments a(ctx, "test");
    return expar::detail::token_count(given, a.masked("logits", logits));
  };
  REQUIRE(count(0, only(some, z.view())) == 2);
  REQUIRE(count(0, only(none, z.view())) == 1);
  REQUIRE(count(9, only(none, z.view())) == 9);
  REQUIRE(count(0, z.view()) == 3);
}

TEST_CASE("a term may depend on the token", "[router]") {
  struct mine {
    int experts;
    sum_term at(expar::index_t token) const { return {token == 1 ? 0 : experts}; }
  };
  router_test::matrix<float> z(std::vector<router_test::row_type>{{1, 2}, {4, 8}, {16, 32}});
  REQUIRE(loss_of(expar::host_context(), z.view(), mine{2}) == 51);
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
      auto const marks =
          expar::detail::as_marks(expar::make_view(std::as_const(valid).data(), tokens));
      int const most = ctx.chunks(expar::detail::sum_blocks, 1);
      double sums[2] = {7, 7};
      expar::detail::sum_rows<double>(ctx, tokens, 1, marks, expar::make_view(sums, 2),
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

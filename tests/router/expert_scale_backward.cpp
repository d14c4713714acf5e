// SPDX-License-Identifier: Apache-2.0
#include <expar/router/expert_scale_backward.hpp>

#include <expar/router/models.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::matrix;

namespace {

struct problem {
  static constexpr int tokens = 600, experts = 12, k = 3;
  matrix<double> logits{tokens, experts, 2}, dw{tokens, k, 1};
  std::vector<double> factors = std::vector<double>(experts);
  expar::routes<double> routes{tokens, k};

  auto router() const {
    return expar::models::gemma_4({experts, k},
                                  expar::expert_scale{expar::make_view(factors.data(), experts)});
  }
  problem() {
    router_test::random rng(3);
    for (int t = 0; t < tokens; ++t) {
      for (int e = 0; e < experts; ++e)
        logits.at(t, e) = rng.chance(.1) ? -router_test::inf : rng.normal();
      for (int j = 0; j < k; ++j) dw.at(t, j) = rng.normal();
    }
    for (double& f : factors) f = rng.chance(.2) ? 0 : rng.normal();
    expar::route(expar::host_context(), router(), logits.view(), routes);
    for (int t = 0; t < tokens; t += 7) routes.ids(t, 1) = -1;
  }
};

}  // namespace

TEST_CASE("factors of experts get their gradient", "[router]") {
  problem p;
  std::vector<double> got(problem::experts, 77), threads(problem::experts);
  expar::expert_scale_backward(expar::host_context(), p.router(), p.logits.view(), p.routes,
                               p.dw.view(), got);
  expar::expert_scale_backward(expar::host_context(3), p.router(), p.logits.view(), p.routes,
                               p.dw.view(), threads);
  REQUIRE(got == threads);
  // The weights are linear in the factors: the sum of exp(z) / (sum of the selected) by definition.
  std::vector<double> expected(problem::experts, 0);
  for (int t = 0; t < problem::tokens; ++t) {
    double sum = 0;
    for (int j = 0; j < problem::k; ++j)
      if (auto const e = p.routes.ids(t, j); e >= 0) sum += std::exp(p.logits.at(t, e));
    for (int j = 0; j < problem::k; ++j)
      if (auto const e = p.routes.ids(t, j); e >= 0)
        expected[static_cast<std::size_t>(e)] += p.dw.at(t, j) * std::exp(p.logits.at(t, e)) / sum;
  }
  for (std::size_t e = 0; e < expected.size(); ++e) {
    CAPTURE(e);
    REQUIRE_THAT(got[e], WithinAbs(expected[e], 1e-11));
  }
}

TEST_CASE("factors get a gradient of 0 without tokens", "[router]") {
  problem p;
  matrix<double> none(0, problem::experts), no_dw(0, problem::k);
  expar::routes<double> no_routes(0, problem::k);
  std::vector<float> got(problem::experts, 77);
  expar::expert_scale_backward(expar::host_context(), p.router(), none.view(), no_routes,
                               no_dw.view(), got);
  REQUIRE(got == std::vector<float>(problem::experts, 0));
}

TEST_CASE("what does not fit the factors is said, and nothing written", "[router]") {
  problem p;
  std::vector<double> few(5, 77), enough(problem::experts, 77);
  auto const sentence = [&](auto& to) {
    return router_test::sentence_of([&] {
      expar::expert_scale_backward(expar::host_context(), p.router(), p.logits.view(), p.routes,
                                   p.dw.view(), to);
    });
  };
  REQUIRE(sentence(few) ==
          "expar: expert_scale_backward: d_factors has extent 5 in dimension 0, but the router's "
          "number of experts is 12");
  p.routes.ids(4, 2) = 12;
  REQUIRE(sentence(enough) ==
          "expar: expert_scale_backward: ids(4, 2) is 12; an expert id is -1 (no expert) or 0 to "
          "11");
  REQUIRE(enough == std::vector<double>(problem::experts, 77));
}

TEST_CASE("the gradient of factors is added where the caller says so", "[router]") {
  problem p;
  std::vector<double> gradient(problem::experts), sum(2 * problem::experts, 3);
  auto const backward = [&](auto&& to) {
    expar::expert_scale_backward(expar::host_context(), p.router(), p.logits.view(), p.routes,
                                 p.dw.view(), to);
  };
  backward(gradient);
  backward(expar::add_to(expar::make_strided_view(sum.data(), problem::experts, 2)));
  for (std::size_t e = 0; e < gradient.size(); ++e) {
    REQUIRE(sum[2 * e] == 3 + gradient[e]);
    REQUIRE(sum[2 * e + 1] == 3);
  }
}

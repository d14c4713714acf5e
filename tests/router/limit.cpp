// SPDX-License-Identifier: Apache-2.0
#include <expar/router/limit.hpp>

#include <expar/router/key.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

namespace {

/// What group_limited leaves, by its definition: sort each run, sum, sort the runs.
std::vector<double> limited(std::vector<double> const& z, std::vector<double> keys, int groups,
                            int top_groups, int best_of, double other) {
  auto const size = static_cast<std::ptrdiff_t>(keys.size()) / groups;
  for (std::size_t e = 0; e < keys.size(); ++e)
    if (!(z[e] > -router_test::inf) || std::isnan(keys[e])) keys[e] = -router_test::inf;
  std::vector<std::pair<double, int>> sums;
  for (int g = 0; g < groups; ++g) {
    std::vector<double> run(keys.begin() + g * size, keys.begin() + (g + 1) * size);
    std::sort(run.rbegin(), run.rend());
    double sum = run[0];
    for (int i = 1; i < best_of && run[static_cast<std::size_t>(i)] > -router_test::inf; ++i)
      sum += run[static_cast<std::size_t>(i)];
    sums.emplace_back(-sum, g);
  }
  std::sort(sums.begin(), sums.end());
  for (int i = top_groups; i < groups; ++i) {
    auto const first = keys.begin() + sums[static_cast<std::size_t>(i)].second * size;
    std::replace_if(
        first, first + size, [](double key) { return key > -router_test::inf; }, other);
  }
  return keys;
}

}  // namespace

TEST_CASE("the best groups keep their keys, the others have none", "[router]") {
  router_test::random rng(21);
  for (int round = 0; round < 600; ++round) {
    int const groups = static_cast<int>(rng.integer(1, 9)),
              size = static_cast<int>(rng.integer(1, 7));
    int const top_groups = static_cast<int>(rng.integer(1, groups));
    int const best_of = static_cast<int>(rng.integer(1, size < 3 ? size : 3));
    auto const z = router_test::random_row(rng, groups * size);
    std::vector<double> bias;
    for (std::size_t e = 0; e < z.size(); ++e)
      bias.push_back(rng.chance(.1) ? router_test::qnan : static_cast<double>(rng.integer(-2, 2)));
    bool const zero = rng.chance(.5);
    expar::group_limited const limit{groups, top_groups, best_of, zero};
    std::vector<double> s(z.size()), plain(z.size());
    expar::sigmoid_score{}(z.data(), s.data(), groups * size);
    expar::biased_key{}(z.data(), s.data(), bias.data(), plain.data(), groups * size);
    auto const expected =
        limited(z, plain, groups, top_groups, best_of, zero ? 0 : -router_test::inf);
    std::vector<double> keys = plain,
                        scratch(static_cast<std::size_t>(limit.scratch(groups * size, 1)) + 1, 77);
    for (std::size_t e = 0; e < z.size(); ++e)
      if (!(z[e] > -router_test::inf)) keys[e] = -router_test::inf;
    limit.limit(keys.data(), groups * size, scratch.data());
    REQUIRE(scratch.back() == 77);
    CAPTURE(round, groups, size, top_groups, best_of);
    for (std::size_t e = 0; e < z.size(); ++e)
      if (!std::isnan(keys[e]) || !std::isnan(expected[e]))
        REQUIRE((keys[e] == expected[e] || (std::isnan(plain[e]) && std::isnan(keys[e]))));
  }
}

TEST_CASE("of groups with equal sums the lower one stays", "[router]") {
  double const none = -router_test::inf;
  std::vector<double> keys{1, 1, 1, 1, 2, 0}, sums(3);
  expar::group_limited{3, 2}.limit(keys.data(), 6, sums.data());
  REQUIRE(keys == std::vector<double>{1, 1, 1, 1, none, none});
}

TEST_CASE("experts of other groups may have a key of 0", "[router]") {
  double const none = -router_test::inf;
  std::vector<double> keys{-1, -1.5, -2, none, router_test::qnan, -3}, sums(3);
  expar::group_limited{3, 1, 2, true}.limit(keys.data(), 6, sums.data());
  REQUIRE(keys[5] == 0);
  REQUIRE(expar::detail::masked(keys[4]));
  keys[4] = none;
  REQUIRE(keys == std::vector<double>{0, 0, -2, none, none, 0});
}

TEST_CASE("groups have room for k", "[router]") {
  auto const sentence = [](int top_k, bool zero_others = false) {
    return router_test::sentence_of([&] {
      expar::group_limited{4, 2, 1, zero_others}.validate("route", 8, top_k, 1);
    });
  };
  REQUIRE(sentence(8, true) == "nothing was thrown");
  REQUIRE(sentence(4) == "nothing was thrown");
  REQUIRE(sentence(5) == "expar: route: top_k is 5, but 2 groups have only 4 experts");
}

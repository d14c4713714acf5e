// SPDX-License-Identifier: Apache-2.0
#include <expar/router/key.hpp>

#include <expar/router/router.hpp>

#include <array>

#include "../support/catch.hpp"
#include "support.hpp"

TEST_CASE("the key is the score, or the score and a bias", "[router]") {
  double const z[] = {1, 2, 3}, s[] = {.1, .2, .7}, bias[] = {.5, -1, 0};
  double keys[3];
  expar::score_key{}(z, s, static_cast<double const*>(nullptr), keys, 3);
  for (int e = 0; e < 3; ++e) REQUIRE(keys[e] == s[e]);
  expar::biased_key{}(z, s, bias, keys, 3);
  for (int e = 0; e < 3; ++e) REQUIRE(keys[e] == s[e] + bias[e]);
  expar::biased_key{}(z, s, static_cast<double const*>(nullptr), keys, 3);
  for (int e = 0; e < 3; ++e) REQUIRE(keys[e] == s[e]);
  STATIC_REQUIRE_FALSE(expar::score_key::takes_bias);
  STATIC_REQUIRE(expar::biased_key::takes_bias);
  STATIC_REQUIRE(expar::key_policy<expar::biased_key>);
  STATIC_REQUIRE_FALSE(expar::key_policy<int>);
}

namespace {

/// keys [experts] of group_limited by its definition: sort each run, sum, sort the runs.
std::vector<double> limited(std::vector<double> const& z, std::vector<double> keys, int groups,
                            int top_groups, int best_of) {
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
  for (int i = top_groups; i < groups; ++i)
    std::fill_n(keys.begin() + sums[static_cast<std::size_t>(i)].second * size, size,
                -router_test::inf);
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
    expar::group_limited const key{expar::biased_key{}, groups, top_groups, best_of};
    std::vector<double> s(z.size()), plain(z.size());
    expar::sigmoid_score{}(z.data(), s.data(), groups * size);
    std::vector<double> keys(z.size() + static_cast<std::size_t>(key.scratch()) + 1, 77);
    key(z.data(), s.data(), bias.data(), keys.data(), groups * size);
    REQUIRE(keys.back() == 77);
    expar::biased_key{}(z.data(), s.data(), bias.data(), plain.data(), groups * size);
    auto const expected = limited(z, plain, groups, top_groups, best_of);
    CAPTURE(round, groups, size, top_groups, best_of);
    for (std::size_t e = 0; e < z.size(); ++e)
      if (!std::isnan(keys[e]) || !std::isnan(expected[e]))
        REQUIRE((keys[e] == expected[e] || (std::isnan(plain[e]) && std::isnan(keys[e]))));
  }
}

TEST_CASE("groups of groups have room for all their sums", "[router]") {
  expar::group_limited const fine{expar::score_key{}, 16, 8, 1};
  expar::group_limited const both{fine, 2, 1, 1};
  REQUIRE(both.scratch() == 16);
  expar::router const r({32, 1}, expar::sigmoid_score{}, both);
  std::vector<float> z(32, 0.f), scratch(static_cast<std::size_t>(r.forward_scratch()));
  z[21] = 3;
  std::int32_t id = -1;
  float w = 0;
  r.forward(static_cast<float const*>(z.data()), static_cast<float const*>(nullptr), scratch.data(),
            &id, &w);
  REQUIRE(id == 21);
}

TEST_CASE("of groups with equal sums the lower one stays", "[router]") {
  double const z[] = {1, 1, 1, 1, 2, 0}, none = -router_test::inf;
  std::array<double, 9> keys{};
  expar::group_limited const key{expar::score_key{}, 3, 2};
  key(z, z, static_cast<double const*>(nullptr), keys.data(), 6);
  REQUIRE(std::vector<double>(keys.begin(), keys.begin() + 6) ==
          std::vector<double>{1, 1, 1, 1, none, none});
  STATIC_REQUIRE(decltype(key)::takes_bias == false);
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/weigh_lanes.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../../support/catch.hpp"
#include "../support.hpp"

namespace {

/// In every lane what the policy makes of its token, in the same bits.
template <class A, class Step>
void require_lanes(Step const& step, std::uint64_t seed) {
  constexpr int lanes = expar::detail::pack<A>::lanes;
  router_test::random rng(seed);
  for (int round = 0; round < 200; ++round) {
    int const k = static_cast<int>(rng.integer(1, 12));
    bool const zeros = rng.chance(.2), infinite = rng.chance(.1);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(k * lanes));
    std::vector<A> w(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = rng.chance(.2) ? -1 : static_cast<std::int32_t>(rng.integer(0, 9));
      w[i] = ids[i] < 0 || zeros ? A(0) : static_cast<A>(rng.normal());
      if (ids[i] >= 0 && infinite && rng.chance(.3))
        w[i] = static_cast<A>(rng.chance(.5) ? router_test::inf : -router_test::inf);
    }
    auto const before = w;
    expar::detail::weigh_lanes(step, static_cast<std::int32_t const*>(ids.data()), w.data(), k);
    for (int l = 0; l < lanes; ++l) {
      std::vector<std::int32_t> id;
      std::vector<A> mine;
      for (int j = 0; j < k; ++j) {
        auto const at = static_cast<std::size_t>(j * lanes + l);
        id.push_back(ids[at]), mine.push_back(before[at]);
      }
      step(static_cast<std::int32_t const*>(id.data()), mine.data(), k);
      for (int j = 0; j < k; ++j) {
        auto const at = static_cast<std::size_t>(j * lanes + l);
        CAPTURE(round, k, l, j, w[at], mine[static_cast<std::size_t>(j)]);
        REQUIRE(std::memcmp(&w[at], &mine[static_cast<std::size_t>(j)], sizeof(A)) == 0);
      }
    }
  }
}

/// What softmax_weights makes of logits that descend.
void require_descending_softmax() {
  constexpr int lanes = expar::detail::pack<float>::lanes;
  router_test::random rng(3);
  for (int round = 0; round < 200; ++round) {
    int const k = static_cast<int>(rng.integer(1, 12));
    std::vector<float> w(static_cast<std::size_t>(k * lanes));
    std::vector<std::vector<float>> expected;
    for (int l = 0; l < lanes; ++l) {
      std::vector<float> mine;
      int const found = static_cast<int>(rng.integer(0, k));
      bool const infinite = rng.chance(.1);
      for (int j = 0; j < found; ++j)
        mine.push_back(static_cast<float>(infinite && rng.chance(.3) ? router_test::inf
                                          : rng.chance(.3) ? static_cast<double>(rng.integer(-1, 1))
                                                           : 40 * rng.normal()));
      std::sort(mine.rbegin(), mine.rend());
      std::vector<std::int32_t> ids(static_cast<std::size_t>(k), -1);
      std::fill_n(ids.begin(), found, 0);
      for (int j = 0; j < k; ++j)
        w[static_cast<std::size_t>(j * lanes + l)] =
            j < found ? mine[static_cast<std::size_t>(j)] : -expar::detail::infinity<float>;
      mine.resize(static_cast<std::size_t>(k));
      expar::softmax_weights{}(static_cast<std::int32_t const*>(ids.data()), mine.data(), k);
      expected.push_back(mine);
    }
    expar::detail::descending_softmax(w.data(), k);
    for (int l = 0; l < lanes; ++l)
      for (int j = 0; j < k; ++j) {
        float const mine = expected[static_cast<std::size_t>(l)][static_cast<std::size_t>(j)];
        CAPTURE(round, k, l, j);
        REQUIRE(std::memcmp(&w[static_cast<std::size_t>(j * lanes + l)], &mine, sizeof mine) == 0);
      }
  }
}

template <class A>
void require_all(std::uint64_t seed) {
  using expar::renormalize;
  require_lanes<A>(renormalize{}, seed);
  require_lanes<A>(renormalize{.epsilon = 1e-3}, seed);
  require_lanes<A>(renormalize{.epsilon = .5, .kind = renormalize::guard::at_least}, seed);
  require_lanes<A>(renormalize{.single = false}, seed);
  require_lanes<A>(expar::scale{-2.5}, seed);
  require_lanes<A>(expar::softmax_weights{}, seed);
  require_lanes<A>(expar::sigmoid_weights{}, seed);
  require_lanes<A>(expar::normalize{2}, seed);
  require_lanes<A>(expar::zero_weights_of{2, 5}, seed);
}

}  // namespace

TEST_CASE("weights of all lanes are those of each", "[router]") {
  require_all<float>(1);
  require_all<double>(2);
}

TEST_CASE("the softmax of descending logits is that of each token", "[router]") {
  require_descending_softmax();
}

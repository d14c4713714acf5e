// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/score_lanes.hpp>

#include <cstring>

#include "../../support/catch.hpp"
#include "../support.hpp"

namespace {

/// In every lane what the policies make of its logit, in the same bits.
template <class A, class Score, class Key>
void require_lanes(Score const& score, Key const& key, std::uint64_t seed) {
  using p = expar::detail::pack<A>;
  router_test::random rng(seed);
  for (int round = 0; round < 500; ++round) {
    bool const infinite = rng.chance(.2);
    A z[p::lanes], most[p::lanes], terms[p::lanes], keys[p::lanes];
    for (int l = 0; l < p::lanes; ++l) {
      z[l] = static_cast<A>(rng.chance(.1) ? 0 : 20 * rng.normal());
      most[l] = z[l] + static_cast<A>(rng.chance(.3) ? 0 : rng.uniform(0, 100));
      if (infinite && rng.chance(.3)) most[l] = static_cast<A>(router_test::inf);
      if (infinite && rng.chance(.1)) z[l] = most[l] = static_cast<A>(router_test::inf);
    }
    A const bias = static_cast<A>(rng.normal());
    auto const s = expar::detail::term_of(score, p::load(z), p::load(most), !infinite);
    s.store(terms);
    expar::detail::key_of(key, p::load(z), s, bias).store(keys);
    for (int l = 0; l < p::lanes; ++l) {
      A const term = score.term(z[l], most[l]), made = key.of(z[l], term, bias);
      CAPTURE(round, l, z[l], most[l], terms[l], term, keys[l], made);
      REQUIRE(std::memcmp(&terms[l], &term, sizeof term) == 0);
      REQUIRE(std::memcmp(&keys[l], &made, sizeof made) == 0);
    }
  }
}

template <class A>
void require_all(std::uint64_t seed) {
  require_lanes<A>(expar::logit_score{}, expar::score_key{}, seed);
  require_lanes<A>(expar::softmax_score{}, expar::biased_key{}, seed);
  require_lanes<A>(expar::sigmoid_score{}, expar::biased_key{}, seed);
  require_lanes<A>(expar::relu_score{}, expar::biased_logit_key{}, seed);
}

}  // namespace

TEST_CASE("scores and keys of all lanes are those of each", "[router]") {
  require_all<float>(1);
  require_all<double>(2);
}

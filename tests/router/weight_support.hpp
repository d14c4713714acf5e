// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/router.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

// Weight policies alone, as a router has them.

namespace weight_test {

using Catch::Matchers::WithinAbs;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

/// A router of these weight policies, for k choices.
template <class... Steps>
auto chain_of(std::size_t k, Steps... steps) {
  return expar::router({64, static_cast<int>(k)}, expar::logit_score{}, steps...);
}
template <class... Steps>
row_type weigh(ids_type const& ids, row_type w, Steps... steps) {
  chain_of(w.size(), steps...).weigh(ids.data(), w.data());
  return w;
}

/// The adjoint of the steps agrees with central differences.
template <class... Steps>
void compare_with_differences(Steps... steps) {
  router_test::random rng(4);
  for (int round = 0; round < 200; ++round) {
    int const k = static_cast<int>(rng.integer(1, 8));
    ids_type ids;
    row_type in, d;
    for (int j = 0; j < k; ++j) {
      ids.push_back(rng.chance(.2) ? -1 : j);
      in.push_back(ids.back() < 0 ? 0 : rng.uniform(.05, 1));
      d.push_back(rng.normal());
    }
    auto const loss = [&](row_type const& at) {
      row_type const w = weigh(ids, at, steps...);
      return std::inner_product(w.begin(), w.end(), d.begin(), 0.);
    };
    auto const chain = chain_of(in.size(), steps...);
    row_type values((sizeof...(steps) + 1) * in.size()), got = d;
    std::copy(in.begin(), in.end(), values.begin());
    for (std::size_t j = 0; j < got.size(); ++j)
      if (ids[j] < 0) got[j] = 0;
    chain.weigh_vjp(ids.data(), values.data(), got.data());
    for (std::size_t j = 0; j < in.size(); ++j) {
      row_type up = in, down = in;
      up[j] += 1e-6, down[j] -= 1e-6;
      double const expected = ids[j] < 0 ? 0 : (loss(up) - loss(down)) / 2e-6;
      REQUIRE_THAT(got[j], WithinAbs(expected, 1e-7));
    }
  }
}

}  // namespace weight_test

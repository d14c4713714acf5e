// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/expert_ids.hpp>

#include "../router/support.hpp"
#include "../support/catch.hpp"

TEST_CASE("expert ids are -1 or an expert, where a token is valid", "") {
  std::vector<std::int32_t> data{0, 2, 9, -1, -7, 3};
  auto const ids = expar::make_view(data.data(), 2, 2, 3);
  auto const refused = [&](auto const&... valid) {
    return router_test::sentence_of(
        [&] { expar::detail::check_expert_ids("f: ids", ids, 3, valid...); });
  };
  CHECK(refused() == "expar: f: ids(1, 1) is -7; an expert id is -1 (no expert) or 0 to 2");
  CHECK(refused([](expar::index_t t) { return t == 0; }) == "nothing was thrown");
  data[1] = 3;
  CHECK(refused() == "expar: f: ids(0, 1) is 3; an expert id is -1 (no expert) or 0 to 2");
}

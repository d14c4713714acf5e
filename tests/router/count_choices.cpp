// SPDX-License-Identifier: Apache-2.0
#include <expar/router/count_choices.hpp>

#include "../support/catch.hpp"
#include "../support/sparse.hpp"
#include "support.hpp"

using expar::only;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("leading choices are counted per expert", "[router]") {
  std::vector<std::int32_t> ids{0, 1, 2, 1, 0, 3, -1, 3, 3};
  auto const view = expar::make_view(ids.data(), 3, 3);
  std::vector<expar::index_t> counts(4, 77);
  expar::count_choices(ctx, view, 1, counts);
  REQUIRE(counts == std::vector<expar::index_t>{1, 1, 0, 0});
  expar::count_choices(ctx, view, 3, counts);
  REQUIRE(counts == std::vector<expar::index_t>{2, 2, 1, 3});
  std::vector<std::int32_t> narrow_counts(4);
  std::vector<std::uint8_t> const valid{1, 0, 1};
  expar::count_choices(ctx, only(valid, view), 2, narrow_counts);
  REQUIRE(narrow_counts == std::vector<std::int32_t>{1, 1, 0, 1});
}

TEST_CASE("counts of random routes agree with the definition", "[router]") {
  router_test::random rng(11);
  expar::host_context const threads(4);
  for (int round = 0; round < 60; ++round) {
    int const tokens = static_cast<int>(rng.chance(.1) ? 20000 : rng.integer(0, 300));
    int const k = static_cast<int>(rng.integer(1, 6)),
              experts = static_cast<int>(rng.integer(1, 50));
    int const choices = static_cast<int>(rng.integer(1, k)), pitch = k + 2;
    std::vector<std::int32_t> ids;
    for (int i = 0; i < tokens * pitch; ++i)
      ids.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
    std::vector<expar::index_t> expected(static_cast<std::size_t>(experts)), got = expected;
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < choices; ++j)
        if (auto const e = ids[static_cast<std::size_t>(t * pitch + j)]; e >= 0)
          ++expected[static_cast<std::size_t>(e)];
    expar::count_choices(rng.chance(.5) ? threads : ctx,
                         expar::make_view(ids.data(), tokens, k, pitch), choices, got);
    REQUIRE(got == expected);
  }
}

TEST_CASE("variable routes are counted per expert", "[router]") {
  router_test::random rng(15);
  expar::host_context const threads(3);
  for (int round = 0; round < 60; ++round) {
    int const tokens = static_cast<int>(rng.chance(.1) ? 20000 : rng.integer(0, 50));
    int const experts = static_cast<int>(rng.integer(1, 20));
    std::vector<std::int64_t> offsets{0};
    std::vector<std::int32_t> ids;
    std::vector<std::uint8_t> valid;
    std::vector<expar::index_t> all(static_cast<std::size_t>(experts)), marked(all), got(all);
    for (int t = 0; t < tokens; ++t) {
      valid.push_back(rng.chance(.7));
      for (int n = static_cast<int>(rng.integer(0, experts)); n > 0; --n) {
        ids.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
        if (ids.back() < 0) continue;
        ++all[static_cast<std::size_t>(ids.back())];
        marked[static_cast<std::size_t>(ids.back())] += valid.back();
      }
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
    }
    expar::host_context const& on = rng.chance(.5) ? threads : ctx;
    expar::count_choices(on, offsets, ids, got);
    REQUIRE(got == all);
    expar::count_choices(on, offsets, only(valid, ids), got);
    REQUIRE(got == marked);
  }
}

TEST_CASE("ids are of any signed integer type, and vectors stand in any stride", "[router]") {
  std::vector<std::int64_t> const ids{0, 1, 2, 1, 0, 3};
  std::vector<std::int16_t> const narrow{0, 9, 1, 9, 2, 9, 1, 9, 0, 9, 3, 9};
  std::vector<int> const offsets{0, -1, 2, -1, 6, -1}, counted{2, 2, 1, 1};
  std::vector<int> memory(12, 7), counts(4);
  expar::count_choices(ctx, expar::make_view(ids.data(), 2, 3), 3, counts);
  REQUIRE(counts == counted);
  expar::count_choices(ctx, expar::make_strided_view(offsets.data(), 3, 2),
                       expar::make_strided_view(narrow.data(), 6, 2),
                       expar::make_strided_view(memory.data(), 4, 3));
  REQUIRE(memory == std::vector<int>{2, 7, 7, 2, 7, 7, 1, 7, 7, 1, 7, 7});
}

TEST_CASE("counting refuses what does not fit", "[router]") {
  std::vector<std::int32_t> ids{0, 4, -1, 3};
  auto const view = expar::make_view(ids.data(), 2, 2);
  std::vector<std::int32_t> counts(4);
  std::vector<std::uint8_t> const valid{1};
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, view, 3, counts); }) ==
          "expar: count_choices: choices is 3; it is at least 1 and at most the 2 choices per "
          "token");
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, view, 2, counts); }) ==
          "expar: count_choices: ids(0, 1) is 4; an expert id is -1 (no expert) or 0 to 3");
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, only(valid, view), 2, counts); }) ==
          "expar: count_choices: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] {
            expar::count_choices(ctx, expar::make_view<std::int32_t>(nullptr, 2, 2), 2, counts);
          }) == "expar: count_choices: ids has 4 elements but its data is null");
  REQUIRE(sentence_of([&] {
            expar::count_choices(ctx, view, 2, expar::make_view<std::int32_t>(nullptr, 4));
          }) == "expar: count_choices: counts has 4 elements but its data is null");
  std::int32_t zero = 0;
  expar::index_t const many = expar::index_t{3} << 30;
  std::string const narrow =
      "expar: count_choices: a count may become 3221225472, more than an "
      "integer of 4 bytes holds";
  REQUIRE(sentence_of([&] {
            expar::count_choices(ctx, expar::tensor_view<std::int32_t, 2>{&zero, {many, 1}, {0, 1}},
                                 1, counts);
          }) == narrow);
  expar_test::sparse_memory const pages(many * 4);
  if (pages.data() != nullptr) {
    auto const* const zeros = static_cast<std::int32_t const*>(pages.data());
    REQUIRE(sentence_of([&] {
              expar::count_choices(ctx, std::vector<expar::index_t>{0, many},
                                   expar::make_view(zeros, many), counts);
            }) == narrow);
  }
  std::vector<int> const offsets{0, 1, 4}, down{0, 3, 1, 4}, none;
  std::vector<std::int32_t> five(5);
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, offsets, ids, counts); }) ==
          "expar: count_choices: ids(1) is 4; an expert id is -1 (no expert) or 0 to 3");
  std::vector<std::uint8_t> const first{1, 0};
  expar::count_choices(ctx, std::vector<int>{0, 1, 4}, only(first, ids), counts);
  REQUIRE(counts == std::vector<std::int32_t>{1, 0, 0, 0});
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, down, ids, five); }) ==
          "expar: count_choices: offsets(2) is 1; offsets ascend from 0 to the number of routes, "
          "4");
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, none, ids, five); }) ==
          "expar: count_choices: offsets has 0 entries; there is one more than tokens");
  REQUIRE(sentence_of([&] { expar::count_choices(ctx, offsets, only(valid, ids), five); }) ==
          "expar: count_choices: valid has extent 1 in dimension 0, but the number of tokens is 2");
}

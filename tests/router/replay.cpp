// SPDX-License-Identifier: Apache-2.0
#include <expar/router/replay.hpp>

#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

using ids_type = matrix<std::int32_t>;

ids_type random_ids(router_test::random& rng, int tokens, int k, int experts, int gap) {
  ids_type ids(tokens, k, gap);
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < k; ++j)
      ids.at(t, j) = static_cast<std::int32_t>(rng.integer(-1, experts - 1));
  return ids;
}

}  // namespace

TEST_CASE("a record takes as few bits as there are experts, and one more", "[router]") {
  REQUIRE(expar::record_bytes(1, 8) == 1);
  REQUIRE(expar::record_bytes(3, 4) == 1);
  REQUIRE(expar::record_bytes(4, 4) == 2);
  REQUIRE(expar::record_bytes(255, 8) == 8);
  REQUIRE(expar::record_bytes(256, 8) == 9);
  REQUIRE(expar::record_bytes(384, 8) == 9);
  REQUIRE(expar::record_bytes(2147483647, 1) == 4);
  REQUIRE(expar::record_bytes(64, 0) == 0);
  std::string const bound = "; they are at least 1 and at least 0";
  REQUIRE(sentence_of([] { (void)expar::record_bytes(-1, 8); }) ==
          "expar: record_bytes: experts is -1 and top_k is 8" + bound);
  REQUIRE(sentence_of([] { (void)expar::record_bytes(4, -1); }) ==
          "expar: record_bytes: experts is 4 and top_k is -1" + bound);
}

TEST_CASE("numbers follow one another from the lowest bit on", "[router]") {
  std::vector<std::int32_t> const ids{4, -1, 2};  // of 5 experts: 100, 101, 010
  std::vector<std::uint8_t> record(2, 255);
  expar::record_ids(ctx, expar::make_view(ids.data(), 1, 3), 5,
                    expar::make_view(record.data(), 1, 2));
  REQUIRE(record == std::vector<std::uint8_t>{0b10101100, 0b0});
}

TEST_CASE("a replay gives back what was recorded", "[router]") {
  router_test::random rng(121);
  int const sizes[] = {1, 2, 3, 7, 8, 255, 256, 1000, 65535, 65536, 2147483647};
  for (int const experts : sizes)
    for (int round = 0; round < 30; ++round) {
      int const tokens = static_cast<int>(rng.integer(0, 9)),
                k = static_cast<int>(rng.integer(0, 12));
      auto ids = random_ids(rng, tokens, k, experts, 2);
      if (tokens > 0 && k > 0) ids.at(0, 0) = experts - 1;
      matrix<std::uint8_t> record(tokens, expar::record_bytes(experts, k), 1);
      for (auto& byte : record.data) byte = 0xa5;
      expar::record_ids(ctx, ids.view(), experts, record.view());
      ids_type again(tokens, k, 1);
      for (auto& id : again.data) id = 77;
      expar::replay_ids(ctx, record.view(), experts, again.view());
      for (int t = 0; t < tokens; ++t) {
        for (int j = 0; j < k; ++j) REQUIRE(again.at(t, j) == ids.at(t, j));
        REQUIRE(again.at(t, k) == 77);
        REQUIRE(record.at(t, record.columns) == 0xa5);
      }
    }
}

TEST_CASE("a router that replays weighs by the logits at hand", "[router]") {
  matrix<float> z(std::vector<row_type>{{2, 1, 0}, {0, 1, 2}});
  matrix<float> later(std::vector<row_type>{{0, 1, 2}, {2, 1, 0}});
  expar::router const first({3, 2}, expar::softmax_score{});
  expar::routes<float> routes(2, 2), again(2, 2);
  expar::route(ctx, first, z.view(), routes);
  matrix<std::uint8_t> record(2, expar::record_bytes(3, 2));
  expar::record_ids(ctx, routes.ids, 3, record.view());
  ids_type ids(2, 2);
  expar::replay_ids(ctx, record.view(), 3, ids.view());
  expar::router const second({3, 2}, expar::softmax_score{}, expar::given_ids{ids.view()});
  expar::route(ctx, second, later.view(), again);
  for (int t = 0; t < 2; ++t)
    for (int j = 0; j < 2; ++j) REQUIRE(again.ids(t, j) == routes.ids(t, j));
  REQUIRE(again.weights(0, 0) < again.weights(0, 1));
}

TEST_CASE("the number of threads does not show in a record", "[router]") {
  router_test::random rng(122);
  auto ids = random_ids(rng, 5000, 8, 300, 0);
  expar::host_context const threads(3);
  auto const bytes = expar::record_bytes(300, 8);
  matrix<std::uint8_t> one(5000, bytes), three(5000, bytes);
  expar::record_ids(ctx, ids.view(), 300, one.view());
  expar::record_ids(threads, ids.view(), 300, three.view());
  REQUIRE(one.data == three.data);
  ids_type again(5000, 8);
  expar::replay_ids(threads, one.view(), 300, again.view());
  REQUIRE(again.data == ids.data);
}

TEST_CASE("a record refuses what does not fit", "[router]") {
  ids_type ids(2, 2);
  matrix<std::uint8_t> record(2, 1), wide(2, 2);
  ids.at(1, 1) = 5;
  record.at(0, 0) = 99;
  auto const write = [&](int experts, auto const& to) {
    return sentence_of([&] { expar::record_ids(ctx, ids.view(), experts, to); });
  };
  REQUIRE(write(5, record.view()) ==
          "expar: record_ids: ids(1, 1) is 5; an expert id is -1 (no expert) or 0 to 4");
  REQUIRE(record.at(0, 0) == 99);
  REQUIRE(write(0, record.view()) == "expar: record_ids: experts is 0; it is at least 1");
  REQUIRE(write(6, wide.view()) ==
          "expar: record_ids: record has extent 2 in dimension 1, but the number of bytes for a "
          "token is 1");
  REQUIRE(write(6, expar::make_view(record.data.data(), 1, 1)) ==
          "expar: record_ids: record has extent 1 in dimension 0, but the number of tokens is 2");
  record.at(0, 0) = 0b111000;
  REQUIRE(sentence_of([&] { expar::replay_ids(ctx, record.view(), 6, ids.view()); }) ==
          "expar: replay_ids: choice 1 of token 0 is recorded as 7; it is at most the number of "
          "experts, 6");
  REQUIRE(ids.at(1, 1) == 5);
  auto* const bytes = reinterpret_cast<std::uint8_t*>(ids.data.data());
  REQUIRE(write(6, expar::make_view(bytes, 2, 1)) ==
          "expar: record_ids: record overlaps ids in memory; the operation cannot work in place");
  REQUIRE(
      sentence_of([&] { expar::replay_ids(ctx, expar::make_view(bytes, 2, 1), 6, ids.view()); }) ==
      "expar: replay_ids: ids overlaps record in memory; the operation cannot work in place");
}

TEST_CASE("a record of ids of any signed integer type", "[router]") {
  router_test::random rng(123);
  auto ids = random_ids(rng, 20, 3, 9, 1);
  matrix<std::int64_t> wide(20, 3, 2), again(20, 3, 1);
  for (int t = 0; t < 20; ++t)
    for (int j = 0; j < 3; ++j) wide.at(t, j) = ids.at(t, j);
  matrix<std::uint8_t> one(20, expar::record_bytes(9, 3)), other(one);
  expar::record_ids(ctx, ids.view(), 9, one.view());
  expar::record_ids(ctx, wide.view(), 9, other.view());
  REQUIRE(one.data == other.data);
  expar::replay_ids(ctx, one.view(), 9, again.view());
  for (int t = 0; t < 20; ++t)
    for (int j = 0; j < 3; ++j) REQUIRE(again.at(t, j) == ids.at(t, j));
}

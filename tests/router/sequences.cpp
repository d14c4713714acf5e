// SPDX-License-Identifier: Apache-2.0
#include <expar/router/sequences.hpp>

#include "../support/catch.hpp"
#include "differences.hpp"
#include "support.hpp"

using expar::only;
using router_test::mask;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

/// The sequences of the tokens by the policy.
template <class Sequences>
std::vector<int> sequences_of(Sequences const& sequences, expar::index_t tokens) {
  expar::detail::argument_table a("test");
  sequences.validate(a, tokens);
  std::vector<int> of;
  for (expar::index_t t = 0; t < tokens; ++t)
    of.push_back(static_cast<int>(sequences.of(t, tokens)));
  return of;
}

}  // namespace

static_assert(expar::sequence_policy<expar::even_sequences>);
static_assert(expar::sequence_policy<expar::interleaved_sequences>);
static_assert(expar::sequence_policy<expar::packed_sequences<std::int32_t>>);
static_assert(!expar::sequence_policy<int>);

TEST_CASE("tokens fall into sequences", "[router]") {
  REQUIRE(sequences_of(expar::even_sequences{2}, 6) == std::vector<int>{0, 0, 0, 1, 1, 1});
  REQUIRE(sequences_of(expar::interleaved_sequences{2}, 6) == std::vector<int>{0, 1, 0, 1, 0, 1});
  std::vector<std::int64_t> offsets{0, 0, 2, 2, 5, 5};
  expar::packed_sequences const packed{expar::make_view(offsets.data(), 6)};
  REQUIRE(packed.count(5) == 5);
  REQUIRE(sequences_of(packed, 5) == std::vector<int>{1, 1, 3, 3, 3});
  REQUIRE(sequences_of(expar::even_sequences{4}, 0).empty());
  std::vector<std::int32_t> none{0};
  REQUIRE(expar::packed_sequences{expar::make_view(none.data(), 1)}.count(0) == 0);
}

TEST_CASE("choices and tokens are counted in each sequence for itself", "[router]") {
  router_test::random rng(314);
  for (int round = 0; round < 90; ++round) {
    int const count = static_cast<int>(rng.integer(1, 4)), kind = round % 3;
    std::vector<std::int64_t> offsets{0};
    for (int b = 0; b < count; ++b) offsets.push_back(offsets.back() + rng.integer(0, 5));
    int const tokens =
        kind == 2 ? static_cast<int>(offsets.back()) : count * static_cast<int>(rng.integer(0, 5));
    auto const sequence_of = [&](int t) {
      if (kind == 0) return t / (tokens / count);
      if (kind == 1) return t % count;
      int b = 0;
      while (offsets[static_cast<std::size_t>(b + 1)] <= t) ++b;
      return b;
    };
    int const experts = static_cast<int>(rng.integer(1, 6)),
              k = static_cast<int>(rng.integer(1, 4));
    int const choices = static_cast<int>(rng.integer(1, k));
    std::vector<std::int32_t> ids;
    for (int i = 0; i < tokens * k; ++i)
      ids.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
    mask const valid = router_test::random_mask(rng, tokens);
    std::vector<std::int32_t> expected(static_cast<std::size_t>(count * (experts + 1)), 0),
        got(expected.size(), 77), lengths(static_cast<std::size_t>(count), 0),
        got_lengths(lengths.size(), 77);
    for (int b = 0; b < count; ++b)  // the gap behind each row
      expected[static_cast<std::size_t>(b * (experts + 1) + experts)] = 77;
    for (int t = 0; t < tokens; ++t) {
      if (!valid[static_cast<std::size_t>(t)]) continue;
      ++lengths[static_cast<std::size_t>(sequence_of(t))];
      for (int j = 0; j < choices; ++j)
        if (auto const e = ids[static_cast<std::size_t>(t * k + j)]; e >= 0)
          ++expected[static_cast<std::size_t>(sequence_of(t) * (experts + 1) + e)];
    }
    auto const i = expar::make_view(ids.data(), tokens, k);
    auto const n = expar::make_view(got.data(), count, experts, experts + 1);
    auto const counted = [&](auto const& sequences) {
      expar::count_sequence_choices(ctx, sequences, only(valid, i), choices, n);
      expar::count_sequence_tokens(ctx, sequences, only(valid, tokens), got_lengths);
    };
    if (kind == 0) counted(expar::even_sequences{count});
    if (kind == 1) counted(expar::interleaved_sequences{count});
    if (kind == 2) counted(expar::packed_sequences{expar::make_view(offsets.data(), count + 1)});
    REQUIRE(got == expected);
    REQUIRE(got_lengths == lengths);
  }
}

TEST_CASE("offsets are of any integer type", "[router]") {
  std::vector<std::uint64_t> const wide{0, 1, 3};
  std::vector<std::uint32_t> const narrow{0, 1, 3};
  std::vector<int> lengths(2);
  expar::count_sequence_tokens(ctx, expar::packed_sequences{expar::make_view(wide.data(), 3)}, 3,
                               lengths);
  REQUIRE(lengths == std::vector<int>{1, 2});
  REQUIRE(sequences_of(expar::packed_sequences{expar::make_view(narrow.data(), 3)}, 3) ==
          std::vector<int>{0, 1, 1});
}

TEST_CASE("sequences: ids are of any signed integer type, and vectors stand in any stride",
          "[router]") {
  std::vector<int> const offsets{0, 7, 1, 7, 3};
  expar::packed_sequences const strided{expar::make_strided_view(offsets.data(), 3, 2)};
  REQUIRE(sequences_of(strided, 3) == std::vector<int>{0, 1, 1});
  std::vector<int> lengths(4, 77), counts(4);
  expar::count_sequence_tokens(ctx, strided, 3, expar::make_strided_view(lengths.data(), 2, 2));
  REQUIRE(lengths == std::vector<int>{1, 77, 2, 77});
  std::vector<std::int64_t> const ids{0, 1, 1};
  expar::count_sequence_choices(ctx, strided, expar::make_view(ids.data(), 3, 1), 1,
                                expar::make_view(counts.data(), 2, 2));
  REQUIRE(counts == std::vector<int>{1, 0, 0, 2});
}

TEST_CASE("counting in sequences refuses what does not fit", "[router]") {
  std::vector<int> counts(6);
  auto const n = expar::make_view(counts.data(), 2, 3),
             flat = expar::make_view(counts.data(), 3, 2);
  expar::even_sequences const two{2};
  std::vector<std::int32_t> ids{0, 3};
  auto const i = expar::make_view(ids.data(), 2, 1);
  REQUIRE(
      sentence_of([&] { expar::count_sequence_choices(ctx, two, i, 1, n); }) ==
      "expar: count_sequence_choices: ids(1, 0) is 3; an expert id is -1 (no expert) or 0 to 2");
  REQUIRE(sentence_of([&] { expar::count_sequence_choices(ctx, two, i, 2, n); }) ==
          "expar: count_sequence_choices: choices is 2; it is at least 1 and at most the 1 choices "
          "per token");
  REQUIRE(sentence_of([&] { expar::count_sequence_choices(ctx, two, i, 1, flat); }) ==
          "expar: count_sequence_choices: counts has extent 3 in dimension 0, but the number of "
          "sequences is 2");
  REQUIRE(sentence_of([&] { expar::count_sequence_tokens(ctx, two, 2, counts); }) ==
          "expar: count_sequence_tokens: lengths has extent 6 in dimension 0, but the number of "
          "sequences is 2");
  REQUIRE(sentence_of([&] { expar::count_sequence_tokens(ctx, two, -2, counts); }) ==
          "expar: count_sequence_tokens: tokens is -2; it is at least 0");
  expar::index_t const many = expar::index_t{3} << 30;
  std::string const narrow =
      ": a count may become 3221225472, more than an integer of 4 bytes holds";
  expar::tensor_view<std::int32_t, 2> const long_ids{ids.data(), {many, 1}, {0, 1}};
  REQUIRE(sentence_of([&] { expar::count_sequence_choices(ctx, two, long_ids, 1, n); }) ==
          "expar: count_sequence_choices" + narrow);
  std::vector<int> pair(2);
  REQUIRE(sentence_of([&] { expar::count_sequence_tokens(ctx, two, many, pair); }) ==
          "expar: count_sequence_tokens" + narrow);
  std::vector<int> offsets{0, 1, 2};
  expar::packed_sequences const packed{expar::make_view(offsets.data(), 3)};
  REQUIRE(sentence_of([&] {
            expar::count_sequence_tokens(ctx, packed, 2, expar::make_view(offsets.data(), 2));
          }) ==
          "expar: count_sequence_tokens: lengths overlaps offsets in memory; the operation cannot "
          "work in place");
}

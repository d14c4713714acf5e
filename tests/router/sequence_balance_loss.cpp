// SPDX-License-Identifier: Apache-2.0
#include <expar/balance/sum_counts.hpp>
#include <expar/comm/thread.hpp>
#include <expar/router/load_balance_loss.hpp>
#include <expar/router/normalized_score.hpp>
#include <expar/router/sequence_balance_loss.hpp>

#include "../support/catch.hpp"
#include "differences.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using expar::only;
using router_test::mask;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
expar::softmax_score const softmax;

using at_type = expar::index_t;

struct int_matrix {
  at_type rows, columns, pitch;
  std::vector<std::int64_t> data;
  int_matrix(at_type r, at_type c, at_type gap = 0)
      : rows(r), columns(c), pitch(c + gap), data(static_cast<std::size_t>(r * pitch)) {}
  std::int64_t& at(at_type r, at_type c) { return data[static_cast<std::size_t>(r * pitch + c)]; }
  expar::tensor_view<std::int64_t, 2> view() {
    return expar::make_view(data.data(), rows, columns, pitch);
  }
};

/// The sequence of each token, by hand.
std::vector<at_type> even(at_type sequences, at_type length, bool interleaved) {
  std::vector<at_type> of;
  for (at_type t = 0; t < sequences * length; ++t)
    of.push_back(interleaved ? t % sequences : t / length);
  return of;
}

double by_definition(matrix<double>& z, std::vector<at_type> const& of, int_matrix& counts,
                     std::vector<int> const& lengths, mask const& valid,
                     expar::sequence_balance_options const& o) {
  router_test::reference_router const scores;
  double loss = 0;
  double const among = static_cast<double>(o.sequences > 0 ? o.sequences : counts.rows);
  for (at_type b = 0; b < counts.rows; ++b) {
    double const length = std::max(1, lengths[static_cast<std::size_t>(b)]);
    double sum = 0;
    for (std::size_t t = 0; t < of.size(); ++t) {
      if (of[t] != b || valid[t] == 0) continue;
      row_type const p = scores.scores(z.row(static_cast<at_type>(t)));
      for (std::size_t e = 0; e < p.size(); ++e)
        sum += p[e] * static_cast<double>(counts.at(b, static_cast<at_type>(e)));
    }
    loss += o.coefficient * static_cast<double>(z.columns) * sum /
            (among * o.choices * length * length);
  }
  return loss;
}

template <class Sequences>
void agrees(router_test::random& rng, Sequences const& sequences, std::vector<at_type> const& of,
            at_type count) {
  int const tokens = static_cast<int>(of.size()), experts = static_cast<int>(rng.integer(1, 7));
  matrix<double> z = router_test::random_logits(rng, tokens, experts);
  int_matrix counts(count, experts, 1);
  for (auto& n : counts.data) n = rng.integer(0, 9);
  mask const valid = router_test::random_mask(rng, tokens);
  std::vector<int> lengths(static_cast<std::size_t>(count), 77);
  expar::count_sequence_tokens(ctx, sequences, only(valid, tokens), lengths);
  for (at_type b = 0; b < count; ++b) {
    int expected = 0;
    for (std::size_t t = 0; t < of.size(); ++t) expected += of[t] == b && valid[t];
    REQUIRE(lengths[static_cast<std::size_t>(b)] == expected);
    if (rng.chance(.3)) lengths[static_cast<std::size_t>(b)] = 11;  // with those of other ranks
  }
  expar::sequence_balance_options const o{rng.uniform(.1, 2), static_cast<int>(rng.integer(1, 3)),
                                          rng.chance(.5) ? 0 : 9};
  auto const loss = [&] { return by_definition(z, of, counts, lengths, valid, o); };
  REQUIRE_THAT(expar::sequence_balance_loss(ctx, softmax, sequences, only(valid, z.view()),
                                            counts.view(), lengths, o),
               WithinAbs(loss(), 1e-10));
  auto dz = router_test::gradient_of(tokens, experts, [&](auto&& d) {
    expar::sequence_balance_loss_backward(ctx, softmax, sequences, only(valid, z.view()),
                                          counts.view(), lengths, o, d);
  });
  router_test::require_gradient(z, dz, 0, loss, 1e-6);
}

}  // namespace

TEST_CASE("the loss of sequences agrees with its definition and with differences", "[router]") {
  router_test::random rng(310);
  for (int round = 0; round < 60; ++round) {
    at_type const count = rng.integer(1, 4), length = rng.integer(0, 4);
    agrees(rng, expar::even_sequences{count}, even(count, length, false), count);
    agrees(rng, expar::interleaved_sequences{count}, even(count, length, true), count);
    std::vector<std::int32_t> offsets{0};
    std::vector<at_type> of;
    for (at_type b = 0; b < count; ++b) {
      of.insert(of.end(), static_cast<std::size_t>(rng.integer(0, 4)), b);
      offsets.push_back(static_cast<std::int32_t>(of.size()));
    }
    agrees(rng, expar::packed_sequences{expar::make_view(offsets.data(), count + 1)}, of, count);
  }
}

TEST_CASE("the loss of sequences is the mean of their load balance losses", "[router]") {
  router_test::random rng(311);
  matrix<double> z(12, 5);
  for (double& x : z.data) x = rng.normal();
  std::vector<std::int64_t> counts;
  for (int i = 0; i < 15; ++i) counts.push_back(rng.integer(0, 4));
  expar::normalized_score const score{expar::sigmoid_score{}, 1e-20};
  double sum = 0;
  for (at_type b = 0; b < 3; ++b)
    sum += expar::load_balance_loss(ctx, score, expar::make_view(z.view().row(4 * b), 4, 5),
                                    expar::make_view(counts.data() + 5 * b, 5), {.choices = 2});
  REQUIRE_THAT(expar::sequence_balance_loss(ctx, score, expar::even_sequences{3}, z.view(),
                                            expar::make_view(counts.data(), 3, 5),
                                            std::vector<int>(3, 4), {.choices = 2}),
               WithinRel(sum / 3, 1e-13));
}

TEST_CASE("ranks that share a sequence share its loss", "[router]") {
  // Two sequences side by side, of which 3 and 4 tokens are valid; each rank has half of each.
  router_test::random rng(312);
  int const tokens = 10, experts = 3, k = 2;
  expar::interleaved_sequences const two{2};
  matrix<double> z(tokens, experts), whole_gradient(tokens, experts), gradient(tokens, experts);
  for (double& x : z.data) x = rng.normal();
  mask const valid{1, 1, 0, 1, 1, 0, 0, 1, 1, 1};
  std::vector<std::int32_t> ids;
  for (int i = 0; i < tokens * k; ++i)
    ids.push_back(static_cast<std::int32_t>(rng.integer(0, experts - 1)));
  expar::sequence_balance_options const o{.coefficient = .5, .choices = k};

  int_matrix counts(2, experts);
  std::vector<std::int64_t> lengths(2);
  auto const all = expar::make_view(ids.data(), tokens, k);
  expar::count_sequence_choices(ctx, two, only(valid, all), k, counts.view());
  expar::count_sequence_tokens(ctx, two, only(valid, tokens), lengths);
  REQUIRE(lengths == std::vector<std::int64_t>{3, 4});
  double const whole = expar::sequence_balance_loss(ctx, softmax, two, only(valid, z.view()),
                                                    counts.view(), lengths, o);
  expar::sequence_balance_loss_backward(ctx, softmax, two, only(valid, z.view()), counts.view(),
                                        lengths, o, whole_gradient.view());
  REQUIRE_THAT(whole,
               WithinRel(by_definition(z, even(2, 5, true), counts, {3, 4}, valid, o), 1e-13));

  std::vector<double> parts(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    int const first = comm.rank() == 0 ? 0 : 4, n = comm.rank() == 0 ? 4 : 6;
    auto const rows = [&](matrix<double>& m) {
      return expar::make_view(m.view().row(first), n, experts);
    };
    auto const marks = expar::make_view(valid.data() + first, n);
    int_matrix mine(2, experts);
    std::vector<std::int64_t> own(2);
    expar::count_sequence_choices(
        ctx, two, only(marks, expar::make_view(ids.data() + first * k, n, k)), k, mine.view());
    expar::count_sequence_tokens(ctx, two, only(marks, n), own);
    expar::sum_counts(ctx, comm, mine.data);
    expar::sum_counts(ctx, comm, own);
    parts[static_cast<std::size_t>(comm.rank())] =
        expar::sequence_balance_loss(ctx, softmax, two, only(marks, rows(z)), mine.view(), own, o);
    expar::sequence_balance_loss_backward(ctx, softmax, two, only(marks, rows(z)), mine.view(), own,
                                          o, rows(gradient));
  });
  REQUIRE_THAT(parts[0] + parts[1], WithinRel(whole, 1e-13));
  REQUIRE(gradient.data == whole_gradient.data);
}

TEST_CASE("the number of threads does not show in the loss of sequences", "[router]") {
  router_test::random rng(313);
  matrix<float> z(3330, 17), one(3330, 17), three(3330, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  std::vector<int> counts(17 * 10);
  for (int& n : counts) n = static_cast<int>(rng.integer(0, 99));
  auto const n = expar::make_view(counts.data(), 10, 17);
  expar::even_sequences const ten{10};
  std::vector<int> const lengths(10, 333);
  expar::host_context const threads(3);
  REQUIRE(
      expar::sequence_balance_loss(ctx, softmax, ten, z.view(), n, lengths, {.choices = 1}) ==
      expar::sequence_balance_loss(threads, softmax, ten, z.view(), n, lengths, {.choices = 1}));
  expar::sequence_balance_loss_backward(ctx, softmax, ten, z.view(), n, lengths, {.choices = 1},
                                        one.view());
  expar::sequence_balance_loss_backward(threads, softmax, ten, z.view(), n, lengths, {.choices = 1},
                                        three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("the loss of sequences refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, 2, 1}}), dz(2, 3);
  std::vector<int> counts(6);
  auto const n = expar::make_view(counts.data(), 2, 3),
             flat = expar::make_view(counts.data(), 3, 2);
  mask const valid{1};
  auto const loss = [&](auto const&... arguments) {
    return sentence_of([&] { (void)expar::sequence_balance_loss(ctx, softmax, arguments...); });
  };
  expar::even_sequences const two{2}, three{3};
  expar::sequence_balance_options const plain{.choices = 1};
  std::vector<int> const lengths(2, 1), short_lengths(1), three_lengths(3);
  using options = expar::sequence_balance_options;
  REQUIRE(
      loss(three, z.view(), n, lengths, plain) ==
      "expar: sequence_balance_loss: sequences is 3; it is at least 1 and divides the 2 tokens");
  REQUIRE(
      loss(expar::interleaved_sequences{0}, z.view(), n, lengths, plain) ==
      "expar: sequence_balance_loss: sequences is 0; it is at least 1 and divides the 2 tokens");
  REQUIRE(loss(two, z.view(), flat, lengths, plain) ==
          "expar: sequence_balance_loss: counts has extent 3 in dimension 0, but the number of "
          "sequences is 2");
  REQUIRE(loss(expar::even_sequences{1}, z.view(), expar::make_view(counts.data(), 1, 2), lengths,
               plain) ==
          "expar: sequence_balance_loss: counts has extent 2 in dimension 1, but the number of "
          "experts is 3");
  REQUIRE(loss(two, z.view(), n, lengths, options{}) ==
          "expar: sequence_balance_loss: choices is 0; options.choices must be given, and is at "
          "least 1");
  REQUIRE(loss(two, z.view(), n, short_lengths, plain) ==
          "expar: sequence_balance_loss: lengths has extent 1 in dimension 0, but the number of "
          "sequences is 2");
  REQUIRE(loss(two, z.view(), n, lengths, options{.choices = 1, .sequences = -1}) ==
          "expar: sequence_balance_loss: sequences is -1; it is at least 0");
  REQUIRE(loss(two, only(valid, z.view()), n, lengths, plain) ==
          "expar: sequence_balance_loss: valid has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  std::vector<int> down{0, 2, 1, 2}, short_of{0, 1, 1};
  REQUIRE(loss(expar::packed_sequences{expar::make_view(down.data(), 4)}, z.view(), n,
               three_lengths, plain) ==
          "expar: sequence_balance_loss: offsets(2) is 1; offsets ascend from 0 to the number of "
          "tokens, 2");
  REQUIRE(loss(expar::packed_sequences{expar::make_view(short_of.data(), 3)}, z.view(), n, lengths,
               plain) ==
          "expar: sequence_balance_loss: offsets(2) is 1; offsets ascend from 0 to the number of "
          "tokens, 2");
  REQUIRE(loss(expar::packed_sequences{expar::make_view(down.data(), 0)}, z.view(), n, lengths,
               plain) ==
          "expar: sequence_balance_loss: offsets has 0 entries; there is one more than sequences");
  REQUIRE(sentence_of([&] {
            expar::sequence_balance_loss_backward(ctx, softmax, two, z.view(), n, lengths, plain,
                                                  expar::make_view(dz.data.data(), 2, 2));
          }) ==
          "expar: sequence_balance_loss_backward: d_logits has extent 2 in dimension 1, but the "
          "number of experts is 3");
}

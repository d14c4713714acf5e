// SPDX-License-Identifier: Apache-2.0
#include <expar/router/device_balance_loss.hpp>

#include <set>

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
using ids_type = std::vector<std::int32_t>;
using counts_type = std::vector<expar::index_t>;

struct problem {
  int tokens, experts, devices, k;
  matrix<double> z;
  ids_type ids, device_of;
  mask valid;
};

problem random_problem(router_test::random& rng) {
  int const tokens = static_cast<int>(rng.integer(0, 6)),
            devices = static_cast<int>(rng.integer(1, 3));
  int const experts = devices * static_cast<int>(rng.integer(1, 3));
  int const k = static_cast<int>(rng.integer(1, experts));
  problem p{tokens, experts, devices, k, router_test::random_logits(rng, tokens, experts),
            {},     {},      {}};
  for (int t = 0; t < tokens; ++t) {
    auto const mine = router_test::reference_router{}.ids(p.z.row(t), {}, k);
    p.ids.insert(p.ids.end(), mine.begin(), mine.end());
  }
  for (int e = 0; e < experts; ++e) p.device_of.push_back(e % devices);
  p.valid = router_test::random_mask(rng, tokens);
  return p;
}

}  // namespace

TEST_CASE("both losses over devices agree with the paper", "[router]") {
  router_test::random rng(360);
  for (int round = 0; round < 100; ++round) {
    problem p = random_problem(rng);
    double const n = router_test::valid_tokens(p.valid), e_count = p.experts, d_count = p.devices;
    int const most = static_cast<int>(rng.integer(1, 3));
    auto const ids = expar::make_view(p.ids.data(), p.tokens, p.k);
    counts_type counts(static_cast<std::size_t>(p.experts)),
        routes(static_cast<std::size_t>(p.devices)), tokens(routes);
    expar::count_choices(ctx, only(p.valid, ids), p.k, counts);
    expar::count_device_routes(ctx, counts, p.device_of, routes);
    expar::count_device_tokens(ctx, only(p.valid, ids), p.device_of, tokens);

    // f of the paper, by definition
    row_type f_device(routes.size(), 0), f_sent(routes.size(), 0);
    for (std::size_t t = 0; t < p.valid.size(); ++t) {
      std::set<std::int32_t> sent;
      for (int j = 0; p.valid[t] && j < p.k; ++j)
        if (auto const e = p.ids[t * static_cast<std::size_t>(p.k) + static_cast<std::size_t>(j)];
            e >= 0) {
          auto const d = p.device_of[static_cast<std::size_t>(e)];
          sent.insert(d);
          // mean over the device's experts of experts / (k T) * count
          f_device[static_cast<std::size_t>(d)] += e_count / (p.k * n) / (e_count / d_count);
        }
      for (auto d : sent) f_sent[static_cast<std::size_t>(d)] += d_count / (most * n);
    }
    auto const loss_of = [&](row_type const& f) {
      double sum = 0;
      for (int t = 0; t < p.tokens; ++t) {
        row_type const q = router_test::reference_router{}.scores(p.z.row(t));
        for (std::size_t e = 0; e < q.size(); ++e)
          if (p.valid[static_cast<std::size_t>(t)])
            sum += f[static_cast<std::size_t>(p.device_of[e])] * q[e] / n;
      }
      return 1.5 * sum;
    };
    auto const require = [&](counts_type const& got, int choices, row_type const& f) {
      expar::load_balance_options const o{.coefficient = 1.5, .choices = choices};
      REQUIRE_THAT(
          expar::device_balance_loss(ctx, softmax, only(p.valid, p.z.view()), p.device_of, got, o),
          WithinAbs(loss_of(f), 1e-11));
      auto dz = router_test::gradient_of(p.tokens, p.experts, [&](auto&& d) {
        expar::device_balance_loss_backward(ctx, softmax, only(p.valid, p.z.view()), p.device_of,
                                            got, o, d);
      });
      router_test::require_gradient(p.z, dz, 0, [&] { return loss_of(f); });
    };
    require(routes, p.k, f_device);
    require(tokens, most, f_sent);
  }
}

TEST_CASE("devices are counted by routes, and by tokens", "[router]") {
  ids_type const ids{0, 1, 2, 3, 0, -1, 1, 2}, device_of{0, 0, 1, 1};
  auto const i = expar::make_view(ids.data(), 4, 2);
  std::vector<std::int32_t> n(2, 77);
  expar::count_device_tokens(ctx, i, device_of, n);
  REQUIRE(n == std::vector<std::int32_t>{3, 2});
  expar::count_device_tokens(ctx, only(mask{1, 0, 1, 0}, i), device_of, n);
  REQUIRE(n == std::vector<std::int32_t>{2, 0});
  expar::count_device_routes(ctx, counts_type{2, 2, 2, 1}, device_of, n);
  REQUIRE(n == std::vector<std::int32_t>{4, 3});
  counts_type const large{2000000000, 2000000000, 1, 1};
  REQUIRE(sentence_of([&] { expar::count_device_routes(ctx, large, device_of, n); }) ==
          "expar: count_device_routes: a count may become 4000000000, more than an integer of 4 "
          "bytes holds");
  REQUIRE(n == std::vector<std::int32_t>{4, 3});
  counts_type wide(2);
  expar::count_device_routes(ctx, large, device_of, wide);
  REQUIRE(wide == counts_type{4000000000, 2});
  REQUIRE(sentence_of([&] {
            expar::count_device_routes(ctx, counts_type{1, -2, 0, 0}, device_of, n);
          }) ==
          "expar: count_device_routes: counts(1) is -2; counts are at least 0 and add up to "
          "at most 9223372036854775807");
  REQUIRE(sentence_of([&] {
            expar::count_device_tokens(ctx, expar::make_view(ids.data(), 4, -1), device_of, n);
          }) ==
          "expar: count_device_tokens: ids has extent -1 in dimension 1; an extent is at least 0");
  std::int32_t zero = 0;
  expar::tensor_view<std::int32_t, 2> const many{&zero, {expar::index_t{3} << 30, 1}, {0, 1}};
  REQUIRE(sentence_of([&] { expar::count_device_tokens(ctx, many, device_of, n); }) ==
          "expar: count_device_tokens: a count may become 3221225472, more than an integer of 4 "
          "bytes holds");
  std::vector<std::int64_t> const wide_ids(ids.begin(), ids.end());
  std::vector<std::int32_t> memory(4, 77);
  expar::count_device_tokens(ctx, expar::make_view(wide_ids.data(), 4, 2), device_of,
                             expar::make_strided_view(memory.data(), 2, 2));
  REQUIRE(memory == std::vector<std::int32_t>{3, 77, 2, 77});
}

TEST_CASE("a load that is uniform over devices costs the coefficient", "[router]") {
  router_test::random rng(361);
  matrix<double> z(6, 4);
  for (double& x : z.data) x = rng.normal();
  ids_type const device_of{1, 0, 0, 1};
  REQUIRE_THAT(expar::device_balance_loss(ctx, softmax, z.view(), device_of, counts_type{6, 6},
                                          {.coefficient = .05, .choices = 2}),
               WithinRel(.05, 1e-13));
}

TEST_CASE("the number of threads does not show in losses over devices", "[router]") {
  router_test::random rng(362);
  matrix<float> z(3333, 16), one(3333, 16), three(3333, 16);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  ids_type device_of;
  for (int e = 0; e < 16; ++e) device_of.push_back(e / 4);
  counts_type const n{100, 200, 30, 4};
  expar::host_context const threads(3);
  REQUIRE(expar::device_balance_loss(ctx, softmax, z.view(), device_of, n, {.choices = 1}) ==
          expar::device_balance_loss(threads, softmax, z.view(), device_of, n, {.choices = 1}));
  expar::device_balance_loss_backward(ctx, softmax, z.view(), device_of, n, {.choices = 1},
                                      one.view());
  expar::device_balance_loss_backward(threads, softmax, z.view(), device_of, n, {.choices = 1},
                                      three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("losses over devices refuse what does not fit", "[router]") {
  matrix<float> z(2, 4), dz(2, 3);
  ids_type const even{0, 0, 1, 1}, uneven{0, 0, 0, 1}, beyond{0, 0, 1, 2}, three{0, 0, 1},
      ids{0, 4};
  counts_type counts(2);
  auto const loss = [&](ids_type const& device_of, expar::load_balance_options const& o) {
    return sentence_of(
        [&] { (void)expar::device_balance_loss(ctx, softmax, z.view(), device_of, counts, o); });
  };
  REQUIRE(loss(uneven, {.choices = 1}) ==
          "expar: device_balance_loss: device 0 has 3 of the 4 experts, but there are 2 devices, "
          "each of which has as many");
  REQUIRE(loss(beyond, {.choices = 1}) ==
          "expar: device_balance_loss: device_of(3) is 2; devices are 0 to 1");
  REQUIRE(loss(three, {.choices = 1}) ==
          "expar: device_balance_loss: device_of has extent 3 in dimension 0, but the number of "
          "experts is 4");
  REQUIRE(
      loss(even, {.choices = 0}) ==
      "expar: device_balance_loss: choices is 0; options.choices must be given, and is at least 1");
  REQUIRE(sentence_of([&] {
            expar::device_balance_loss_backward(ctx, softmax, z.view(), even, counts,
                                                {.choices = 1}, dz.view());
          }) ==
          "expar: device_balance_loss_backward: d_logits has extent 3 in dimension 1, but the "
          "number of experts is 4");
  REQUIRE(sentence_of([&] {
            expar::count_device_tokens(ctx, expar::make_view(ids.data(), 2, 1), even, counts);
          }) ==
          "expar: count_device_tokens: ids(1, 0) is 4; an expert id is -1 (no expert) or 0 to 3");
  REQUIRE(sentence_of([&] { expar::count_device_routes(ctx, counts_type(3), even, counts); }) ==
          "expar: count_device_routes: device_of has extent 4 in dimension 0, but the number of "
          "experts is 3");
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/classical.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

namespace {

template <class Weigh>
rule softmax_then(int k, Weigh weigh) {
  return [=](row_type const& z, row_type const&) {
    ids_type const ids = top(z, k);
    return choice{ids, weigh(gather(softmax(z), ids))};
  };
}
row_type plain(row_type const& w) {
  return w;
}

std::vector<double> const numbers{.25, 1.5, -.75, 2, 0, 1, .125, -2};
expar::add_rows<double> noise() {
  return {expar::make_view(numbers.data(), 1, 8)};
}
row_type noisy(row_type z) {
  for (std::size_t e = 0; e < 8; ++e) z[e] += numbers[e];
  return z;
}
/// The largest, and then the largest of the noisy others.
ids_type second_by_noise(row_type const& z) {
  ids_type ids = top(z, 1);
  row_type rest = noisy(z);
  if (ids[0] >= 0) rest[at(ids[0])] = -inf;
  ids.push_back(top(rest, 1)[0]);
  return ids;
}

}  // namespace

TEST_CASE("Switch takes the most probable expert, or a sample", "[router][models]") {
  compare(models::switch_top1(16), softmax_then(1, plain));
  compare(models::deepspeed_top1(16), softmax_then(1, plain));
  compare(models::switch_sampled(8, noise()), [](row_type const& z, row_type const&) {
    ids_type const ids = top(noisy(z), 1);
    return choice{ids, gather(softmax(z), ids)};
  });
}

TEST_CASE("candidates for a capacity", "[router][models]") {
  compare(models::ntlb({8, 3}), softmax_then(3, plain));
  compare(models::deepspeed_top_k({8, 3}), softmax_then(3, plain));
}

TEST_CASE("GShard's two experts", "[router][models]") {
  double const epsilon = std::ldexp(1., -23);
  auto const at_least = [=](row_type const& w) { return over_sum_at_least(w, epsilon); };
  compare(models::gshard_top2(16),
          softmax_then(2, [](row_type const& w) { return over_sum(w, 1e-9); }));
  compare(models::nllb_moe(16), softmax_then(2, at_least));
  compare(models::st_moe({16, 3}),
          softmax_then(3, [](row_type const& w) { return over_sum_at_least(w, 1e-9); }));
  auto const by_noise = [](auto weigh) {
    return [=](row_type const& z, row_type const&) {
      ids_type const ids = second_by_noise(z);
      return choice{ids, weigh(gather(softmax(z), ids))};
    };
  };
  compare(models::fairscale_top2(8, noise()), by_noise(plain));
  compare(models::deepspeed_top2(8, noise()), by_noise(plain));
  compare(models::nllb_moe(8, noise()), by_noise(at_least));
}

TEST_CASE("FastMoE's gates", "[router][models]") {
  compare(models::fastmoe_gshard(16), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 2);
    return choice{ids, softmax_of(z, ids)};
  });
  compare(models::fastmoe_switch(8, noise()), [](row_type z, row_type const&) {
    z = noisy(z);
    ids_type const ids = top(z, 1);
    return choice{ids, gather(softmax(z), ids)};
  });
  compare(
      models::fastmoe_zero(8),
      [](row_type const&, row_type const&) {
        return choice{{0}, {1}};
      },
      false);
}

TEST_CASE("V-MoE and Tutel, with and without noise", "[router][models]") {
  double const epsilon = std::ldexp(1., -23);
  auto const at_least = [=](row_type const& w) { return over_sum_at_least(w, epsilon); };
  auto const with_noise = [](int k, auto weigh) {
    return [=](row_type z, row_type const&) {
      z = noisy(z);
      ids_type const ids = top(z, k);
      return choice{ids, weigh(gather(softmax(z), ids))};
    };
  };
  compare(models::v_moe({16, 2}), softmax_then(2, plain));
  compare(models::v_moe({8, 2}, noise()), with_noise(2, plain));
  compare(models::tutel({16, 1}), softmax_then(1, plain));
  compare(models::tutel({16, 4}), softmax_then(4, at_least));
  compare(models::tutel({8, 2}, noise()), with_noise(2, at_least));
}

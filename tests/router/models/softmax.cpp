// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/softmax.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

namespace {

/// The k largest logits, weighted by what `weigh` makes of their probabilities.
template <class Weigh>
rule softmax_then(int k, Weigh weigh) {
  return [=](row_type const& z, row_type const&) {
    ids_type const ids = top(z, k);
    return choice{ids, weigh(gather(softmax(z), ids))};
  };
}

}  // namespace

TEST_CASE("softmax, top k, divided by their sum: Mixtral, Qwen3, Arctic", "[router][models]") {
  auto const divided = [](row_type const& w) { return over_sum(w); };
  compare(models::mixtral(), softmax_then(2, divided));
  compare(models::qwen3_moe(), softmax_then(8, divided));
  compare(models::qwen3_moe({512, 10}), softmax_then(10, divided));
  compare(models::arctic(), softmax_then(2, divided));
  compare(models::arctic({128, 1}), softmax_then(1, [](row_type const& w) { return w; }));
}

TEST_CASE("softmax, top k, as they are: Qwen2, Jamba, Grok-1, MegaBlocks", "[router][models]") {
  auto const plain = [](row_type const& w) { return w; };
  compare(models::qwen2_moe(), softmax_then(4, plain));
  compare(models::qwen2_moe({64, 8}), softmax_then(8, plain));
  compare(models::jamba(), softmax_then(2, plain));
  compare(models::grok_1(), softmax_then(2, plain));
  compare(models::megablocks({64, 1}), softmax_then(1, plain));
}

TEST_CASE("Grok-2 caps its logits", "[router][models]") {
  compare(models::grok_2({8, 2}, 3), [](row_type z, row_type const&) {
    for (double& x : z)
      if (!masked(x)) x = 3 * std::tanh(x / 3);
    ids_type const ids = top(z, 2);
    return choice{ids, gather(softmax(z), ids)};
  });
}

TEST_CASE("Grok-2 has its correction bias inside the softmax", "[router][models]") {
  std::vector<double> const bias{.5, -1, 0, .25, 2, -.5, 1, -2};
  expar::add_rows const add{expar::make_view(bias.data(), 1, 8)};
  compare(models::grok_2_biased({8, 2}, add, 3), [&](row_type z, row_type const&) {
    for (std::size_t e = 0; e < 8; ++e)
      if (!masked(z[e])) z[e] = 3 * std::tanh(z[e] / 3) + bias[e];
    ids_type const ids = top(z, 2);
    return choice{ids, gather(softmax(z), ids)};
  });
}

TEST_CASE("DBRX divides by a norm", "[router][models]") {
  compare(models::dbrx(), softmax_then(4, [](row_type const& w) { return over_sum(w); }));
  compare(models::dbrx({16, 4}, 2), softmax_then(4, [](row_type const& w) {
            double const norm = std::sqrt(std::inner_product(w.begin(), w.end(), w.begin(), 0.));
            return times(w, norm == 0 ? 0 : 1 / norm);
          }));
  compare(models::dbrx({16, 4}, 3), softmax_then(4, [](row_type const& w) {
            double sum = 0;
            for (double const x : w) sum += x * x * x;
            return times(w, sum == 0 ? 0 : 1 / std::cbrt(sum));
          }));
}

TEST_CASE("DeepSeek-V2 takes groups by their best expert", "[router][models]") {
  compare(
      models::deepseek_v2({.experts = 32, .top_k = 6, .groups = 8, .top_groups = 3, .scale = 16}),
      [](row_type const& z, row_type const&) {
        row_type const p = softmax(z);
        ids_type const ids = top(in_groups(keys(z, p), 8, 3, 1), 6);
        return choice{ids, times(gather(p, ids), 16)};
      });
}

TEST_CASE("Mistral 4 divides by the sum, perhaps in groups", "[router][models]") {
  compare(models::mistral_4(), [](row_type const& z, row_type const&) {
    row_type const p = softmax(z);
    ids_type const ids = top(keys(z, p), 4);
    return choice{ids, over_sum(gather(p, ids), 1e-20)};
  });
  compare(models::mistral_4({32, 6, 8, 2, 1.5}), [](row_type const& z, row_type const&) {
    row_type const p = softmax(z);
    ids_type const ids = top(in_groups(keys(z, p), 8, 2, 2, 0), 6);
    return choice{ids, times(over_sum(gather(p, ids), 1e-20), 1.5)};
  });
}

TEST_CASE("ERNIE-4.5 and LongCat select by probability and bias", "[router][models]") {
  auto const ids_of = [](row_type const& z, row_type const& bias, int k) {
    return top(keys(z, softmax(z), bias), k);
  };
  compare(models::ernie_4_5(), [&](row_type const& z, row_type const& bias) {
    ids_type const ids = ids_of(z, bias, 6);
    return choice{ids, over_sum_at_least(gather(softmax(z), ids), 1e-12)};
  });
  compare(models::longcat_flash(), [&](row_type const& z, row_type const& bias) {
    ids_type const ids = ids_of(z, bias, 12);
    return choice{ids, times(gather(softmax(z), ids), 6)};
  });
}

TEST_CASE("ERNIE-4.5-VL has a gate for each modality", "[router][models]") {
  // Text has experts 0 to 9 and vision those behind; the token is an image's.
  std::vector<std::int32_t> const classes{1}, bounds{0, 10, 16};
  expar::experts_of_class const modality{expar::make_view(classes.data(), 1),
                                         expar::make_view(bounds.data(), 3)};
  auto const by = [](auto score) {
    return [=](row_type const& z, row_type const& bias) {
      row_type const own(z.begin() + 10, z.end()), b(bias.begin() + 10, bias.end());
      row_type const s = score(own);
      ids_type const local = top(keys(own, s, b), 3);
      choice out{{}, over_sum_at_least(gather(s, local), 1e-12)};
      for (auto const id : local) out.ids.push_back(id < 0 ? -1 : id + 10);
      return out;
    };
  };
  compare(models::ernie_4_5_vl({16, 3}, modality), by(softmax));
  compare(models::ernie_4_5_vl({16, 3}, modality, expar::sigmoid_score{}), by(sigmoid));
}

TEST_CASE("Gemma 4 multiplies by a factor of each expert", "[router][models]") {
  std::vector<float> factors(128);
  for (std::size_t e = 0; e < 128; ++e) factors[e] = static_cast<float>(e % 7) / 4 - .5f;
  expar::expert_scale const by{expar::make_view(factors.data(), 128)};
  compare(models::gemma_4({128, 8}, by), [&](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 8);
    row_type w = over_sum(gather(softmax(z), ids));
    for (std::size_t j = 0; j < w.size(); ++j)
      if (ids[j] >= 0) w[j] *= static_cast<double>(factors[at(ids[j])]);
    return choice{ids, w};
  });
}

TEST_CASE("Pangu Pro takes as many experts of every group", "[router][models]") {
  compare(models::pangu_pro(), [](row_type const& z, row_type const&) {
    ids_type ids;
    for (std::size_t g = 0; g < 8; ++g) {
      row_type const run(z.begin() + static_cast<std::ptrdiff_t>(8 * g),
                         z.begin() + static_cast<std::ptrdiff_t>(8 * g + 8));
      std::int32_t const best = top(run, 1)[0];
      ids.push_back(best < 0 ? -1 : best + static_cast<std::int32_t>(8 * g));
    }
    return choice{ids, gather(softmax(z), ids)};
  });
}

TEST_CASE("Hunyuan-Large divides where there is more than one", "[router][models]") {
  compare(models::hunyuan_large(), softmax_then(1, [](row_type const& w) { return w; }));
  compare(models::hunyuan_large({16, 3}), softmax_then(3, [](row_type const& w) {
            return over_sum_at_least(w, std::ldexp(1., -23));
          }));
  compare(models::hunyuan_a13b({64, 8}), softmax_then(8, [](row_type const& w) {
            return over_sum_at_least(w, std::ldexp(1., -23));
          }));
}

TEST_CASE("ZAYA1 may choose no expert, which is its last", "[router][models]") {
  auto const by = [](row_type const& z, row_type const& bias) {
    row_type const p = softmax(z);
    ids_type const ids = top(keys(z, p, bias), 1);
    return choice{ids, times(gather(p, ids), ids[0] == 16 ? 0 : 1)};
  };
  compare(models::zaya(), by);
  row_type z(17), bias(17);
  z[16] = 1;
  REQUIRE(by(z, bias).ids[0] == 16);
  router_test::matrix<double> logits(std::vector<row_type>{z});
  expar::routes<double> routes(1, 1);
  expar::route(expar::host_context{}, models::zaya(), logits.view(), bias, routes);
  REQUIRE(routes.ids(0, 0) == 16);
  REQUIRE(routes.weights(0, 0) == 0);
}

TEST_CASE("GroveMoE selects by sigmoid and weighs by softmax", "[router][models]") {
  compare(models::grove_moe({16, 3}), [](row_type const& z, row_type const&) {
    ids_type const ids = top(keys(z, sigmoid(z)), 3);
    return choice{ids, over_sum(gather(softmax(z), ids))};
  });
}

TEST_CASE("MoE++ takes the weight of zero experts away", "[router][models]") {
  auto const by = [](row_type const& z) {
    ids_type const ids = top(z, 2);
    row_type w = gather(softmax(z), ids);
    for (std::size_t j = 0; j < w.size(); ++j)
      if (ids[j] >= 12 && ids[j] < 14) w[j] = 0;
    return choice{ids, over_sum(w)};
  };
  compare(models::moe_plus_plus({16, 2}, {12, 14}),
          [&](row_type const& z, row_type const&) { return by(z); });
  std::vector<double> before(16);
  for (std::size_t e = 0; e < 16; ++e) before[e] = static_cast<double>(e % 5) / 2;
  expar::add_rows const add{expar::make_view(before.data(), 1, 16)};
  compare(models::moe_plus_plus({16, 2}, {12, 14}, add), [&](row_type z, row_type const&) {
    for (std::size_t e = 0; e < 16; ++e) z[e] += before[e];
    return by(z);
  });
}

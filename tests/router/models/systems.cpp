// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/systems.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

namespace {

rule softmax_times(int k, double factor) {
  return [=](row_type const& z, row_type const&) {
    ids_type const ids = top(z, k);
    return choice{ids, times(gather(softmax(z), ids), factor)};
  };
}
rule softmax_of_top(int k, double factor) {
  return [=](row_type const& z, row_type const&) {
    ids_type const ids = top(z, k);
    return choice{ids, times(softmax_of(z, ids), factor)};
  };
}
template <class Score>
rule biased(int k, double epsilon, double scale, Score score) {
  return [=](row_type const& z, row_type const& bias) {
    row_type const s = score(z);
    ids_type const ids = top(keys(z, s, bias), k);
    row_type const w = gather(s, ids);
    return choice{ids, times(epsilon < 0 ? w : over_sum(w, epsilon), scale)};
  };
}

}  // namespace

TEST_CASE("Megatron's score functions", "[router][models]") {
  compare(models::megatron_softmax({16, 3, 2}), softmax_times(3, 2));
  compare(models::megatron_post_softmax({16, 3, 2}), softmax_of_top(3, 2));
  compare(models::megatron_sigmoid({16, 3, 2}), biased(3, 1e-20, 2, sigmoid));
  compare(models::megatron_sigmoid({16, 1, 2}), biased(1, -1, 2, sigmoid));
  compare(models::megatron_sigmoid({16, 3, 2}, expar::sqrt_softplus_score{}),
          biased(3, 1e-20, 2, sqrt_softplus));
  compare(models::megatron_grouped({24, 6, 4, 2, 1.5}),
          [](row_type const& z, row_type const& bias) {
            row_type const s = sigmoid(z);
            ids_type const ids = top(in_groups(keys(z, s, bias), 4, 2, 3), 6);
            return choice{ids, times(over_sum(gather(s, ids), 1e-20), 1.5)};
          });
}

TEST_CASE("Megatron's softmax in groups is not renormalized", "[router][models]") {
  compare(models::megatron_softmax_grouped({24, 6, 4, 2, 1.5}),
          [](row_type const& z, row_type const&) {
            row_type const p = softmax(z);
            ids_type const ids = top(in_groups(keys(z, p), 4, 2, 3), 6);
            return choice{ids, times(gather(p, ids), 1.5)};
          });
  REQUIRE(models::megatron_groups({24, 6, 4, 0}).best_of == 0);
}

TEST_CASE("Megatron selects by a Sinkhorn plan, and by balanced quantiles", "[router][models]") {
  std::vector<double> plan(16);
  for (std::size_t e = 0; e < 16; ++e) plan[e] = static_cast<double>(e * 11 % 16) / 16;
  expar::given_keys const given{expar::make_view(plan.data(), 1, 16)};
  auto const by = [&](int k, auto score) {
    return [=, &plan](row_type const& z, row_type const&) {
      ids_type const ids = top(keys(z, plan), k);
      return choice{ids, gather(score(z), ids)};
    };
  };
  compare(models::megatron_sinkhorn_top1(16, given), by(1, sigmoid));
  compare(models::megatron_sinkhorn({16, 2}, given), by(2, softmax));
  compare(models::megatron_sinkhorn_top1(16), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 1);
    return choice{ids, gather(sigmoid(z), ids)};
  });
  compare(models::megatron_sinkhorn({16, 2}), softmax_times(2, 1));
  compare(models::megatron_quantile({16, 3, 2}), [](row_type const& z, row_type const& bias) {
    ids_type const ids = top(keys(z, z, bias), 3);
    return choice{ids, times(gather(softmax(z), ids), 2)};
  });
  compare(models::megatron_quantile_sigmoid({16, 3, 2}),
          [](row_type const& z, row_type const& bias) {
            ids_type const ids = top(keys(z, z, bias), 3);
            return choice{ids, times(over_sum(gather(sigmoid(z), ids), 1e-20), 2)};
          });
  compare(models::transformer_engine_quantile({96, 8, 2}), biased(8, 1e-20, 2, sigmoid));
}

TEST_CASE("torchtitan, MaxText, OLMo-core", "[router][models]") {
  compare(models::torchtitan({64, 4, 2}), biased(4, 1e-20, 2, sigmoid));
  compare(models::torchtitan({64, 4, 2}, expar::softmax_score{}), biased(4, 1e-20, 2, softmax));
  compare(models::torchtitan_grouped({64, 4, 8, 4, 2}),
          [](row_type const& z, row_type const& bias) {
            row_type const s = sigmoid(z);
            ids_type const ids = top(in_groups(keys(z, s, bias), 8, 4, 2), 4);
            return choice{ids, times(over_sum(gather(s, ids), 1e-20), 2)};
          });
  compare(models::olmo_core_sigmoid({64, 4}), [](row_type const& z, row_type const& bias) {
    ids_type const ids = top(keys(z, sigmoid(z), bias), 4);
    row_type w = gather(sigmoid(z), ids);
    for (std::size_t j = 0; j < 4; ++j) w[j] += ids[j] < 0 ? 0 : 1e-7;
    return choice{ids, w};
  });
  compare(models::maxtext({64, 4}), softmax_times(4, 1));
  compare(models::olmo_core({64, 4}), softmax_times(4, 1));
}

TEST_CASE("FlashInfer's routing methods", "[router][models]") {
  compare(models::flashinfer_default({64, 4}), softmax_times(4, 1));
  compare(models::flashinfer_renormalize({64, 4}), softmax_of_top(4, 1));
  compare(models::flashinfer_deepseek_v3({64, 4, 8, 4, 2}),
          [](row_type const& z, row_type const& bias) {
            row_type const s = sigmoid(z);
            ids_type const ids = top(in_groups(keys(z, s, bias), 8, 4, 2), 4);
            return choice{ids, times(over_sum(gather(s, ids), 1e-20), 2)};
          });
  compare(models::flashinfer_llama4(16), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 1);
    return choice{ids, gather(sigmoid(z), ids)};
  });
  compare(models::flashinfer_sigmoid_renorm({64, 4}), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 4);
    return choice{ids, over_sum_at_least(gather(sigmoid(z), ids), 1e-20)};
  });
  compare(models::flashinfer_minimax2({64, 4, 2}), biased(4, 1e-20, 2, sigmoid));
  compare(models::flashinfer_sigmoid({64, 4}), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 4);
    return choice{ids, gather(sigmoid(z), ids)};
  });
  compare(
      models::flashinfer_top_k({64, 4}),
      [](row_type const& z, row_type const&) {
        ids_type const ids = top(z, 4);
        return choice{ids, gather(z, ids)};
      },
      false);
}

TEST_CASE("routers for benchmarks and replay", "[router][models]") {
  std::vector<double> numbers(8);
  for (std::size_t e = 0; e < 8; ++e) numbers[e] = static_cast<double>(e * 5 % 8) / 8;
  compare(models::forced_round_robin({8, 3}), [](row_type const& z, row_type const&) {
    ids_type const ids = named(z, {0, 1, 2});
    return choice{ids, gather(sigmoid(z), ids)};
  });
  std::vector<std::int32_t> const recorded{5, -1, 2};
  compare(models::replayed({8, 3}, {expar::make_view(recorded.data(), 1, 3)}),
          [](row_type const& z, row_type const&) {
            ids_type const ids = named(z, {5, -1, 2});
            return choice{ids, over_sum(gather(softmax(z), ids))};
          });
}

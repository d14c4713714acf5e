// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/selected.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

namespace {

rule softmax_of_top(int k) {
  return [=](row_type const& z, row_type const&) {
    ids_type const ids = top(z, k);
    return choice{ids, softmax_of(z, ids)};
  };
}

}  // namespace

TEST_CASE("the softmax of the largest logits: gpt-oss and its kin", "[router][models]") {
  compare(models::gpt_oss(), softmax_of_top(4));
  compare(models::gpt_oss({128, 4}), softmax_of_top(4));
  compare(models::granite_moe(), softmax_of_top(8));
  compare(models::jetmoe(), softmax_of_top(2));
  compare(models::aria(), softmax_of_top(6));
  compare(models::yuan_2(), softmax_of_top(2));
  compare(models::fastmoe_naive({16, 2}), softmax_of_top(2));
}

TEST_CASE("the softmax of selected logits is the renormalized softmax", "[router][models]") {
  compare(models::gpt_oss({8, 3}), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 3);
    return choice{ids, over_sum(gather(softmax(z), ids))};
  });
}

TEST_CASE("Llama 4 weighs its tokens by the sigmoid", "[router][models]") {
  compare(models::llama_4(), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 1);
    return choice{ids, gather(sigmoid(z), ids)};
  });
  STATIC_REQUIRE(decltype(models::llama_4())::site == expar::weight_site::input);
  STATIC_REQUIRE(decltype(models::gpt_oss())::site == expar::weight_site::output);
}

TEST_CASE("the softmax of experts that are chosen elsewhere: FasterGate", "[router][models]") {
  // The token may leave its node, experts 0 and 1: the best of those, then the best of all.
  router_test::matrix<double> z(std::vector<row_type>{{0, -1, 3, 2}});
  ids_type const ids{0, 2};
  expar::router const r({4, 2}, expar::logit_score{},
                        expar::given_ids{expar::make_view(ids.data(), 1, 2)},
                        expar::softmax_weights{});
  expar::routes<double> routes(1, 2);
  expar::route(expar::host_context{}, r, z.view(), routes);
  REQUIRE(routes.ids(0, 0) == 0);
  REQUIRE(routes.ids(0, 1) == 2);
  REQUIRE_THAT(routes.weights(0, 0), Catch::Matchers::WithinAbs(.0474259, 1e-7));
  REQUIRE_THAT(routes.weights(0, 1), Catch::Matchers::WithinAbs(.9525741, 1e-7));
}

TEST_CASE("Cohere2-MoE weighs the largest logits by one of two functions", "[router][models]") {
  compare(models::cohere2_moe(), softmax_of_top(2));
  compare(models::cohere2_moe_sigmoid({64, 8}), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 8);
    return choice{ids, over_sum(gather(sigmoid(z), ids))};
  });
}

TEST_CASE("noisy top k, and random numbers in place of logits", "[router][models]") {
  std::vector<double> noise(16);
  for (std::size_t e = 0; e < 16; ++e) noise[e] = static_cast<double>(e * 7 % 16) / 8;
  expar::add_rows const add{expar::make_view(noise.data(), 1, 16)};
  compare(models::noisy_top_k({16, 4}, add), [&](row_type z, row_type const&) {
    for (std::size_t e = 0; e < 16; ++e) z[e] += noise[e];
    ids_type const ids = top(z, 4);
    return choice{ids, softmax_of(z, ids)};
  });
}

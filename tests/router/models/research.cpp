// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/research.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

namespace {

ids_type ascending(ids_type ids) {
  std::sort(ids.begin(), ids.end(), [](auto a, auto b) {
    return static_cast<std::uint32_t>(a) < static_cast<std::uint32_t>(b);
  });
  return ids;
}

}  // namespace

TEST_CASE("hash layers weigh alike", "[router][models]") {
  std::vector<std::int32_t> const table{0, 3, 2, 5}, name{1};
  expar::table_ids const experts_of{expar::make_view(table.data(), 2, 2),
                                    expar::make_view(name.data(), 1)};
  compare(models::hash_layers({8, 2}, experts_of), [](row_type const&, row_type const&) {
    return choice{{2, 5}, {.5, .5}};
  });
}

TEST_CASE("dense to sparse divides noisy logits by a temperature", "[router][models]") {
  std::vector<double> const numbers{.25, 1.5, -.75, 2, 0, 1, .125, -2};
  expar::add_rows<double> const noise{expar::make_view(numbers.data(), 1, 8)};
  compare(models::dense_to_sparse({8, 3}, noise, 2), [&](row_type z, row_type const&) {
    for (std::size_t e = 0; e < 8; ++e) z[e] = (z[e] + numbers[e]) / 2;
    ids_type const ids = top(z, 3);
    return choice{ids, gather(softmax(z), ids)};
  });
}

TEST_CASE("top p takes the prefix that exceeds p", "[router][models]") {
  auto const by = [](double p) {
    return [=](row_type const& z, row_type const&) {
      row_type const prob = softmax(z);
      ids_type ids = top(z, static_cast<int>(z.size()));
      double sum = 0;
      for (auto& id : ids)
        if (id >= 0) {
          double const before = sum;
          sum += prob[at(id)];
          if (before > p) id = -1;
        }
      return choice{ids, gather(prob, ids)};
    };
  };
  compare(models::top_p_moe(8), by(.4));
  compare(models::top_p_moe(8, .7), by(.7));
}

TEST_CASE("DynMoE takes every expert above its threshold", "[router][models]") {
  auto const by = [](bool or_best) {
    return [=](row_type const& z, row_type const& bias) {
      row_type key = keys(z, sigmoid(z), bias);
      ids_type const best = top(key, 1);
      bool fires = false;
      for (double const x : key) fires = fires || x > 0;
      for (std::size_t e = 0; e < key.size(); ++e)
        if (!(key[e] > 0) && !(or_best && !fires && best[0] == static_cast<std::int32_t>(e)))
          key[e] = -inf;
      ids_type const ids = ascending(top(key, static_cast<int>(z.size())));
      double n = 0;
      for (auto const id : ids) n += id >= 0;
      row_type w;
      for (auto const id : ids) w.push_back(id < 0 ? 0 : 1 / n);
      return choice{ids, w};
    };
  };
  compare(models::dynmoe(8, true), by(true));
  compare(models::dynmoe(8, false), by(false));
}

TEST_CASE("ReMoE takes every expert that fires", "[router][models]") {
  compare(
      models::remoe(8),
      [](row_type const& z, row_type const&) {
        row_type key = keys(z, z);
        for (double& x : key)
          if (!(x > 0)) x = -inf;
        ids_type const ids = ascending(top(key, 8));
        return choice{ids, gather(z, ids)};
      },
      false);
}

TEST_CASE("BASE weighs the assigned expert by its sigmoid", "[router][models]") {
  std::vector<std::int32_t> const assigned{3};
  compare(models::base_layer(8, {expar::make_view(assigned.data(), 1, 1)}),
          [](row_type const& z, row_type const&) {
            return choice{{3}, gather(sigmoid(z), {3})};
          });
  compare(models::base_layer(8), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 1);
    return choice{ids, gather(sigmoid(z), ids)};
  });
}

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
  compare(models::hash_layers({8, 2}, experts_of), [](row_type const& z, row_type const&) {
    ids_type const ids = named(z, {2, 5});
    double const n = (ids[0] >= 0) + (ids[1] >= 0);
    return choice{ids, {ids[0] < 0 ? 0 : 1 / n, ids[1] < 0 ? 0 : 1 / n}};
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
  // sharded_moe.py: those with score > threshold, and in evaluation else the largest score.
  auto const by = [](bool evaluates) {
    return [=](row_type const& z, row_type const& minus_threshold) {
      row_type const score = sigmoid(z);
      ids_type on;
      for (std::size_t e = 0; e < z.size(); ++e)
        if (!masked(z[e]) && score[e] > -minus_threshold[e])
          on.push_back(static_cast<std::int32_t>(e));
      if (on.empty() && evaluates)
        if (std::int32_t const best = top(keys(z, score), 1)[0]; best >= 0) on.push_back(best);
      row_type w(on.size(), 1 / std::max<double>(1, static_cast<double>(on.size())));
      on.resize(z.size(), -1), w.resize(z.size(), 0);
      return choice{on, w};
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
            ids_type const ids = named(z, {3});
            return choice{ids, gather(sigmoid(z), ids)};
          });
  compare(models::base_layer(8), [](row_type const& z, row_type const&) {
    ids_type const ids = top(z, 1);
    return choice{ids, gather(sigmoid(z), ids)};
  });
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/logits/normalize_rows.hpp>

#include "../../support/adds.hpp"
#include "../../support/catch.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

row_type by_definition(expar::unit_length m, row_type const& x) {
  double sum = 0;
  for (double a : x) sum += a * a;
  row_type y;
  for (double a : x) y.push_back(a / std::max(std::sqrt(sum), m.epsilon));
  return y;
}
row_type by_definition(expar::unit_rms m, row_type const& x) {
  double sum = 0;
  for (double a : x) sum += a * a;
  row_type y;
  for (double a : x) y.push_back(a / std::sqrt(sum / static_cast<double>(x.size()) + m.epsilon));
  return y;
}
row_type by_definition(expar::unit_deviation m, row_type const& x) {
  auto const n = static_cast<double>(x.size());
  double const mean = std::accumulate(x.begin(), x.end(), 0.) / n;
  double sum = 0;
  for (double a : x) sum += (a - mean) * (a - mean);
  double const s = std::sqrt(sum / (m.unbiased ? n - 1 : n));
  row_type y;
  for (double a : x) y.push_back((a - (m.centered ? mean : 0)) / s);
  return y;
}

template <class T, class M>
void compare(M const& m, double precision) {
  router_test::random rng(141);
  for (int round = 0; round < 60; ++round) {
    int const rows = static_cast<int>(rng.integer(0, 5)), n = static_cast<int>(rng.integer(2, 70));
    matrix<T> x(rows, n, 1), y(rows, n, 2);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < n; ++i) x.set(r, i, rng.normal() + 1);
    expar::normalize_rows(ctx, m, x.view(), y.view());
    for (int r = 0; r < rows; ++r) {
      auto const expected = by_definition(m, x.row(r));
      for (int i = 0; i < n; ++i)
        REQUIRE_THAT(y.get(r, i), WithinAbs(expected[static_cast<std::size_t>(i)], precision));
    }
  }
}

template <class M>
void differentiate(M const& m) {
  router_test::random rng(142);
  for (int round = 0; round < 60; ++round) {
    int const rows = static_cast<int>(rng.integer(0, 3)), n = static_cast<int>(rng.integer(2, 40));
    matrix<double> x(rows, n, 1), d(rows, n), dx(rows, n, 2);
    for (double& a : x.data) a = rng.normal() + 1;
    for (double& a : d.data) a = rng.normal();
    expar::normalize_rows_backward(ctx, m, x.view(), d.view(), dx.view());
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < n; ++i) {
        auto const loss = [&](double step) {
          row_type moved = x.row(r);
          moved[static_cast<std::size_t>(i)] += step;
          auto const y = by_definition(m, moved);
          double sum = 0;
          for (int j = 0; j < n; ++j) sum += d.get(r, j) * y[static_cast<std::size_t>(j)];
          return sum;
        };
        REQUIRE_THAT(dx.get(r, i), WithinAbs((loss(1e-5) - loss(-1e-5)) / 2e-5, 1e-6));
      }
  }
}

}  // namespace

TEST_CASE("normalized rows agree with the definition", "[router]") {
  compare<double>(expar::unit_length{}, 1e-13);
  compare<float>(expar::unit_length{}, 1e-6);
  compare<expar::bfloat16>(expar::unit_length{}, 1e-2);
  compare<double>(expar::unit_rms{}, 1e-13);
  compare<float>(expar::unit_rms{}, 3e-6);
  compare<expar::bfloat16>(expar::unit_rms{}, 3e-2);
  for (bool const centered : {false, true})
    for (bool const unbiased : {false, true}) {
      compare<double>(expar::unit_deviation{centered, unbiased}, 1e-11);
      compare<float>(expar::unit_deviation{centered, unbiased}, 1e-3);
    }
}

TEST_CASE("gradients of normalized rows agree with differences", "[router]") {
  differentiate(expar::unit_length{});
  differentiate(expar::unit_length{100});  // every row is shorter
  differentiate(expar::unit_rms{});
  differentiate(expar::unit_rms{.5});
}

TEST_CASE("gradients of deviations agree with differences", "[router]") {
  for (bool const centered : {false, true})
    for (bool const unbiased : {false, true}) {
      expar::unit_deviation const m{centered, unbiased};
      router_test::random rng(143);
      matrix<double> x(40, 7), d(40, 7), dx(40, 7);
      for (double& a : x.data) a = rng.normal();
      for (double& a : d.data) a = rng.normal();
      expar::normalize_rows_backward(ctx, m, x.view(), d.view(), dx.view());
      for (int r = 0; r < 40; ++r)
        for (int i = 0; i < 7; ++i) {
          auto const loss = [&](double step) {
            row_type moved = x.row(r);
            moved[static_cast<std::size_t>(i)] += step;
            auto const y = by_definition(m, moved);
            double sum = 0;
            for (int j = 0; j < 7; ++j) sum += d.get(r, j) * y[static_cast<std::size_t>(j)];
            return sum;
          };
          REQUIRE_THAT(dx.get(r, i), WithinAbs((loss(1e-5) - loss(-1e-5)) / 2e-5, 1e-7));
        }
    }
}

TEST_CASE("rows without a length", "[router]") {
  matrix<double> x(std::vector<row_type>{{0, 0, 0}, {2, 2, 2}}), y(2, 3), d(2, 3);
  for (double& a : d.data) a = 1;
  expar::normalize_rows(ctx, expar::unit_length{}, x.view(), y.view());
  REQUIRE(y.row(0) == row_type{0, 0, 0});
  expar::normalize_rows_backward(ctx, expar::unit_length{}, x.view(), d.view(), y.view());
  REQUIRE_THAT(y.get(0, 0), WithinAbs(1e12, 1));
  expar::normalize_rows(ctx, expar::unit_rms{0}, x.view(), y.view());
  REQUIRE(y.row(0) == row_type{0, 0, 0});
  REQUIRE(y.row(1) == row_type{1, 1, 1});
  expar::normalize_rows_backward(ctx, expar::unit_rms{0}, x.view(), d.view(), y.view());
  REQUIRE(y.row(0) == row_type{0, 0, 0});
  for (bool const centered : {false, true}) {
    expar::normalize_rows(ctx, expar::unit_deviation{centered, true}, x.view(), y.view());
    REQUIRE(y.row(1) == row_type{0, 0, 0});
    expar::normalize_rows_backward(ctx, expar::unit_deviation{centered, true}, x.view(), d.view(),
                                   y.view());
    REQUIRE(y.row(1) == row_type{0, 0, 0});
  }
}

TEST_CASE("rows are normalized in place, and NaN stays in its row", "[router]") {
  matrix<double> x(std::vector<row_type>{{3, 4}, {qnan, 1}, {0, -2}}), d(3, 2);
  for (double& a : d.data) a = 1;
  matrix<double> dx(3, 2);
  expar::normalize_rows_backward(ctx, expar::unit_length{}, x.view(), d.view(), dx.view());
  expar::normalize_rows_backward(ctx, expar::unit_length{}, x.view(), d.view(), d.view());
  REQUIRE(d.row(0) == dx.row(0));
  REQUIRE(d.row(2) == dx.row(2));
  expar::normalize_rows(ctx, expar::unit_length{}, x.view(), x.view());
  REQUIRE(x.row(0) == row_type{3. / 5, 4. / 5});
  REQUIRE(std::isnan(x.get(1, 1)));
  REQUIRE(x.row(2) == row_type{0, -1});
}

TEST_CASE("the number of threads does not show in normalized rows", "[router]") {
  router_test::random rng(144);
  matrix<float> x(3000, 65), one(3000, 65), three(3000, 65);
  for (float& a : x.data) a = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  expar::normalize_rows(ctx, expar::unit_rms{}, x.view(), one.view());
  expar::normalize_rows(threads, expar::unit_rms{}, x.view(), three.view());
  REQUIRE(one.data == three.data);
  expar::normalize_rows_backward(ctx, expar::unit_deviation{true, true}, x.view(), x.view(),
                                 one.view());
  expar::normalize_rows_backward(threads, expar::unit_deviation{true, true}, x.view(), x.view(),
                                 three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("normalized rows refuse what does not fit", "[router]") {
  matrix<float> x(std::vector<row_type>{{1, 2}}), y(1, 2), narrow(std::vector<row_type>{{1}});
  auto const normalize = [&](auto const& m, auto const& from, auto const& to) {
    return sentence_of([&] { expar::normalize_rows(ctx, m, from, to); });
  };
  REQUIRE(normalize(expar::unit_length{0}, x.view(), y.view()) ==
          "expar: normalize_rows: epsilon is 0; it is above 0");
  REQUIRE(normalize(expar::unit_rms{-1}, x.view(), y.view()) ==
          "expar: normalize_rows: epsilon is -1; it is at least 0");
  REQUIRE(normalize(expar::unit_deviation{true, true}, narrow.view(), narrow.view()) ==
          "expar: normalize_rows: a row has 1 numbers; an unbiased deviation needs 2");
  REQUIRE(normalize(expar::unit_length{}, x.view(), narrow.view()) ==
          "expar: normalize_rows: y has extent 1 in dimension 1, but the number of columns is 2");
  REQUIRE(sentence_of([&] {
            expar::normalize_rows_backward(ctx, expar::unit_length{}, x.view(), narrow.view(),
                                           y.view());
          }) ==
          "expar: normalize_rows_backward: d has extent 1 in dimension 1, but the number of "
          "columns is 2");
  REQUIRE(sentence_of([&] {
            expar::normalize_rows_backward(ctx, expar::unit_length{}, x.view(), y.view(),
                                           expar::make_view(y.data.data(), 0, 2));
          }) ==
          "expar: normalize_rows_backward: dx has extent 0 in dimension 0, but the number of rows "
          "is 1");
}

TEST_CASE("the gradient of normalized rows is added, or written over the rows", "[router]") {
  router_test::random rng(145);
  matrix<float> x(9, 5), d(9, 5), dx(9, 5);
  for (auto* m : {&x, &d})
    for (float& a : m->data) a = static_cast<float>(rng.normal());
  expar_test::require_adds<float>(9, 5, [&](auto&& to) {
    expar::normalize_rows_backward(ctx, expar::unit_rms{}, x.view(), d.view(), to);
  });
  expar::normalize_rows_backward(ctx, expar::unit_rms{}, x.view(), d.view(), dx.view());
  expar::normalize_rows_backward(ctx, expar::unit_rms{}, x.view(), d.view(), x.view());
  REQUIRE(x.data == dx.data);
}

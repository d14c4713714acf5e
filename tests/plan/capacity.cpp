// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/capacity.hpp>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>

#include "../support/catch.hpp"
#include "../support/thrown_by.hpp"

using namespace expar::capacities;
using expar::index_t;

TEST_CASE("capacities of published systems, on shapes with awkward remainders") {
  struct row {
    index_t tokens;
    int experts, k;
    double factor;
    index_t megatron, deepspeed, tutel, mesh, flaxformer, vmoe, megablocks, fairscale, fast_switch,
        fast_gshard, ernie, nllb, maxtext, olmo;
  };
  row const rows[] = {
      {4, 4, 1, 1.0, 1, 4, 1, 4, 4, 4, 1, 2, 1, 1, 1, 2, 1, 8},
      {10, 4, 2, 1.25, 7, 7, 6, 4, 4, 8, 6, 5, 4, 6, 3, 6, 6, 8},
      {7, 3, 2, 1.0, 5, 5, 6, 4, 4, 8, 4, 4, 3, 4, 2, 6, 5, 8},
      {100, 16, 2, 1.1, 14, 14, 14, 6, 7, 16, 13, 12, 7, 13, 6, 14, 14, 16},
      {3, 8, 1, 1.0, 1, 4, 1, 4, 4, 4, 0, 0, 1, 0, 0, 2, 1, 0},
  };
  for (row const& r : rows) {
    CAPTURE(r.tokens, r.experts);
    CHECK(megatron(r.tokens, r.experts, r.k, r.factor) == r.megatron);
    CHECK(deepspeed(r.tokens, r.experts, r.k, r.factor) == r.deepspeed);
    CHECK(expar::capacity_of({.factor = r.factor}, r.tokens, r.experts, r.k, 0) == r.tutel);
    CHECK(mesh_tensorflow(r.tokens, r.experts, r.factor) == r.mesh);
    CHECK(flaxformer(r.tokens, r.experts, r.factor) == r.flaxformer);
    CHECK(vmoe(r.tokens, r.experts, r.k, r.factor) == r.vmoe);
    CHECK(megablocks(r.tokens, r.experts, r.k, r.factor) == r.megablocks);
    CHECK(fairscale(r.tokens, r.experts) == r.fairscale);
    CHECK(fastmoe_switch(r.tokens, r.experts, r.factor) == r.fast_switch);
    CHECK(fastmoe_gshard(r.tokens, r.experts, r.k, r.factor) == r.fast_gshard);
    CHECK(ernie(r.tokens, r.experts, r.factor) == r.ernie);
    CHECK(nllb(r.tokens, r.experts) == r.nllb);
    CHECK(maxtext(r.tokens, r.experts, r.k, r.factor) == r.maxtext);
    CHECK(olmo_core(r.tokens, r.experts, r.k, r.factor) == r.olmo);
  }
}

// Shapes where another order of the products, or another precision, gives another number. The
// numbers were made by Python's own arithmetic, DeepSpeed's in numbers of 32 bits.
TEST_CASE("capacities keep the order of operations and the precision of their source") {
  struct row {
    index_t tokens;
    int experts, k;
    double factor;
    index_t megatron, deepspeed, mesh, flaxformer, vmoe_up, vmoe_near, megablocks_of_two,
        fast_gshard, fast_switch, ernie, maxtext, olmo;
  };
  row const rows[] = {
      {1, 2, 1, 1.1, 1, 4, 4, 4, 4, 4, 1, 1, 1, 0, 1, 0},
      {5, 2, 6, 1.4, 21, 21, 4, 4, 24, 24, 42, 21, 4, 3, 21, 24},
      {5, 2, 6, 1.6, 24, 24, 4, 4, 24, 24, 48, 24, 4, 4, 24, 24},
      {5, 3, 6, 0.7, 7, 7, 4, 4, 8, 8, 14, 8, 2, 1, 7, 8},
      {5, 3, 6, 1.1, 11, 11, 4, 4, 12, 12, 22, 12, 2, 1, 11, 16},
      {10, 2, 1, 1.3, 7, 7, 6, 6, 8, 8, 13, 6, 7, 6, 6, 8},
      {10, 2, 1, 1.7, 9, 9, 8, 8, 12, 8, 17, 8, 9, 8, 8, 8},
      {15, 3, 6, 1.1, 33, 33, 5, 6, 36, 36, 66, 34, 6, 5, 33, 40},
      {25, 3, 6, 1.1, 56, 55, 9, 9, 56, 56, 110, 56, 10, 9, 55, 56},
      {30, 7, 1, 1.4, 6, 6, 6, 6, 8, 8, 11, 6, 6, 6, 7, 8},
      {30, 7, 2, 1.4, 12, 12, 6, 6, 12, 12, 23, 12, 6, 6, 12, 16},
      {50, 5, 2, 1.1, 22, 22, 11, 11, 24, 24, 44, 22, 12, 11, 22, 24},
      {3, 60, 2, 1.4, 1, 4, 4, 4, 4, 0, 0, 0, 1, 0, 1, 0},
      {8192, 8, 1, 1.4, 1434, 1434, 1433, 1434, 1436, 1436, 2867, 1433, 1434, 1433, 1433, 1440},
      {100, 64, 1, 1.25, 2, 4, 4, 4, 4, 4, 3, 1, 2, 1, 2, 8},
  };
  for (row const& r : rows) {
    CAPTURE(r.tokens, r.experts, r.factor);
    CHECK(megatron(r.tokens, r.experts, r.k, r.factor) == r.megatron);
    CHECK(deepspeed(r.tokens, r.experts, r.k, r.factor) == r.deepspeed);
    CHECK(mesh_tensorflow(r.tokens, r.experts, r.factor) == r.mesh);
    CHECK(flaxformer(r.tokens, r.experts, r.factor) == r.flaxformer);
    CHECK(vmoe(r.tokens, r.experts, r.k, r.factor) == r.vmoe_up);
    CHECK(vmoe(r.tokens, r.experts, r.k, r.factor, rounding::to_nearest) == r.vmoe_near);
    CHECK(megablocks(r.tokens, r.experts, r.k, r.factor, 2) == r.megablocks_of_two);
    CHECK(fastmoe_gshard(r.tokens, r.experts, r.k, r.factor) == r.fast_gshard);
    CHECK(fastmoe_switch(r.tokens, r.experts, r.factor) == r.fast_switch);
    CHECK(ernie(r.tokens, r.experts, r.factor) == r.ernie);
    CHECK(maxtext(r.tokens, r.experts, r.k, r.factor) == r.maxtext);
    CHECK(olmo_core(r.tokens, r.experts, r.k, r.factor) == r.olmo);
  }
}

TEST_CASE("capacities: minima, multiples, fractions") {
  CHECK(deepspeed(10, 4, 2, 1.25, 8) == 8);
  CHECK(deepspeed(4, 4, 1, 1, 1) == 1);
  CHECK(mesh_tensorflow(3, 2, 8, 1) == 3);
  CHECK(mesh_tensorflow(3, 2, 8) == 4);
  CHECK(flaxformer(9, 2, 1, 0) == 4);   // 4.5
  CHECK(flaxformer(11, 2, 1, 0) == 6);  // 5.5
  CHECK(vmoe(9, 2, 1, 1, rounding::up, 1) == 5);
  CHECK(vmoe(9, 2, 1, 1, rounding::to_nearest, 1) == 4);
  CHECK(olmo_core(9, 2, 1, 1, 1) == 4);
  CHECK(nllb_evaluation(10, .25) == 3);
  CHECK(nllb_evaluation(12, .25) == 3);
  CHECK(hunyuan(10, 4, 2) == 5);
  CHECK(hunyuan(3, 8, 2) == 2);
}

TEST_CASE("a capacity can be clamped to what is possible") {
  CHECK(clamped(0, 3) == 1);
  CHECK(clamped(2, 3) == 2);
  CHECK(clamped(7, 3) == 3);
  CHECK(clamped(4, 0) == 0);
  CHECK(clamped(0, 0) == 0);
}

TEST_CASE("without tokens, capacities are what their minimum says") {
  CHECK(megatron(0, 4, 2, 1.25) == 0);
  CHECK(deepspeed(0, 4, 2, 1.25) == 4);
  CHECK(mesh_tensorflow(0, 4, 1.25) == 4);
  CHECK(flaxformer(0, 4, 1.25) == 4);
  CHECK(vmoe(0, 4, 2, 1.25) == 0);
  CHECK(megablocks(0, 4, 2, 1.25) == 0);
  CHECK(fairscale(0, 4) == 0);
  CHECK(fastmoe_switch(0, 4, 1.25) == 0);
  CHECK(fastmoe_gshard(0, 4, 2, 1.25) == 0);
  CHECK(ernie(0, 4, 1.25) == 0);
  CHECK(nllb(0, 4) == 0);
  CHECK(maxtext(0, 4, 2, 1.25) == 1);
  CHECK(olmo_core(0, 4, 2, 1.25) == 0);
  CHECK(hunyuan(0, 4, 2) == 2);
}

TEST_CASE("capacities refuse what no number of routes follows from") {
  using expar_test::thrown_by;
  CHECK(thrown_by([] { megatron(4, 0, 2, 1); }) ==
        "expar: capacities::megatron: experts is 0; it lies between 1 and 2147483647");
  CHECK(thrown_by([] { megatron(4, 4, 0, 1); }) ==
        "expar: capacities::megatron: top_k is 0; it lies between 1 and 2147483647");
  CHECK(thrown_by([] { megatron(-1, 4, 2, 1); }) ==
        "expar: capacities::megatron: tokens is -1; it lies between 0 and 2199023255552");
  CHECK(thrown_by([] { deepspeed(4, 4, 2, -.5); }) ==
        "expar: capacities::deepspeed: factor is -0.5; it lies between 0 and 1000000");
  CHECK(thrown_by([] { megablocks(4, 4, 2, 1, 0); }) ==
        "expar: capacities::megablocks: ranks is 0; it lies between 1 and 2147483647");
  CHECK(thrown_by([] { olmo_core(4, 4, 2, 1, 0); }) ==
        "expar: capacities::olmo_core: multiple is 0; it lies between 1 and 2147483647");
}

TEST_CASE("every capacity refuses each value that it cannot use") {
  using function = std::function<void(index_t tokens, int experts, int k, double factor)>;
  struct rule {
    std::string name;
    bool has_experts, has_k, has_factor;
    function call;
  };
  rule const rules[] = {
      {"clamped", false, false, false, [](index_t t, int, int, double) { clamped(1, t); }},
      {"megatron", true, true, true, megatron},
      {"deepspeed", true, true, true, [](auto... a) { deepspeed(a...); }},
      {"mesh_tensorflow", true, false, true,
       [](index_t t, int e, int, double f) { mesh_tensorflow(t, e, f); }},
      {"flaxformer", true, false, true,
       [](index_t t, int e, int, double f) { flaxformer(t, e, f); }},
      {"vmoe", true, true, true, [](auto... a) { vmoe(a...); }},
      {"megablocks", true, true, true, [](auto... a) { megablocks(a...); }},
      {"fairscale", true, false, false, [](index_t t, int e, int, double) { fairscale(t, e); }},
      {"fastmoe_gshard", true, true, true, fastmoe_gshard},
      {"fastmoe_switch", true, false, true,
       [](index_t t, int e, int, double f) { fastmoe_switch(t, e, f); }},
      {"ernie", true, false, true, [](index_t t, int e, int, double f) { ernie(t, e, f); }},
      {"nllb", true, false, false, [](index_t t, int e, int, double) { nllb(t, e); }},
      {"nllb_evaluation", false, false, true,
       [](index_t t, int, int, double f) { nllb_evaluation(t, f); }},
      {"maxtext", true, true, true, maxtext},
      {"olmo_core", true, true, true, [](auto... a) { olmo_core(a...); }},
      {"hunyuan", true, true, false, [](index_t t, int e, int k, double) { hunyuan(t, e, k); }},
  };
  for (rule const& r : rules) {
    auto const refuses = [&](char const* argument, index_t tokens, int experts, int k,
                             double factor) {
      CAPTURE(r.name, argument);
      auto const said = expar_test::thrown_by([&] { r.call(tokens, experts, k, factor); });
      CHECK(said.find("expar: capacities::" + r.name + ": " + argument + " is ") == 0);
    };
    for (index_t const tokens : {index_t{-1}, INT64_MIN, INT64_MAX})
      refuses("tokens", tokens, 4, 2, 1);
    if (r.has_experts)
      for (int const experts : {0, -1, INT32_MIN}) refuses("experts", 4, experts, 2, 1);
    if (r.has_k)
      for (int const k : {0, -1, INT32_MIN}) refuses("top_k", 4, 4, k, 1);
    double const inf = std::numeric_limits<double>::infinity();
    if (r.has_factor)
      for (double const factor : {-1e-300, 1.1e6, inf, -inf, inf - inf})
        refuses("factor", 4, 4, 2, factor);
    // The largest that they take overflow nothing.
    r.call(index_t{1} << 42, 1, 1, 1e6);
    r.call((index_t{1} << 42) / INT32_MAX, 1, INT32_MAX, 1e6);
  }
}

TEST_CASE("capacities are constants where their arguments are") {
  STATIC_REQUIRE(megatron(10, 4, 2, 1.25) == 7);
  STATIC_REQUIRE(deepspeed(10, 4, 2, 1.25) == 7);
  STATIC_REQUIRE(vmoe(10, 4, 2, 1.25) == 8);
  STATIC_REQUIRE(flaxformer(100, 16, 1.1) == 7);
  STATIC_REQUIRE(clamped(maxtext(10, 4, 2, 1.25), 4) == 4);
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/shuffles.hpp>

#include <cstdint>

#include <expar/router/detail/pack.hpp>

#include "../../support/catch.hpp"

namespace {

using namespace expar::detail;

template <class T>
void require_shuffled() {
  typedef T V __attribute__((vector_size(vector_bytes)));
  constexpr int size = vector_bytes / 4;
  V in[4];
  for (int v = 0; v < 4; ++v)
    for (int i = 0; i < size; ++i) in[v][i] = static_cast<T>(100 * v + i);
  V const a = in[0], b = in[1];
  V const pairs[6] = {low_pairs(a, b),   high_pairs(a, b),   first_halves(a, b),
                      last_halves(a, b), even_entries(a, b), odd_entries(a, b)};
  int const from[6][4] = {{0, 4, 1, 5}, {2, 6, 3, 7}, {0, 1, 4, 5},
                          {2, 3, 6, 7}, {0, 2, 4, 6}, {1, 3, 5, 7}};
  for (int v = 0; v < 6; ++v)
    for (int i = 0; i < size; ++i) {
      int const f = from[v][i % 4];
      CAPTURE(v, i);
      REQUIRE(pairs[v][i] == in[f / 4][i / 4 * 4 + f % 4]);
    }
  V mixed[2], to[4];
  interleave(a, b, [&](int i, V v) { mixed[i] = v; });
  for (int i = 0; i < 2 * size; ++i) REQUIRE(mixed[i / size][i % size] == in[i % 2][i / 2]);
  transpose_quads(in[0], in[1], in[2], in[3], [&](int i, V v) { to[i] = v; });
  for (int v = 0; v < 4; ++v)
    for (int i = 0; i < size; ++i) REQUIRE(to[v][i] == in[i % 4][i / 4 * 4 + v]);
  typedef T Q __attribute__((vector_size(16)));
  Q quads[size / 4];
  split_quads(a, [&](int i, Q quad) { quads[i] = quad; });
  for (int i = 0; i < size; ++i) REQUIRE(quads[i / 4][i % 4] == a[i]);
  V const joined = join_quads<T, vector_bytes>([&](int i) { return quads[i]; });
  for (int i = 0; i < size; ++i) REQUIRE(joined[i] == a[i]);
}

}  // namespace

TEST_CASE("quads are made of quads", "[router]") {
  require_shuffled<float>();
  require_shuffled<std::int32_t>();
}

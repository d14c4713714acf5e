// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/detail/sums.hpp>

#include <cstring>
#include <vector>

#include "../../support/catch.hpp"
#include "../../support/random.hpp"

namespace {
/// May begin at an odd address, which no line does.
struct bytes_of_bfloat16 {
  unsigned char bytes[2];
};
}  // namespace
template <>
struct expar::element_traits<bytes_of_bfloat16>
    : expar::traits_of_same_bits<bytes_of_bfloat16, expar::bfloat16> {};

using namespace expar::detail;
using expar::index_t;

namespace {

template <class T, class Out>
struct pair_of {
  using row = T;
  using out = Out;
};

/// Rows at any alignment of their elements.
template <class T>
struct some_rows {
  std::vector<std::vector<T>> memory;
  weighted_rows<T> list;

  some_rows(expar_test::random& draw, int count, index_t n) {
    list.count = count;
    for (int i = 0; i < count; ++i) {
      auto const ahead = static_cast<std::size_t>(draw.integer(0, 17));
      memory.emplace_back(ahead + static_cast<std::size_t>(n));
      for (T& x : memory.back())
        x = expar::narrow<T>(static_cast<expar::accumulator_t<T>>(draw.uniform(-2, 2)));
      list.row[i] = memory.back().data() + ahead;
      list.weight[i] =
          static_cast<expar::accumulator_t<T>>(draw.chance(.2) ? 1 : draw.uniform(-1, 1));
    }
  }
  template <class Out>
  Out sum(index_t column, Out const* residual) const {
    expar::accumulator_t<T> s = residual != nullptr ? expar::widen(residual[column]) : 0;
    for (int i = 0; i < list.count; ++i) {
      auto const product = list.weight[i] * expar::widen(list.row[i][column]);
      s = i == 0 && residual == nullptr ? product : s + product;
    }
    return expar::narrow<Out>(s);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a sum of rows has the bits of its columns, one by one", "[permute]",
                   (pair_of<float, float>), (pair_of<double, double>),
                   (pair_of<expar::bfloat16, expar::bfloat16>), (pair_of<expar::half, expar::half>),
                   (pair_of<expar::bfloat16, float>), (pair_of<float, expar::bfloat16>),
                   (pair_of<expar::float8_e4m3, expar::bfloat16>)) {
  using T = typename TestType::row;
  using Out = typename TestType::out;
  expar_test::random draw(3);
  for (int round = 0; round < 1500; ++round) {
    auto const n = static_cast<index_t>(draw.integer(0, draw.chance(.2) ? 700 : 150));
    some_rows<T> const rows(draw, static_cast<int>(draw.integer(0, draw.chance(.1) ? 32 : 5)), n);
    int const kind = static_cast<int>(draw.integer(0, 2));  // no residual, one apart, in place
    auto const begin = static_cast<std::size_t>(draw.integer(0, 70));
    std::vector<Out> out(begin + static_cast<std::size_t>(n) + 9);
    for (Out& x : out)
      x = expar::narrow<Out>(static_cast<expar::accumulator_t<Out>>(draw.uniform(-1, 1)));
    std::vector<Out> const before = out, apart(before.rbegin(), before.rend());
    Out const* const residual = kind == 0 ? nullptr : kind == 1 ? apart.data() : out.data() + begin;
    sum_way const way{kind == 0 && draw.chance(.5), draw.chance(.5) ? rows_ahead : 0};
    row_sum<T, Out>::put(rows.list, out.data() + begin, n, residual, way);
    end_streams();
    std::vector<Out> wanted = before;
    Out const* const first = kind == 0 ? nullptr : kind == 1 ? apart.data() : before.data() + begin;
    for (index_t c = 0; c < n; ++c)
      wanted[begin + static_cast<std::size_t>(c)] = rows.sum(c, first);
    INFO("round " << round << ", " << n << " columns, " << rows.list.count << " rows, begins at "
                  << begin << ", residual " << kind << ", streams " << way.streams);
    REQUIRE(std::memcmp(out.data(), wanted.data(), out.size() * sizeof(Out)) == 0);
  }
}

TEST_CASE("rows whose elements are less aligned than they are large", "[permute]") {
  expar_test::random draw(6);
  for (std::size_t begin = 0; begin < 2 * line_bytes; ++begin) {
    constexpr index_t n = 300;
    some_rows<bytes_of_bfloat16> const rows(draw, 3, n);
    alignas(line_bytes) unsigned char memory[2 * line_bytes + 2 * n + 8] = {};
    auto* const out = reinterpret_cast<bytes_of_bfloat16*>(memory + begin);
    row_sum<bytes_of_bfloat16, bytes_of_bfloat16>::put(rows.list, out, n, nullptr,
                                                       {true, rows_ahead});
    end_streams();
    INFO("begins at " << begin);
    for (index_t c = 0; c < n; ++c) {
      auto const wanted = rows.sum<bytes_of_bfloat16>(c, nullptr);
      REQUIRE(std::memcmp(&out[c], &wanted, sizeof wanted) == 0);
    }
    REQUIRE((memory[begin + 2 * n] == 0 && (begin == 0 || memory[begin - 1] == 0)));
  }
}

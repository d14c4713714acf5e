// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/argument_table.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

using expar::index_t;
using expar::make_strided_view;
using expar::make_view;
using expar::tensor_view;
using expar::detail::any_extent;
using expar::detail::argument_table;
using expar::detail::may_be;

namespace {

/// The sentence of the first argument that does not fit.
template <class F>
std::string refused(F&& name_arguments) {
  argument_table a("f");
  try {
    name_arguments(a);
  } catch (expar::error const& e) {
    return e.what();
  }
  return "";
}
template <class V>
std::string read(V const& v) {
  return refused([&](argument_table& a) { a.reads("x", v); });
}
template <class V>
std::string written(V const& v) {
  return refused([&](argument_table& a) { a.writes("y", v); });
}
template <class V, class U>
bool overlap(V const& v, U const& u) {
  std::string const one = refused([&](argument_table& a) { a.writes("y", v), a.reads("x", u); });
  std::string const other = refused([&](argument_table& a) { a.reads("x", u), a.writes("y", v); });
  REQUIRE(one == other);
  REQUIRE((one.empty() ||
           one == "expar: f: y overlaps x in memory; the operation cannot work in place"));
  return !one.empty();
}

}  // namespace

TEST_CASE("arguments: what a view must be to be read") {
  float values[8]{};
  CHECK(read(make_view(values, 2, 4)).empty());
  CHECK(read(make_view<float>(nullptr, 0, 4)).empty());
  CHECK(read(make_view<float>(nullptr, 4, 0)).empty());
  CHECK(read(tensor_view<float, 2>{values, {4, 1}, {2, 7}}).empty());
  CHECK(read(make_view(values, 4, 4, 0)).empty());
  CHECK(read(make_strided_view(values, 4, 2)).empty());
  CHECK(read(make_view(values, -1, 4)) ==
        "expar: f: x has extent -1 in dimension 0; an extent is at least 0");
  CHECK(read(make_view<float>(nullptr, 2, 4)) == "expar: f: x has 8 elements but its data is null");
  CHECK(read(tensor_view<float, 2>{values, {2, 4}, {1, 2}}) ==
        "expar: f: x has stride 2 in its last dimension; it must be contiguous there (stride 1)");
  CHECK(read(make_view(reinterpret_cast<float*>(reinterpret_cast<char*>(values) + 2), 3)) ==
        "expar: f: x begins at an address that is 2 modulo 4; its elements are aligned to 4 bytes");
  index_t const huge = index_t{1} << 32;
  CHECK(read(make_view(values, huge, huge)) ==
        "expar: f: x has extent 4294967296 in dimension 1, and more than 9223372036854775807 "
        "elements");
  CHECK(read(make_view(values, huge, 1, huge)) ==
        "expar: f: x has stride 4294967296 in dimension 0, and reaches over more than "
        "9223372036854775807 bytes");
}

TEST_CASE("arguments: what a view must be to be written") {
  float values[8]{};
  CHECK(written(make_view(values, 2, 3, 4)).empty());
  CHECK(written(tensor_view<float, 2>{values + 4, {2, 4}, {-4, 1}}).empty());
  CHECK(written(make_view(values, 1, 8, 0)).empty());
  CHECK(written(make_view(values, 8)).empty());
  CHECK(written(make_strided_view(values + 6, 3, -3)).empty());
  std::string const apart = " elements apart; rows that are written must not overlap";
  CHECK(written(make_view(values, 3, 4, 2)) == "expar: f: y has rows of 4 elements only 2" + apart);
  CHECK(written(tensor_view<float, 2>{values, {2, 4}, {-3, 1}}) ==
        "expar: f: y has rows of 4 elements only 3" + apart);
  CHECK(written(make_strided_view(values, 3, 0)) ==
        "expar: f: y has rows of 1 elements only 0" + apart);
}

TEST_CASE("arguments: an extent that does not fit names both sides") {
  float values[8]{};
  auto const v = make_view(values, 2, 4);
  CHECK(refused([&](auto& a) { a.reads("x", v, {any_extent, {4, "hidden"}}); }).empty());
  CHECK(refused([&](auto& a) {
          a.reads("x", v, {any_extent, {5, "hidden"}});
        }) == "expar: f: x has extent 4 in dimension 1, but hidden is 5");
  CHECK(refused([&](auto& a) {
          a.writes("y", v, {{1, "T"}});
        }) == "expar: f: y has extent 2 in dimension 0, but T is 1");
}

TEST_CASE("arguments: what is written is the tensor that it may be, or apart from it") {
  std::vector<float> data(40);
  float* const at = data.data();
  auto const in_place = [](auto const& out, auto const& in) {
    return refused([&](auto& a) {
      a.reads("x", in);
      a.writes("y", out, {any_extent, any_extent, may_be("x")});
    });
  };
  std::string const overlaps =
      "expar: f: y overlaps x in memory; it is that very tensor, or apart from it";
  auto const x = make_view(at, 3, 4, 6);
  tensor_view<float const, 2> const same{at, {3, 4}, {6, 1}};
  CHECK(in_place(x, x).empty());
  CHECK(in_place(x, same).empty());
  CHECK(in_place(make_view(at + 18, 3, 4, 6), x).empty());
  CHECK(in_place(make_view(at + 4, 3, 2, 6), make_view(at, 3, 2, 6)).empty());
  CHECK(in_place(make_view(at + 6, 3, 4, 6), x) == overlaps);
  CHECK(in_place(make_view(at + 1, 3, 4, 6), x) == overlaps);
  CHECK(in_place(make_view(at, 3, 4, 5), x) == overlaps);
  // Of one row, the distance to the next does not matter.
  CHECK(in_place(make_view(at, 1, 4, 5), make_view(at, 1, 4, 9)).empty());
  CHECK(in_place(make_view(at, 0, 4, 5), make_view(at, 0, 4, 9)).empty());
  // Numbers of another type.
  auto* const bits = reinterpret_cast<std::int32_t*>(at);
  CHECK(in_place(make_view(bits, 3, 4, 6), x) == overlaps);
  CHECK(in_place(make_view(bits + 18, 3, 4, 6), x).empty());
  // What is added to is no other argument.
  CHECK(refused([&](auto& a) {
          a.reads("x", x);
          a.adds("y", x, {any_extent, any_extent, may_be("x")});
        }) == "expar: f: y overlaps x in memory; the operation cannot work in place");
  // Two that are read may be one, two that are written may not.
  CHECK(refused([&](auto& a) { a.reads("x", x), a.reads("z", x); }).empty());
  CHECK(refused([&](auto& a) { a.writes("x", x), a.writes("z", x); }) ==
        "expar: f: z overlaps x in memory; the operation cannot work in place");
}

TEST_CASE("arguments: overlap is exact for column blocks of one buffer") {
  float values[100]{};
  auto const block = [&](int first, int columns, int row = 0, int rows = 4) {
    return make_view(values + row * 10 + first, rows, columns, 10);
  };
  CHECK(overlap(block(0, 5), block(0, 5)));
  CHECK_FALSE(overlap(block(0, 5), block(5, 5)));
  CHECK_FALSE(overlap(block(5, 5), block(0, 5)));
  CHECK(overlap(block(0, 6), block(5, 5)));
  CHECK(overlap(block(2, 3), block(0, 10)));
  CHECK_FALSE(overlap(block(2, 3), block(6, 3)));
  CHECK_FALSE(overlap(block(0, 5, 0), block(5, 5, 2)));
  CHECK(overlap(block(0, 5, 0), block(4, 5, 2)));
  CHECK_FALSE(overlap(block(0, 10, 0), block(0, 10, 4)));
  CHECK(overlap(block(0, 10, 0), block(0, 10, 3)));
  CHECK_FALSE(overlap(block(0, 0), block(0, 10)));
  CHECK_FALSE(overlap(make_view<float>(nullptr, 0, 4), block(0, 4)));
  // A column, and a vector in the gap between rows.
  CHECK_FALSE(overlap(make_strided_view(values + 9, 4, 10), block(0, 9)));
  CHECK(overlap(make_strided_view(values + 8, 4, 10), block(0, 9)));
  CHECK_FALSE(overlap(make_view(values + 15, 5), block(0, 5)));
  CHECK(overlap(make_view(values + 15, 6), block(0, 5)));
}

TEST_CASE("arguments: overlap agrees with a map of the bytes") {
  expar_test::random rng(3);
  constexpr int elements = 400;
  std::vector<float> values(elements);
  int shared = 0, missed = 0, mistaken = 0;
  for (int i = 0; i < 20000; ++i) {
    index_t const pitch = rng.integer(1, 12);
    auto const any = [&](index_t apart) {
      index_t const columns = rng.integer(0, apart), rows = rng.integer(0, 6);
      index_t const reach = rows * apart + columns;
      return make_view(values.data() + rng.integer(0, elements - reach - 1), rows, columns, apart);
    };
    auto const a = any(pitch), b = any(rng.chance(0.8) ? pitch : rng.integer(1, 12));
    std::vector<int> map(elements);
    for (auto const& [v, bit] : {std::pair{a, 1}, std::pair{b, 2}})
      for (index_t r = 0; r < v.extents[0]; ++r)
        for (index_t c = 0; c < v.extents[1]; ++c)
          map[static_cast<std::size_t>(&v(r, c) - values.data())] |= bit;
    bool truth = false;
    for (int m : map) truth = truth || m == 3;
    bool const said = overlap(a, b);
    shared += truth;
    missed += truth && !said;
    // Of rows with different pitches it only compares where they begin and end.
    mistaken += said && !truth && a.strides[0] == b.strides[0];
  }
  CHECK(shared > 100);
  CHECK(missed == 0);
  CHECK(mistaken == 0);
}

TEST_CASE("arguments: overlap sees views of other elements and backward rows") {
  alignas(8) unsigned char bytes[64]{};
  auto* const ints = reinterpret_cast<std::int32_t*>(bytes);
  auto* const shorts = reinterpret_cast<std::int16_t*>(bytes);
  CHECK_FALSE(overlap(make_view(ints, 4, 2, 4), make_view(shorts + 4, 4, 4, 8)));
  CHECK(overlap(make_view(ints, 4, 3, 4), make_view(shorts + 4, 4, 4, 8)));
  CHECK(overlap(tensor_view<std::int32_t, 2>{ints + 12, {4, 2}, {-4, 1}}, make_view(ints, 1, 2)));
  CHECK_FALSE(
      overlap(tensor_view<std::int32_t, 2>{ints + 12, {2, 2}, {-4, 1}}, make_view(ints, 2, 4)));
}

TEST_CASE("arguments: more tensors than a call can have are refused, not forgotten") {
  float value[1]{};
  CHECK(refused([&](auto& a) {
          for (int i = 0; i < 25; ++i) a.reads("x", make_view(value, 1));
        }) == "expar: f: more than 24 tensors take part");
}

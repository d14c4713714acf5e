// SPDX-License-Identifier: Apache-2.0
#include <expar/tensor.hpp>

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <expar/context.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using expar::index_t;
using expar::make_view;
using expar::tensor;
using expar::tensor_view;

// Found by its member functions.
class matrix {
 public:
  matrix(int rows, int columns, int pitch)
      : values_(static_cast<std::size_t>(rows * pitch)),
        rows_(rows),
        columns_(columns),
        pitch_(pitch) {}
  static constexpr int rank() { return 2; }
  float* data() { return values_.data(); }
  float const* data() const { return values_.data(); }
  int extent(std::size_t i) const { return i == 0 ? rows_ : columns_; }
  long stride(std::size_t i) const { return i == 0 ? pitch_ : 1; }

 private:
  std::vector<float> values_;
  int rows_, columns_, pitch_;
};

// Found by a specialization: it has no word in common with the library.
struct foreign {
  double* where;
  int h, w;
};

// The shape of std::mdspan.
template <class T>
struct mdspan_like {
  T* pointer;
  std::size_t rows, columns;
  static constexpr std::size_t rank() { return 2; }
  T* data_handle() const { return pointer; }
  int mapping() const { return 0; }
  std::size_t extent(std::size_t i) const { return i == 0 ? rows : columns; }
  std::size_t stride(std::size_t i) const { return i == 0 ? columns : 1; }
};

struct on_device {
  float* where;
};

// A range whose elements no pointer reaches, as of a vector in device memory.
struct remote_vector {
  struct pointer {
    float operator*() const;
  };
  pointer data() const;
  std::size_t size() const;
  float* begin() const;
};
struct not_a_tensor {
  int x;
};

template <int Rank, class T>
auto view_of(T&& t) {
  return expar::detail::as_view<Rank>(expar::host_context{}, t);
}

}  // namespace

template <>
struct expar::tensor_traits<foreign> {
  static auto view(auto& t) { return make_view(t.where, t.h, t.w); }
};
template <>
struct expar::tensor_traits<on_device> {
  static constexpr memory_space space = memory_space::device;
  static auto view(auto& t) { return make_view(t.where, 1, 1); }
};

TEST_CASE("tensor: a view enters kernels by value") {
  using view = tensor_view<float, 2>;
  STATIC_REQUIRE(std::is_trivially_copyable_v<view>);
  STATIC_REQUIRE(std::is_standard_layout_v<view>);
  STATIC_REQUIRE(std::is_aggregate_v<view>);
  STATIC_REQUIRE(sizeof(view) == 5 * sizeof(void*));
  STATIC_REQUIRE(std::is_convertible_v<view, tensor_view<float const, 2>>);
  STATIC_REQUIRE_FALSE(std::is_convertible_v<tensor_view<float const, 2>, view>);
  constexpr view empty{};
  STATIC_REQUIRE(empty.data == nullptr);
  STATIC_REQUIRE(empty.size() == 0);
}

TEST_CASE("tensor: a view finds its elements") {
  float values[24];
  for (int i = 0; i < 24; ++i) values[i] = static_cast<float>(i);
  auto const pitched = make_view(values, 3, 5, 8);
  CHECK(pitched.size() == 15);
  CHECK(pitched.extent(0) == 3);
  CHECK(pitched(2, 4) == 20);
  CHECK(*pitched.row(1) == 8);
  pitched(1, 1) = -1;
  CHECK(values[9] == -1);

  tensor_view<float, 3> const cube{values, {2, 3, 4}, {12, 4, 1}};
  CHECK(cube(1, 2, 3) == 23);
  tensor_view<float const, 3> const frozen = cube;
  CHECK(&frozen(0, 1, 2) == &values[6]);

  tensor_view<float, 2> const backwards{values + 16, {3, 5}, {-8, 1}};
  CHECK(backwards(2, 3) == 3);
}

TEST_CASE("tensor: which types are tensors of which rank") {
  STATIC_REQUIRE(tensor<matrix, 2>);
  STATIC_REQUIRE(tensor<matrix const, 2>);
  STATIC_REQUIRE(tensor<matrix&, 2>);
  STATIC_REQUIRE_FALSE(tensor<matrix, 1>);
  STATIC_REQUIRE(tensor<foreign, 2>);
  STATIC_REQUIRE(tensor<mdspan_like<float>, 2>);
  STATIC_REQUIRE(tensor<mdspan_like<float const> const&, 2>);
  STATIC_REQUIRE(tensor<tensor_view<int, 1>, 1>);
  STATIC_REQUIRE(tensor<tensor_view<int, 2> const, 2>);
  STATIC_REQUIRE_FALSE(tensor<tensor_view<int, 2>, 1>);
  STATIC_REQUIRE(tensor<std::vector<float>, 1>);
  STATIC_REQUIRE(tensor<std::vector<float> const, 1>);
  STATIC_REQUIRE_FALSE(tensor<remote_vector, 1>);
  STATIC_REQUIRE(tensor<std::span<double>, 1>);
  STATIC_REQUIRE(tensor<std::array<int, 3>, 1>);
  STATIC_REQUIRE_FALSE(tensor<std::vector<bool>, 1>);
  STATIC_REQUIRE_FALSE(tensor<std::deque<float>, 1>);
  STATIC_REQUIRE_FALSE(tensor<not_a_tensor, 2>);
  STATIC_REQUIRE_FALSE(tensor<int, 1>);
  STATIC_REQUIRE_FALSE(tensor<float*, 1>);
}

TEST_CASE("tensor: the door gives the view of every model") {
  SECTION("member functions") {
    matrix m(3, 4, 6);
    auto const v = view_of<2>(m);
    STATIC_REQUIRE(std::is_same_v<decltype(v), tensor_view<float, 2> const>);
    CHECK(v.data == m.data());
    CHECK(v.extents[0] == 3);
    CHECK(v.extents[1] == 4);
    CHECK(v.strides[0] == 6);
    CHECK(v.strides[1] == 1);
    matrix const& frozen = m;
    STATIC_REQUIRE(std::is_same_v<decltype(view_of<2>(frozen)), tensor_view<float const, 2>>);
  }
  SECTION("a specialization") {
    double values[6]{};
    foreign f{values, 2, 3};
    CHECK(view_of<2>(f).data == values);
    CHECK(view_of<2>(f).strides[0] == 3);
  }
  SECTION("the shape of an mdspan") {
    int values[6]{};
    mdspan_like<int> const m{values, 3, 2};
    CHECK(view_of<2>(m).extents[0] == 3);
    CHECK(&view_of<2>(m)(2, 1) == values + 5);
  }
  SECTION("ranges") {
    std::vector<float> v(5);
    CHECK(view_of<1>(v).data == v.data());
    CHECK(view_of<1>(v).extents[0] == 5);
    CHECK(view_of<1>(std::span<float>(v).subspan(2)).extents[0] == 3);
    std::vector<float> const& frozen = v;
    STATIC_REQUIRE(std::is_same_v<decltype(view_of<1>(frozen)), tensor_view<float const, 1>>);
    std::array<int, 3> const a{1, 2, 3};
    CHECK(view_of<1>(a)(2) == 3);
  }
  SECTION("a view, by value") {
    float values[4]{};
    CHECK(view_of<2>(make_view(values, 2, 2)).data == values);
  }
}

TEST_CASE("tensor: where the data lives") {
  using expar::memory_space;
  using expar::detail::space_of;
  STATIC_REQUIRE(space_of<matrix>() == memory_space::host);
  STATIC_REQUIRE(space_of<std::vector<int>>() == memory_space::host);
  STATIC_REQUIRE(space_of<tensor_view<int, 1>>() == memory_space::any);
  STATIC_REQUIRE(space_of<on_device>() == memory_space::device);
}

TEST_CASE("tensor: what a view must be to be read") {
  using expar::detail::check_view;
  float values[8]{};
  REQUIRE_NOTHROW(check_view("encode: tokens", make_view(values, 2, 4)));
  REQUIRE_NOTHROW(check_view("encode: tokens", make_view<float>(nullptr, 0, 4)));
  REQUIRE_NOTHROW(check_view("encode: tokens", make_view<float>(nullptr, 4, 0)));
  REQUIRE_NOTHROW(check_view("encode: tokens", tensor_view<float, 2>{values, {4, 1}, {2, 7}}));
  REQUIRE_THROWS_WITH(
      check_view("encode: tokens", make_view(values, -1, 4)),
      "expar: encode: tokens has extent -1 in dimension 0; an extent is at least 0");
  REQUIRE_THROWS_WITH(check_view("encode: tokens", make_view<float>(nullptr, 2, 4)),
                      "expar: encode: tokens has 8 elements but its data is null");
  REQUIRE_THROWS_WITH(check_view("encode: tokens", tensor_view<float, 2>{values, {2, 4}, {1, 2}}),
                      "expar: encode: tokens has stride 2 in its last dimension; it must be "
                      "contiguous there (stride 1)");
}

TEST_CASE("tensor: what a view must be to be written") {
  using expar::detail::check_output;
  float values[8]{};
  REQUIRE_NOTHROW(check_output("decode: out", make_view(values, 2, 3, 4)));
  REQUIRE_NOTHROW(check_output("decode: out", tensor_view<float, 2>{values + 4, {2, 4}, {-4, 1}}));
  REQUIRE_NOTHROW(check_output("decode: out", make_view(values, 1, 8, 0)));
  REQUIRE_NOTHROW(check_output("decode: out", make_view(values, 8)));
  REQUIRE_THROWS_WITH(
      check_output("decode: out", make_view(values, 3, 4, 2)),
      "expar: decode: out has rows of 4 elements only 2 elements apart; rows that are "
      "written must not overlap");
  REQUIRE_THROWS_WITH(
      check_output("decode: out", tensor_view<float, 2>{values, {2, 4}, {-3, 1}}),
      "expar: decode: out has rows of 4 elements only 3 elements apart; rows that are "
      "written must not overlap");
  REQUIRE_THROWS_WITH(check_output("decode: out", make_view<float>(nullptr, 2, 4)),
                      "expar: decode: out has 8 elements but its data is null");
}

TEST_CASE("tensor: an extent that does not fit names both sides") {
  float values[8]{};
  REQUIRE_NOTHROW(
      expar::detail::check_extent("decode: out", make_view(values, 2, 4), 1, 4, "hidden"));
  REQUIRE_THROWS_WITH(
      expar::detail::check_extent("decode: out", make_view(values, 2, 4), 1, 5, "hidden"),
      "expar: decode: out has extent 4 in dimension 1, but hidden is 5");
}

TEST_CASE("tensor: overlap is exact for column blocks of one buffer") {
  using expar::detail::overlap;
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
}

TEST_CASE("tensor: overlap agrees with a map of the bytes") {
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
    bool const said = expar::detail::overlap(a, b);
    shared += truth;
    missed += truth && !said;
    // Of rows with different pitches it only compares the extent.
    mistaken += said && !truth && a.strides[0] == b.strides[0];
  }
  CHECK(shared > 100);
  CHECK(missed == 0);
  CHECK(mistaken == 0);
}

TEST_CASE("tensor: overlap sees views of other elements and backward rows") {
  using expar::detail::overlap;
  alignas(8) unsigned char bytes[64]{};
  auto* const ints = reinterpret_cast<std::int32_t*>(bytes);
  auto* const shorts = reinterpret_cast<std::int16_t*>(bytes);
  CHECK_FALSE(overlap(make_view(ints, 4, 2, 4), make_view(shorts + 4, 4, 4, 8)));
  CHECK(overlap(make_view(ints, 4, 3, 4), make_view(shorts + 4, 4, 4, 8)));
  CHECK(overlap(tensor_view<std::int32_t, 2>{ints + 12, {4, 2}, {-4, 1}}, make_view(ints, 1, 2)));
  CHECK_FALSE(
      overlap(tensor_view<std::int32_t, 2>{ints + 12, {2, 2}, {-4, 1}}, make_view(ints, 2, 4)));
  REQUIRE_THROWS_WITH(
      expar::detail::check_apart("encode: rows", make_view(ints, 2, 4), "tokens",
                                 make_view(ints, 2, 4)),
      "expar: encode: rows overlaps tokens in memory; the operation cannot work in place");
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/tensor.hpp>

#include <array>
#include <concepts>
#include <cstdint>
#include <deque>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <expar/context.hpp>

#include "support/catch.hpp"

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

namespace {

// As Eigen, xtensor and others have it: data() is where a column begins, and begin() knows how far
// its elements stand apart.
struct column {
  float* first;
  std::size_t length, step;

  struct iterator {
    float* at;
    std::ptrdiff_t step;
    float& operator[](std::ptrdiff_t i) const { return at[i * step]; }
  };
  float* data() const { return first; }
  std::size_t size() const { return length; }
  iterator begin() const { return {first, static_cast<std::ptrdiff_t>(step)}; }
};
// Two rows of a pitched matrix, one after the other: no single distance.
struct two_rows {
  float* first;
  struct iterator {
    float* at;
    float& operator[](std::ptrdiff_t i) const { return at[i / 2 * 5 + i % 2]; }
  };
  float* data() const { return first; }
  std::size_t size() const { return 4; }
  iterator begin() const { return {first}; }
};

// A library whose expressions share a base; its vectors also look like ranges.
template <class Derived>
struct expression {};
struct vector_like : expression<vector_like> {
  std::vector<float> values;
  float* data() { return values.data(); }
  float const* data() const { return values.data(); }
  std::size_t size() const { return values.size(); }
  auto begin() { return values.begin(); }
  auto begin() const { return values.begin(); }
};

}  // namespace

template <class T>
requires std::derived_from<T, expression<T>>
struct expar::tensor_traits<T> {
  static auto view(auto& t) {
    return expar::make_view(t.data(), static_cast<index_t>(t.size()), index_t{1});
  }
};
template <class T, std::size_t N>
struct expar::tensor_traits<std::vector<std::array<T, N>>> {
  static auto view(auto& t) {
    return expar::make_view(t.data()->data(), static_cast<index_t>(t.size()), index_t{N});
  }
};

TEST_CASE("tensor: a range is read with the distance at which its elements stand") {
  float values[12]{};
  for (int i = 0; i < 12; ++i) values[i] = static_cast<float>(i);
  auto const v = view_of<1>(column{values + 1, 4, 3});
  CHECK(v.extents[0] == 4);
  CHECK(v.strides[0] == 3);
  CHECK(v(3) == 10);
  CHECK(view_of<1>(column{values, 1, 3}).strides[0] == 1);
  CHECK(view_of<1>(column{values, 0, 3}).extents[0] == 0);
  REQUIRE_THROWS_WITH(view_of<1>(two_rows{values}),
                      "expar: a range of 4 elements that do not stand at one distance from each "
                      "other is no tensor of rank 1");
  auto const backwards = expar::make_strided_view(values + 11, 4, -2);
  CHECK(backwards(3) == 5);
}

TEST_CASE("tensor: what a trait says wins over what a type says of itself") {
  STATIC_REQUIRE(tensor<vector_like, 2>);
  STATIC_REQUIRE_FALSE(tensor<vector_like, 1>);
  std::vector<std::array<double, 3>> rows(2);
  rows[1][2] = 7;
  CHECK(view_of<2>(rows)(1, 2) == 7);
  STATIC_REQUIRE(
      std::is_same_v<decltype(view_of<2>(std::as_const(rows))), tensor_view<double const, 2>>);
}

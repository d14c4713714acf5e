// SPDX-License-Identifier: Apache-2.0
#include <expar/laws/tensor.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <expar/element.hpp>

#include "../support/catch.hpp"

namespace {

using expar::broken_tensor_law;
using expar::index_t;
using expar::make_view;
using expar::tensor_view;

// A tensor that shows whatever a test wants it to show.
struct shown {
  std::function<tensor_view<float, 2>()> writable;
  std::function<tensor_view<float const, 2>()> readable;
};

std::string law_of(shown& t) {
  std::string const law = broken_tensor_law<2>(t);
  return law.empty() ? "none" : law;
}

}  // namespace

template <>
struct expar::tensor_traits<shown> {
  static tensor_view<float, 2> view(shown& t) { return t.writable(); }
  static tensor_view<float const, 2> view(shown const& t) { return t.readable(); }
};

namespace {

struct mutable_only {
  float* where;
};
struct changes_type {
  float* where;
};

}  // namespace

template <>
struct expar::tensor_traits<mutable_only> {
  static tensor_view<float, 1> view(mutable_only& t) { return make_view(t.where, 4); }
};
template <>
struct expar::tensor_traits<changes_type> {
  static tensor_view<float, 1> view(changes_type& t) { return make_view(t.where, 4); }
  static tensor_view<std::int32_t const, 1> view(changes_type const& t) {
    return make_view(reinterpret_cast<std::int32_t const*>(t.where), 4);
  }
};

TEST_CASE("broken_tensor_law: tensors that keep them, and their elements") {
  std::vector<float> values(60);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  auto const before = values;

  CHECK(broken_tensor_law<1>(values) == "");
  std::vector<float> const frozen(5);
  CHECK(broken_tensor_law<1>(frozen) == "");
  std::span<float> span(values);
  CHECK(broken_tensor_law<1>(span) == "");
  std::vector<float> none;
  CHECK(broken_tensor_law<1>(none) == "");
  std::array<std::int32_t, 300> ids{};
  CHECK(broken_tensor_law<1>(ids) == "");
  std::vector<expar::half> halves(1000);
  CHECK(broken_tensor_law<1>(halves) == "");

  auto pitched = make_view(values.data(), 6, 7, 10);
  CHECK(broken_tensor_law<2>(pitched) == "");
  tensor_view<float, 3> cube{values.data(), {3, 4, 5}, {20, 5, 1}};
  CHECK(broken_tensor_law<3>(cube) == "");
  auto column = expar::make_strided_view(values.data() + 3, 6, 10);
  CHECK(broken_tensor_law<1>(column) == "");
  CHECK(broken_tensor_law<1>(column, {6}, [&](index_t i) -> float& {
          return values[static_cast<std::size_t>(3 + 10 * i)];
        }) == "");
  tensor_view<float, 2> backwards{values.data() + 50, {6, 7}, {-10, 1}};
  CHECK(broken_tensor_law<2>(backwards) == "");
  // Rows that are only read may lie on top of each other.
  tensor_view<float const, 2> broadcast{values.data(), {6, 7}, {0, 1}};
  CHECK(broken_tensor_law<2>(broadcast) == "");

  CHECK(values == before);
}

TEST_CASE("broken_tensor_law: each broken law of a tensor is named") {
  std::vector<float> values(100, 1.5f), others(100, 2.5f);
  auto const before = values;
  tensor_view<float, 2> view = make_view(values.data(), 4, 5);
  shown t{[&] { return view; }, [&] { return tensor_view<float const, 2>(view); }};
  REQUIRE(law_of(t) == "none");

  SECTION("steady: a view of a copy that is made anew") {
    std::vector<std::unique_ptr<std::vector<float>>> copies;
    t.writable = [&] {
      copies.push_back(std::make_unique<std::vector<float>>(values));
      return make_view(copies.back()->data(), 4, 5);
    };
    CHECK(law_of(t) == "steady: two views of one tensor show the same data, extents and strides");
  }
  SECTION("const: another place") {
    t.readable = [&] { return tensor_view<float const, 2>(make_view(others.data(), 4, 5)); };
    CHECK(law_of(t) ==
          "const: the view of a const tensor shows the same data, extents and strides");
  }
  SECTION("const: other extents") {
    t.readable = [&] { return tensor_view<float const, 2>(make_view(values.data(), 5, 4)); };
    CHECK(law_of(t) ==
          "const: the view of a const tensor shows the same data, extents and strides");
  }
  SECTION("extents") {
    view.extents[0] = -4;
    CHECK(law_of(t) == "extents: no extent is negative");
  }
  SECTION("data") {
    view.data = nullptr;
    CHECK(law_of(t) == "data: a tensor with elements has an address");
    view.extents[0] = 0;
    CHECK(law_of(t) == "none");
  }
  SECTION("contiguous: columns first") {
    view.strides[0] = 1, view.strides[1] = 4;
    CHECK(law_of(t) == "contiguous: in the last dimension neighbours are 1 element apart");
  }
  SECTION("distinct: rows on top of each other") {
    view.strides[0] = 0;
    CHECK(law_of(t) == "distinct: every index has an element of its own");
    view.strides[0] = 4;
    CHECK(law_of(t) == "distinct: every index has an element of its own");
    view.strides[0] = -3, view.data += 50;
    CHECK(law_of(t) == "distinct: every index has an element of its own");
  }
  SECTION("storage: a view that refreshes its data from elsewhere") {
    t.readable = [&] {
      std::memcpy(values.data(), before.data(), values.size() * sizeof(float));
      return tensor_view<float const, 2>(view);
    };
    CHECK(law_of(t) == "storage: what is written through one view is read through the next");
  }
  CHECK(values == before);
}

TEST_CASE("broken_tensor_law: a const tensor has a view, and of the same elements") {
  float values[4]{};
  mutable_only a{values};
  CHECK(broken_tensor_law<1>(a) == "const: a const tensor has a view, of the same elements");
  changes_type b{values};
  CHECK(broken_tensor_law<1>(b) == "const: a const tensor has a view, of the same elements");
}

namespace {

// A matrix that is copied and has its elements where its strides say; its view says what it likes.
struct sheet {
  std::vector<float> values;
  index_t rows, columns, row_step, column_step;
  tensor_view<float, 2> shows{};

  sheet(index_t r, index_t c, index_t row, index_t column, std::size_t room)
      : values(room), rows(r), columns(c), row_step(row), column_step(column) {
    for (std::size_t i = 0; i < room; ++i) values[i] = static_cast<float>(i + 1);
    shows = tensor_view<float, 2>{values.data(), {r, c}, {row, column}};
  }
  float& at(index_t i, index_t j) {
    return values[static_cast<std::size_t>(i * row_step + j * column_step)];
  }
};

// The answer, which leaves the elements as they were.
std::string law_by_access(sheet& s) {
  auto const before = s.values;
  auto const law = broken_tensor_law<2>(s, {s.rows, s.columns},
                                        [&](index_t i, index_t j) -> float& { return s.at(i, j); });
  CHECK(s.values == before);
  return law;
}

}  // namespace

template <>
struct expar::tensor_traits<sheet> {
  static tensor_view<float, 2> view(sheet& s) { return s.shows; }
  static tensor_view<float const, 2> view(sheet const& s) { return s.shows; }
};

TEST_CASE("broken_tensor_law: a view that shows what the tensor's own access gives") {
  sheet packed(4, 5, 5, 1, 20), pitched(4, 5, 8, 1, 29), column(4, 1, 3, 7, 10),
      none(0, 5, 5, 1, 0);
  for (sheet* s : {&packed, &pitched, &column, &none}) CHECK(law_by_access(*s) == "");

  std::vector<double> const frozen{1, 2, 3};
  CHECK(broken_tensor_law<1>(frozen, {3}, [&](index_t i) -> double const& {
          return frozen[static_cast<std::size_t>(i)];
        }) == "");
  CHECK(broken_tensor_law<1>(frozen, {3}, [&](index_t) -> double const& { return frozen[0]; }) ==
        "elements: view(1) is another element than at(1)");
  bool flags[2][3][4]{};
  tensor_view<bool, 3> cube{&flags[0][0][0], {2, 3, 4}, {12, 4, 1}};
  CHECK(broken_tensor_law<3>(cube, {2, 3, 4}, [&](index_t i, index_t j, index_t k) -> bool& {
          return flags[i][j][k];
        }) == "");
}

// Each tensor fills its memory, so that an element read outside it is found by a sanitizer.
TEST_CASE("broken_tensor_law: a view that shows something else than the tensor's own access") {
  sheet s(4, 5, 5, 1, 20);
  std::string const elsewhere = "elements: view(0, 0) is another element than at(0, 0)";

  SECTION("rows and columns swapped") {
    s.shows = make_view(s.values.data(), 5, 4);
    CHECK(law_by_access(s) == "extents: extent 0 of the view is 5, but 4 of the tensor");
  }
  SECTION("rows and columns of a square swapped") {
    sheet square(4, 4, 1, 4, 16);
    square.shows = make_view(square.values.data(), 4, 4);
    CHECK(law_by_access(square) == "elements: view(0, 1) is another element than at(0, 1)");
  }
  SECTION("extents that are too large") {
    s.shows.extents[1] = 6;
    CHECK(law_by_access(s) == "extents: extent 1 of the view is 6, but 5 of the tensor");
    s.shows.extents[0] = index_t{1} << 40, s.shows.extents[1] = 5;
    CHECK(law_by_access(s) ==
          "extents: extent 0 of the view is 1099511627776, but 4 of the tensor");
    s.shows.extents[1] = index_t{1} << 40;
    CHECK(law_by_access(s) == "extents: an index can count the elements");
  }
  SECTION("an inner stride that is said to be 1") {
    sheet every_other(4, 5, 10, 2, 39);
    every_other.shows.strides[1] = 1;
    CHECK(law_by_access(every_other) == "elements: view(0, 1) is another element than at(0, 1)");
  }
  SECTION("an outer stride that leaves the memory") {
    s.shows.strides[0] = index_t{1} << 60;
    CHECK(broken_tensor_law<2>(s, {4, 5}, [&](index_t i, index_t j) -> float& {
            return s.at(i, j);
          }) == "elements: view(1, 0) is another element than at(1, 0)");
  }
  SECTION("a pointer that is kept through a copy") {
    sheet copy = s;
    CHECK(law_by_access(copy) == elsewhere);
    std::fill(copy.values.begin(), copy.values.end(), 0.0f);
    std::fill(s.values.begin(), s.values.end(), 0.0f);
    CHECK(law_by_access(copy) == elsewhere);  // though each value is the same
  }
  SECTION("one element too far") {
    ++s.shows.data;
    CHECK(law_by_access(s) == elsewhere);
    std::fill(s.values.begin(), s.values.end(), 0.0f);
    CHECK(law_by_access(s) == elsewhere);
  }
  SECTION("one element too early") {
    --s.shows.data;
    CHECK(broken_tensor_law<2>(
              s, {4, 5}, [&](index_t i, index_t j) -> float& { return s.at(i, j); }) == elsewhere);
  }
  SECTION("the laws of the view come first") {
    s.shows.extents[0] = -4;
    CHECK(law_by_access(s) == "extents: no extent is negative");
  }
}

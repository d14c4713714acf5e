// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/eigen.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>

#include <expar/expar.hpp>
#include <expar/laws/tensor.hpp>

#include "support/catch.hpp"

namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using expar::index_t;

template <class M>
std::string matrix_law(M& m) {
  return expar::broken_tensor_law<2>(
      m, {m.rows(), m.cols()},
      [&](index_t i, index_t j) -> decltype(auto) { return m.coeffRef(i, j); });
}
template <class V>
std::string vector_law(V& v) {
  return expar::broken_tensor_law<1>(v, {v.size()},
                                     [&](index_t i) -> decltype(auto) { return v.coeffRef(i); });
}

struct derived : row_major {
  derived() : row_major(3, 2) {}
};

}  // namespace

TEST_CASE("a matrix, an array, a map, a reference and a block of Eigen are tensors of rank 2") {
  row_major m = row_major::Random(6, 5);
  Eigen::Array<std::int64_t, Eigen::Dynamic, 3, Eigen::RowMajor> ids(4, 3);
  ids.setZero();
  Eigen::Matrix<double, 4, 7, Eigen::RowMajor> fixed;
  fixed.setZero();
  float memory[24] = {};
  Eigen::Map<row_major> map(memory, 4, 6);
  Eigen::Map<row_major, 0, Eigen::OuterStride<>> with_pitch(memory, 4, 3, Eigen::OuterStride<>(6));
  Eigen::Ref<row_major, 0, Eigen::OuterStride<>> reference(m);
  auto block = m.block(1, 2, 3, 2);
  auto some = m.middleRows(2, 3);
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic> columns(3, 4);
  columns.setZero();
  auto transposed = columns.transpose();
  derived own;
  row_major empty(0, 5);

  CHECK(matrix_law(m) == "");
  CHECK(matrix_law(ids) == "");
  CHECK(matrix_law(fixed) == "");
  CHECK(matrix_law(map) == "");
  CHECK(matrix_law(with_pitch) == "");
  CHECK(matrix_law(reference) == "");
  CHECK(matrix_law(block) == "");
  CHECK(matrix_law(some) == "");
  CHECK(matrix_law(transposed) == "");
  CHECK(matrix_law(own) == "");
  CHECK(matrix_law(empty) == "");
}

TEST_CASE("a vector of Eigen, a row and a column are tensors of rank 1") {
  row_major m = row_major::Random(6, 5);
  Eigen::VectorXf v(7);
  Eigen::RowVectorXd r(3);
  auto row = m.row(2);
  auto column = m.col(3);
  auto tail = v.tail(3);
  auto diagonal = m.diagonal();
  CHECK(vector_law(v) == "");
  CHECK(vector_law(r) == "");
  CHECK(vector_law(row) == "");
  CHECK(vector_law(column) == "");
  CHECK(vector_law(tail) == "");
  CHECK(vector_law(diagonal) == "");
}

TEST_CASE("what is const in Eigen is const in its view") {
  row_major m(2, 3);
  row_major const& fixed = m;
  Eigen::Map<row_major const> map(m.data(), 2, 3);
  Eigen::Ref<row_major const> const reference(m);
  auto const is_const = [](auto& t) {
    auto const v = expar::tensor_traits<std::remove_cvref_t<decltype(t)>>::view(t);
    return std::is_same_v<decltype(v.data), float const*>;
  };
  CHECK(!is_const(m));
  CHECK(is_const(fixed));
  CHECK(is_const(map));
  CHECK(is_const(reference));
}

TEST_CASE("a map refers to the rows of a view, with their pitch") {
  float memory[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  auto m = expar::eigen::map(expar::make_view(memory, 3, 2, 4));
  CHECK(m.rows() == 3);
  CHECK(m.cols() == 2);
  CHECK(m(2, 1) == 9);
  m.row(1).setConstant(-1);
  CHECK(memory[4] == -1);
  CHECK(memory[6] == 6);
  auto const read = expar::eigen::map(expar::make_view(static_cast<float const*>(memory), 3, 4));
  CHECK(read.sum() == m.sum() + 2 + 3 + 6 + 7 + 10 + 11);
}

TEST_CASE("the 16-bit floats of Eigen widen and round as Eigen says") {
  auto const same = [](float a, float b) {
    return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, sizeof a) == 0;
  };
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    auto const h = Eigen::numext::bit_cast<Eigen::half>(static_cast<std::uint16_t>(bits));
    auto const b = Eigen::numext::bit_cast<Eigen::bfloat16>(static_cast<std::uint16_t>(bits));
    wrong += !same(expar::widen(h), static_cast<float>(h));
    wrong += !same(expar::widen(b), static_cast<float>(b));
    // A float with all patterns above and some below what is rounded away.
    std::uint32_t const wide = bits << 16 | ((bits * 0x9e37u) & 0xffffu);
    float x;
    std::memcpy(&x, &wide, sizeof x);
    if (std::isnan(x)) continue;
    wrong += !same(static_cast<float>(expar::narrow<Eigen::half>(x)),
                   static_cast<float>(static_cast<Eigen::half>(x)));
    wrong += !same(static_cast<float>(expar::narrow<Eigen::bfloat16>(x)),
                   static_cast<float>(static_cast<Eigen::bfloat16>(x)));
  }
  CHECK(wrong == 0);
}

TEST_CASE("rows of Eigen's 16-bit floats go to experts and come back") {
  using narrow_rows = Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, 4, Eigen::RowMajor>;
  expar::host_context const ctx;
  Eigen::Array<int, Eigen::Dynamic, 2, Eigen::RowMajor> ids(5, 2);
  ids << 0, 2, 1, -1, 2, 1, 0, 1, -1, -1;
  row_major weights = row_major::Constant(5, 2, 0.5f), sum(5, 4);
  narrow_rows tokens(5, 4);
  for (int t = 0; t < 5; ++t)
    for (int h = 0; h < 4; ++h) tokens(t, h) = static_cast<Eigen::bfloat16>(t * 4 + h);
  auto const plan = expar::make_plan(ctx, ids, 3);
  narrow_rows moved(plan.rows(), 4);
  expar::encode(ctx, plan, tokens, moved);
  expar::decode(ctx, plan, moved, weights, sum);
  row_major const share = (ids >= 0).cast<float>().rowwise().sum().matrix() * 0.5f;
  CHECK(sum == row_major(share.asDiagonal() * tokens.cast<float>()));
}

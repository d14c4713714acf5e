// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/torch.hpp>

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include <expar/laws/tensor.hpp>

#include "support/catch.hpp"

namespace {

using expar::torch::view;

template <class T, int Rank>
std::string sentence(at::Tensor const& t) {
  try {
    (void)view<T, Rank>(t);
    return "";
  } catch (expar::error const& e) {
    return e.what();
  }
}

}  // namespace

TEST_CASE("a tensor of libtorch is one of its element type and rank") {
  at::Tensor const t = at::rand({3, 4});
  auto v = view<float, 2>(t);
  CHECK(expar::broken_tensor_law<2>(v, {3, 4}, [&](auto i, auto j) -> float& {
          return t.data_ptr<float>()[i * 4 + j];
        }) == "");
  auto const column = view<float const, 1>(t.select(1, 2));
  CHECK(column.data == t.data_ptr<float>() + 2);
  CHECK(column.strides[0] == 4);
  CHECK(view<float, 2>(t.slice(1, 1, 3)).strides[0] == 4);
}

TEST_CASE("a tensor of libtorch that is not what it is said to be is refused") {
  at::Tensor const t = at::zeros({3, 4});
  std::string const of = "expar: torch::view: the tensor ";
  CHECK(sentence<double, 2>(t) == of + "has dtype Float; asked for is Double");
  CHECK(sentence<std::int64_t, 2>(t) == of + "has dtype Float; asked for is Long");
  CHECK(sentence<expar::half, 2>(t) == of + "has dtype Float; asked for is Half");
  CHECK(sentence<float, 1>(t) == of + "has 2 dimensions, not 1");
  CHECK(sentence<float, 2>(t.t()) ==
        of + "has stride 4 in its last dimension; it must be contiguous there: pass its "
             ".contiguous()");
  CHECK(sentence<float, 2>(t.to(at::kMeta)) == of + "lives on meta; here the CPU works");
  CHECK(sentence<float, 2>(t.to_sparse()) == of + "is not dense");
  CHECK(sentence<float, 2>(at::imag(at::complex(t, t).conj())) ==
        of + "is the negative of what lies in memory; pass its .resolve_neg()");
  CHECK(sentence<float, 2>(at::Tensor()) == of + "is undefined");
}

TEST_CASE("the 16-bit floats of libtorch widen and round as libtorch says") {
  auto const same = [](float a, float b) {
    return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, sizeof a) == 0;
  };
  at::Tensor const codes = at::arange(-0x8000, 0x8000).to(at::kShort);
  at::Tensor const h = codes.view(at::kHalf), b = codes.view(at::kBFloat16);
  at::Tensor const wide_h = h.to(at::kFloat), wide_b = b.to(at::kFloat);
  at::Tensor const x = at::cat({at::randn(30000) * 1e-6, at::randn(30000) * 1e4});
  at::Tensor const narrow_h = x.to(at::kHalf), narrow_b = x.to(at::kBFloat16);
  int wrong = 0;
  for (int i = 0; i < 0x10000; ++i) {
    wrong += !same(expar::widen(view<c10::Half, 1>(h)(i)), view<float, 1>(wide_h)(i));
    wrong += !same(expar::widen(view<c10::BFloat16, 1>(b)(i)), view<float, 1>(wide_b)(i));
    wrong += !same(expar::widen(view<expar::half, 1>(h)(i)), view<float, 1>(wide_h)(i));
  }
  for (int i = 0; i < 60000; ++i) {
    float const value = view<float, 1>(x)(i);
    wrong += expar::narrow<c10::Half>(value).x != view<c10::Half, 1>(narrow_h)(i).x;
    wrong += expar::narrow<c10::BFloat16>(value).x != view<c10::BFloat16, 1>(narrow_b)(i).x;
  }
  CHECK(wrong == 0);
}

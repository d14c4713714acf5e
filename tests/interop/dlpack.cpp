// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/dlpack.hpp>

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include <expar/expar.hpp>
#include <expar/laws/tensor.hpp>

#include "support/catch.hpp"

namespace {

using expar::memory_space;
using expar::dlpack::view;

/// What another library would hand over: its own memory, described by DLPack.
template <class T>
struct foreign {
  foreign(std::int64_t rows, std::int64_t columns)
      : shape{rows, columns}, values(static_cast<std::size_t>(rows * columns)) {}
  operator DLTensor() {
    return {values.data(), device, 2, expar::dlpack::type<T>, shape, strides, 0};
  }
  T& operator()(std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(i * shape[1] + j)];
  }

  std::int64_t shape[2];
  std::int64_t* strides = nullptr;
  DLDevice device{kDLCPU, 0};
  std::vector<T> values;
};

template <class T, int Rank, memory_space Space = memory_space::host>
std::string sentence(DLTensor const& t) {
  try {
    view<T, Rank, Space> const v(t);
    return "";
  } catch (expar::error const& e) {
    return e.what();
  }
}

}  // namespace

TEST_CASE("a tensor of DLPack is one of its element type and rank") {
  foreign<double> f(3, 4);
  view<double, 2> v(f);
  CHECK(expar::broken_tensor_law<2>(v, {3, 4},
                                    [&](auto i, auto j) -> double& { return f(i, j); }) == "");
  STATIC_REQUIRE(expar::tensor<view<float, 2>, 2>);
  STATIC_REQUIRE(!expar::tensor<view<float, 2>, 1>);
}

TEST_CASE("strides, an offset and the tensor inside a managed one are followed") {
  foreign<float> f(4, 6);
  std::iota(f.values.begin(), f.values.end(), 0.0f);
  std::int64_t shape[] = {2, 3}, strides[] = {12, 1};
  DLManagedTensor managed{f, nullptr, nullptr};
  managed.dl_tensor.shape = shape, managed.dl_tensor.strides = strides;
  managed.dl_tensor.byte_offset = 8 * sizeof(float);
  view<float const, 2> const v(managed);
  CHECK(v(0, 0) == 8);
  CHECK(v(1, 2) == 22);
  std::int64_t column_shape[] = {4}, column_stride[] = {6};
  DLTensor const column{f.values.data(), {kDLCPU, 0},   1, expar::dlpack::type<float>,
                        column_shape,    column_stride, 4};
  CHECK(view<float, 1>(column)(3) == 19);
}

TEST_CASE("a tensor of DLPack without elements needs no memory") {
  foreign<float> f(0, 4);
  DLTensor t = f;
  t.data = nullptr, t.byte_offset = 64;
  view<float, 2> const v(t);
  CHECK(v.data == nullptr);
  CHECK(v.size() == 0);
}

TEST_CASE("a tensor of DLPack of another type is refused") {
  foreign<float> f(2, 2);
  std::string const text =
      "expar: dlpack::view: the tensor has a type of code 2, 32 bits and 1 lanes; asked for are ";
  CHECK(sentence<float, 2>(f) == "");
  CHECK(sentence<float const, 2>(f) == "");
  CHECK(sentence<double, 2>(f) == text + "code 2, 64 bits and 1 lanes");
  CHECK(sentence<std::int32_t, 2>(f) == text + "code 0, 32 bits and 1 lanes");
  CHECK(sentence<std::uint8_t, 2>(f) == text + "code 1, 8 bits and 1 lanes");
  CHECK(sentence<expar::bfloat16, 2>(f) == text + "code 4, 16 bits and 1 lanes");
  CHECK(sentence<expar::half, 2>(f) == text + "code 2, 16 bits and 1 lanes");
  DLTensor vectors = f;
  vectors.dtype.lanes = 4;
  CHECK(sentence<float, 2>(vectors) ==
        "expar: dlpack::view: the tensor has a type of code 2, 32 bits and 4 lanes; asked for are "
        "code 2, 32 bits and 1 lanes");
}

TEST_CASE("a tensor of DLPack of another rank is refused") {
  CHECK(sentence<float, 1>(foreign<float>(2, 2)) ==
        "expar: dlpack::view: the tensor has 2 dimensions, not 1");
}

TEST_CASE("a tensor of DLPack in other memory is refused") {
  auto const on = [](DLDeviceType where) {
    foreign<float> f(2, 2);
    f.device.device_type = where;
    return std::pair{sentence<float, 2>(f), sentence<float, 2, memory_space::device>(f)};
  };
  using both = std::pair<std::string, std::string>;
  std::string const text = "expar: dlpack::view: the tensor is on a device of type ";
  std::string const not_host = ", whose memory is not that of the host";
  std::string const not_device = ", whose memory is not that of the device";
  CHECK(on(kDLCPU) == both{"", text + "1" + not_device});
  CHECK(on(kDLCUDA) == both{text + "2" + not_host, ""});
  CHECK(on(kDLCUDAHost) == both{});
  CHECK(on(kDLCUDAManaged) == both{});
  CHECK(on(kDLROCM) == both{text + "10" + not_host, text + "10" + not_device});
}

TEST_CASE("a tensor of DLPack says in which memory it is") {
  STATIC_REQUIRE(expar::tensor_traits<view<float, 2>>::space == memory_space::host);
  STATIC_REQUIRE(expar::tensor_traits<view<float, 2, memory_space::device>>::space ==
                 memory_space::device);
}

TEST_CASE("a layer over tensors of DLPack, forward and backward") {
  foreign<float> x(3, 2), out(3, 2), d_x(3, 2), d_weights(3, 2);
  foreign<float> weights(3, 2);
  foreign<std::int64_t> ids(3, 2);
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 2; ++j) {
      x(t, j) = static_cast<float>(t + 1);
      ids(t, j) = (t + j) % 3;
      weights(t, j) = 0.5f;
    }
  struct {
    view<std::int64_t const, 2> ids;
    view<float const, 2> weights;
  } const routes{view<std::int64_t const, 2>(ids), view<float const, 2>(weights)};

  expar::host_context const ctx;
  expar::self_communicator const comm;
  expar::expert_parallel moe(comm, {.experts = 3, .top_k = 2, .hidden = 2});
  auto batch = moe.dispatch(ctx, view<float const, 2>(x), routes);
  std::vector<float> d_y(static_cast<std::size_t>(batch.rows().size()));
  auto const d_rows = expar::make_view(d_y.data(), batch.row_count(), 2);
  moe.combine(ctx, batch, batch.rows(), view<float, 2>(out));  // every expert is the identity
  moe.combine_backward(ctx, batch, view<float const, 2>(out), batch.rows(), d_rows,
                       view<float, 2>(d_weights));
  moe.dispatch_backward(ctx, batch, d_rows, view<float, 2>(d_x));

  CHECK(out.values == x.values);
  CHECK(d_x.values == x.values);
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 2; ++j) CHECK(d_weights(t, j) == static_cast<float>(2 * (t + 1) * (t + 1)));
}

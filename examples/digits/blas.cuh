// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include <expar/tensor.hpp>

#if defined(DIGITS_WITH_CUBLAS)
#include <cublas_v2.h>
#endif

namespace digits {

using expar::tensor_view;
using row_view = tensor_view<float const, 2>;

#if defined(DIGITS_WITH_CUBLAS)

/// Products of packed matrices on cuBLAS, where it runs.
class blas {
 public:
  explicit blas(cudaStream_t stream) {
    if (cublasCreate(&handle_) != CUBLAS_STATUS_SUCCESS) handle_ = nullptr;
    if (handle_ != nullptr) check(cublasSetStream(handle_, stream), "cublasSetStream");
  }
  blas(blas const&) = delete;
  ~blas() {
    if (handle_ != nullptr) cublasDestroy(handle_);
  }
  explicit operator bool() const { return handle_ != nullptr; }
  std::string name() const { return *this ? "cuBLAS" : "a plain kernel"; }

  // cuBLAS sees matrices by columns, so every product is that of the transposed.

  /// y [n,out] = x [n,in] weight [in,out].
  void forward(row_view x, row_view weight, tensor_view<float, 2> y) const {
    multiply(CUBLAS_OP_N, CUBLAS_OP_N, weight, x, y, weight.extents[0]);
  }
  /// dx [n,in] = dy [n,out] weight transposed.
  void backward(row_view dy, row_view weight, tensor_view<float, 2> dx) const {
    multiply(CUBLAS_OP_T, CUBLAS_OP_N, weight, dy, dx, weight.extents[1]);
  }
  /// gradient [in,out] = x transposed dy.
  void gradient(row_view x, row_view dy, tensor_view<float, 2> out) const {
    multiply(CUBLAS_OP_N, CUBLAS_OP_T, dy, x, out, x.extents[0]);
  }

 private:
  static void check(cublasStatus_t code, char const* call) {
    if (code != CUBLAS_STATUS_SUCCESS)
      throw std::runtime_error(std::string(call) + " gave status " + std::to_string(code));
  }
  void multiply(cublasOperation_t left, cublasOperation_t right, row_view a, row_view b,
                tensor_view<float, 2> out, expar::index_t inner) const {
    float const one = 1, zero = 0;
    auto const n = [](expar::index_t i) { return static_cast<int>(i); };
    check(cublasSgemm(handle_, left, right, n(out.extents[1]), n(out.extents[0]), n(inner), &one,
                      a.data, n(a.strides[0]), b.data, n(b.strides[0]), &zero, out.data,
                      n(out.strides[0])),
          "cublasSgemm");
  }

  cublasHandle_t handle_ = nullptr;
};

#else

class blas {
 public:
  explicit blas(cudaStream_t) {}
  explicit operator bool() const { return false; }
  std::string name() const { return "a plain kernel"; }
  void forward(row_view, row_view, tensor_view<float, 2>) const {}
  void backward(row_view, row_view, tensor_view<float, 2>) const {}
  void gradient(row_view, row_view, tensor_view<float, 2>) const {}
};

#endif

}  // namespace digits

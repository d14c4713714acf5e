// SPDX-License-Identifier: Apache-2.0
// GShard's dense dispatch and combine: masks [experts * capacity, tokens] and a GEMM of a BLAS. No
// token is dropped: the capacity is what the fullest expert needs. Masks are there before.
#pragma once

#include <cblas.h>

#include <vector>

#include <expar/plan/plan.hpp>

namespace peers {

using expar::index_t;

class dense {
 public:
  dense(expar::route_plan const& plan, float const* weights, index_t hidden)
      : tokens_(plan.tokens()), hidden_(hidden), capacity_(plan.needed_capacity()) {
    slots_ = plan.experts() * capacity_;
    dispatch_.resize(static_cast<std::size_t>(slots_ * tokens_));
    combine_.resize(dispatch_.size());
    for (index_t t = 0; t < tokens_; ++t)
      for (int j = 0; j < plan.top_k(); ++j) {
        auto const at = static_cast<std::size_t>(slot(plan, t, j) * tokens_ + t);
        dispatch_[at] = 1, combine_[at] = weights[t * plan.top_k() + j];
      }
  }
  index_t slots() const { return slots_; }
  /// The row of a route among [experts, capacity].
  index_t slot(expar::route_plan const& plan, index_t t, int j) const {
    return plan.ids()(t, index_t{j}) * capacity_ + plan.locations()(t, index_t{j});
  }

  /// rows [slots, hidden] = mask x tokens
  void encode(float const* x, float* rows) const {
    multiply(CblasNoTrans, slots_, tokens_, dispatch_.data(), x, rows);
  }
  /// out [tokens, hidden] = transposed weighted mask x rows
  void decode(float const* rows, float* out) const {
    multiply(CblasTrans, tokens_, slots_, combine_.data(), rows, out);
  }

 private:
  void multiply(CBLAS_TRANSPOSE op, index_t m, index_t k, float const* mask, float const* in,
                float* out) const {
    auto const n = static_cast<blasint>(hidden_);
    cblas_sgemm(CblasRowMajor, op, CblasNoTrans, static_cast<blasint>(m), n,
                static_cast<blasint>(k), 1, mask, static_cast<blasint>(tokens_), in, n, 0, out, n);
  }
  index_t tokens_, hidden_, capacity_, slots_;
  std::vector<float> dispatch_, combine_;
};

}  // namespace peers

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// A tensor of which some tokens are left out: `only(valid, logits)` stands where an operation
/// takes a tensor of tokens and says so.
///   valid: [T] of bool or std::uint8_t; a token whose mark is 0 takes no part
/// Copies no elements: holds views, and refers to tensors of other types.
template <class Valid, class Tensor>
struct only {
  detail::held<Valid const> valid;
  detail::held<Tensor> tensor;

  constexpr only(Valid const& marks, Tensor& of) : valid(marks), tensor(of) {}
};
template <class Valid, class Tensor>
only(Valid const&, Tensor const&) -> only<Valid, Tensor const>;

}  // namespace expar::inline v0

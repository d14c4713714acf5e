// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// A gradient that is added to what a tensor holds: `add_to(d_logits)` stands where an adjoint
/// writes a gradient. Without it every adjoint overwrites, so the call shows what is kept:
///   route_backward(ctx, router, logits, routes, d_weights, d_logits);      // d_logits = ...
///   z_loss_backward(ctx, logits, options, add_to(d_logits));               // d_logits += ...
/// The sum is made in the accumulator of the tensor's elements and rounded once. Copies no
/// elements: holds a view, and refers to a tensor of another type.
template <class Tensor>
struct add_to {
  detail::held<Tensor> tensor;

  constexpr explicit add_to(Tensor& to) : tensor(to) {}
};
template <class Tensor>
add_to(Tensor const&) -> add_to<Tensor const>;

}  // namespace expar::inline v0

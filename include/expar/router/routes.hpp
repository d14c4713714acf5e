// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory_resource>
#include <type_traits>
#include <utility>

#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// What operations accept as routes: anything with a tensor `ids` [T,k] of a signed integer type,
/// on a device std::int32_t (-1: no expert), and a tensor `weights` [T,k], the j-th choice of each
/// token in column j.
template <class R>
concept routes_like = requires(std::remove_reference_t<R>& r) {
  requires tensor<decltype((r.ids)), 2>;
  requires tensor<decltype((r.weights)), 2>;
};

/// Routes in memory of the caller.
template <class W>
struct routes_view {
  tensor_view<std::int32_t, 2> ids;
  tensor_view<W, 2> weights;
};
template <class W>
routes_view(tensor_view<std::int32_t, 2>, tensor_view<W, 2>) -> routes_view<W>;

/// Routes that own their memory. No expert and weight 0 everywhere until somebody writes them.
template <class W = float>
class routes {
  static_assert(element<W>, "expar: the weights of routes are an element type; see element_traits");

 public:
  explicit routes(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : id_buffer_(memory), weight_buffer_(memory) {}
  routes(index_t tokens, int top_k,
         std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : routes(memory) {
    resize(tokens, top_k);
  }
  routes(routes&& other) noexcept
      : ids(std::exchange(other.ids, {})),
        weights(std::exchange(other.weights, {})),
        id_buffer_(std::move(other.id_buffer_)),
        weight_buffer_(std::move(other.weight_buffer_)) {}
  routes& operator=(routes&& other) noexcept {
    std::swap(ids, other.ids);
    std::swap(weights, other.weights);
    std::swap(id_buffer_, other.id_buffer_);
    std::swap(weight_buffer_, other.weight_buffer_);
    return *this;
  }

  /// Another shape, and no expert anywhere. Allocates only to hold more routes than ever before.
  void resize(index_t tokens, int top_k) {
    detail::expects(tokens >= 0, "routes: tokens is ", tokens, "; it is at least 0");
    detail::expects(top_k >= 0, "routes: top_k is ", top_k, "; it is at least 0");
    index_t count = 0;
    detail::expects(!__builtin_mul_overflow(tokens, index_t{top_k}, &count), "routes: ", tokens,
                    " tokens of ", top_k, " choices are more than memory can hold");
    auto const n = static_cast<std::size_t>(count);
    ids = {}, weights = {};
    std::int32_t* const id_data = id_buffer_.assign(n, -1);
    W* const weight_data = weight_buffer_.assign(n, narrow<W>(0));
    ids = make_view(id_data, tokens, index_t{top_k});
    weights = make_view(weight_data, tokens, index_t{top_k});
  }

  tensor_view<std::int32_t, 2> ids{};
  tensor_view<W, 2> weights{};

 private:
  detail::buffer<std::int32_t> id_buffer_;
  detail::buffer<W> weight_buffer_;
};

}  // namespace expar::inline v0

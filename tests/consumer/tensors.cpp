// SPDX-License-Identifier: Apache-2.0
// One layer, forward and backward, over tensors that have nothing in common: the same bits.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <expar/expar.hpp>
#ifdef WITH_EIGEN
#include <expar/interop/eigen.hpp>
#endif

namespace mine {

/// Every row is a std::array.
template <class T, std::size_t Columns>
class arrays {
 public:
  explicit arrays(std::size_t n) : rows(n) {}
  T& operator()(std::size_t i, std::size_t j) { return rows[i][j]; }

  std::vector<std::array<T, Columns>> rows;
};

/// Speaks data(), rank(), extent(i) and stride(i); its rows have a pitch.
template <class T, std::size_t Columns>
class strided {
 public:
  explicit strided(std::size_t n) : rows_(n), values_(n * pitch) {}
  T& operator()(std::size_t i, std::size_t j) { return values_[i * pitch + j]; }

  static constexpr int rank() { return 2; }
  std::size_t extent(std::size_t i) const { return i == 0 ? rows_ : Columns; }
  std::size_t stride(std::size_t i) const { return i == 0 ? pitch : 1; }
  T* data() { return values_.data(); }
  T const* data() const { return values_.data(); }

 private:
  static constexpr std::size_t pitch = Columns + 3;
  std::size_t rows_;
  std::vector<T> values_;
};

/// Speaks what every mdspan speaks.
template <class T, std::size_t Columns>
class mdspan_shaped {
 public:
  explicit mdspan_shaped(std::size_t n) : rows_(n), values_(n * Columns) {}
  T& operator()(std::size_t i, std::size_t j) { return values_[i * Columns + j]; }

  static constexpr std::size_t rank() noexcept { return 2; }
  std::size_t extent(std::size_t i) const { return i == 0 ? rows_ : Columns; }
  std::size_t stride(std::size_t i) const { return i == 0 ? Columns : 1; }
  T* data_handle() { return values_.data(); }
  T const* data_handle() const { return values_.data(); }
  mdspan_shaped const& mapping() const { return *this; }

 private:
  std::size_t rows_;
  std::vector<T> values_;
};

#ifdef WITH_EIGEN
template <class T, std::size_t Columns>
struct eigen : Eigen::Matrix<T, Eigen::Dynamic, static_cast<int>(Columns), Eigen::RowMajor> {
  explicit eigen(std::size_t n) { this->resize(static_cast<Eigen::Index>(n), Eigen::NoChange); }
  T& operator()(std::size_t i, std::size_t j) {
    return this->coeffRef(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(j));
  }
};
#endif

constexpr int experts = 5, top_k = 2, hidden = 7;
constexpr std::size_t tokens = 9;

template <template <class, std::size_t> class Tensor>
struct choices {
  Tensor<std::int32_t, top_k> ids{tokens};
  Tensor<float, top_k> weights{tokens};
};

/// The output and the gradient of the logits, as bits.
template <template <class, std::size_t> class Tensor>
std::vector<std::uint32_t> layer() {
  expar::host_context const ctx;
  expar::self_communicator const comm;
  Tensor<float, hidden> x(tokens), out(tokens), d_x(tokens);
  Tensor<float, experts> logits(tokens), d_logits(tokens);
  Tensor<float, top_k> d_weights(tokens);
  choices<Tensor> routes;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t e = 0; e < experts; ++e)
      logits(t, e) = static_cast<float>((t * 7 + e * 3) % 11) / 4;
    for (std::size_t h = 0; h < hidden; ++h) x(t, h) = static_cast<float>((t + 5 * h) % 13) / 8;
  }

  expar::router const router({.experts = experts, .top_k = top_k}, expar::softmax_score{},
                             expar::score_key{}, expar::renormalize{});
  expar::route(ctx, router, logits, routes);
  expar::expert_parallel moe(comm, {.experts = experts, .top_k = top_k, .hidden = hidden});
  auto batch = moe.dispatch(ctx, x, routes);
  auto const rows = static_cast<std::size_t>(batch.row_count());
  Tensor<float, hidden> y(rows), d_y(rows);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t h = 0; h < hidden; ++h)
      y(i, h) = batch.rows().data[i * hidden + h] * static_cast<float>(h + 1);
  moe.combine(ctx, batch, y, out);
  moe.combine_backward(ctx, batch, out, y, d_y, d_weights);
  moe.dispatch_backward(ctx, batch, d_y, d_x);
  expar::route_backward(ctx, router, logits, routes, d_weights, d_logits);

  std::vector<std::uint32_t> bits;
  auto const keep = [&bits](float value) {
    bits.push_back(0);
    std::memcpy(&bits.back(), &value, sizeof value);
  };
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < hidden; ++h) keep(out(t, h)), keep(d_x(t, h));
    for (std::size_t e = 0; e < experts; ++e) keep(d_logits(t, e));
  }
  return bits;
}

}  // namespace mine

template <class T, std::size_t Columns>
struct expar::tensor_traits<mine::arrays<T, Columns>> {
  static auto view(auto& a) {
    return expar::make_view(a.rows.empty() ? nullptr : a.rows.front().data(),
                            static_cast<expar::index_t>(a.rows.size()),
                            static_cast<expar::index_t>(Columns));
  }
};

int main() {
  auto const bits = mine::layer<mine::arrays>();
  bool same = bits == mine::layer<mine::strided>() && bits == mine::layer<mine::mdspan_shaped>();
#ifdef WITH_EIGEN
  same = same && bits == mine::layer<mine::eigen>();
  std::printf("Eigen's too: ");
#endif
  std::printf("%s\n", same ? "the same bits for every tensor" : "other bits for another tensor");
  return same ? 0 : 1;
}

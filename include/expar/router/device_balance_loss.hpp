// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/load_balance_loss.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class View>
void check_devices(char const* op, View const& device_of, index_t experts, index_t devices) {
  static_assert(std::is_same_v<element_of<View>, std::int32_t>,
                "expar: device numbers are std::int32_t");
  argument const what(op, "device_of");
  check_view(what, device_of);
  check_extent(what, device_of, 0, experts, "the number of experts");
  for (index_t e = 0; e < experts; ++e)
    expects(device_of.data[e] >= 0 && device_of.data[e] < devices, op, ": device_of(", e, ") is ",
            device_of.data[e], "; devices are 0 to ", devices - 1);
}

}  // namespace detail

struct count_device_routes_fn {
  template <class Counts, class DeviceOf, class DeviceCounts>
  void operator()(host_context const& ctx, Counts const& counts, DeviceOf const& device_of,
                  DeviceCounts&& device_counts) const {
    auto const n = detail::as_view<1>(ctx, counts);
    auto const of = detail::as_view<1>(ctx, device_of);
    auto const d = detail::as_output<1>(ctx, device_counts);
    detail::check_counts("count_device_routes: counts", n);
    detail::check_counts("count_device_routes: device_counts", d);
    detail::check_devices("count_device_routes", of, n.extents[0], d.extents[0]);
    using Count = detail::element_of<decltype(d)>;
    detail::buffer<index_t> sums(ctx.memory());
    sums.assign(static_cast<std::size_t>(d.extents[0]), 0);
    for (index_t e = 0; e < n.extents[0]; ++e)
      detail::add_count("count_device_routes: counts", e, n(e), sums[of(e)]);
    for (index_t const sum : sums) detail::check_countable<Count>("count_device_routes", sum);
    for (index_t i = 0; i < d.extents[0]; ++i) d(i) = static_cast<Count>(sums[i]);
  }
};
/// How many routes go to each device: count_device_routes(ctx, counts, device_of, device_counts)
/// adds up counts [experts], see count_choices, by the device of each expert.
///   device_of: [experts] std::int32_t
///   device_counts: [devices] integers, overwritten
inline constexpr count_device_routes_fn count_device_routes{};

struct count_device_tokens_fn {
  template <class Ids, class DeviceOf, class DeviceCounts>
  void operator()(host_context const& ctx, Ids const& ids, DeviceOf const& device_of,
                  DeviceCounts&& device_counts) const {
    (*this)(ctx, ids, device_of, detail::every_token{}, device_counts);
  }
  template <class Ids, class DeviceOf, class Valid, class DeviceCounts>
  void operator()(host_context const& ctx, Ids const& ids, DeviceOf const& device_of,
                  Valid const& valid, DeviceCounts&& device_counts) const {
    constexpr char const* op = "count_device_tokens";
    auto const i = detail::as_view<2>(ctx, ids);
    auto const of = detail::as_view<1>(ctx, device_of);
    auto const d = detail::as_output<1>(ctx, device_counts);
    index_t const tokens = i.extents[0], k = i.extents[1], experts = of.extents[0];
    detail::check_counts(detail::argument(op, "device_counts"), d);
    detail::check_devices(op, of, experts, d.extents[0]);
    detail::check_view(detail::argument(op, "ids"), i);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, tokens);
    using Count = detail::element_of<decltype(d)>;
    if (k > 0) detail::check_leading_ids<Count>(op, i, k, experts, marks);
    detail::buffer<index_t> last(ctx.memory());  // the last token that went to the device
    last.assign(static_cast<std::size_t>(d.extents[0]), -1);
    std::fill_n(d.data, d.extents[0], Count{});
    for (index_t t = 0; t < tokens; ++t)
      for (index_t j = 0; marks(t) && j < k; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0) {
          std::int32_t const device = of.data[id];
          if (last[device] != t) ++d.data[device];
          last[device] = t;
        }
  }
};
/// How many tokens go to each device, each once however many of its experts it takes:
/// count_device_tokens(ctx, ids, device_of, [valid,] device_counts).
///   ids: [T,k] std::int32_t, -1 = no expert
///   device_of: [experts] std::int32_t
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
///   device_counts: [devices] integers, overwritten. They add up over ranks
/// Cost: one pass, on the caller's thread.
inline constexpr count_device_tokens_fn count_device_tokens{};

namespace detail {

template <class Score, class T, class DeviceOf, class Counts, class Valid>
score_sum<Score> make_device_term(char const* op, host_context const& ctx, Score const& score,
                                  tensor_view<T, 2> logits, DeviceOf const& device_of,
                                  Counts const& device_counts, Valid valid,
                                  load_balance_options const& o, buffer<double>& slopes) {
  auto const of = as_view<1>(ctx, device_of);
  auto const n = as_view<1>(ctx, device_counts);
  check_loss_logits(argument(op, "logits"), logits);
  check_counts(argument(op, "device_counts"), n);
  index_t const experts = logits.extents[1], devices = n.extents[0];
  check_devices(op, of, experts, devices);
  check_balance_options(op, o);
  check_score(op, score, experts, logits.extents[0]);
  slopes.assign(static_cast<std::size_t>(std::max(experts, devices)), 0);
  for (index_t e = 0; e < experts; ++e) ++slopes[of.data[e]];
  for (index_t d = 0; d < devices; ++d)
    expects(slopes[d] * static_cast<double>(devices) == static_cast<double>(experts), op,
            ": device ", d, " has ", slopes[d], " of the ", experts, " experts, but there are ",
            devices, " devices, each of which has as many");
  double const unit = balance_unit(o, devices, logits.extents[0], valid);
  for (index_t e = 0; e < experts; ++e) slopes[e] = unit * static_cast<double>(n.data[of.data[e]]);
  return {score, slopes.data(), static_cast<int>(experts)};
}

}  // namespace detail

struct device_balance_loss_fn {
  template <score_policy Score, class Logits, class DeviceOf, class Counts>
  double operator()(host_context const& ctx, Score const& score, Logits const& logits,
                    DeviceOf const& device_of, Counts const& device_counts,
                    load_balance_options const& options) const {
    return (*this)(ctx, score, logits, device_of, device_counts, detail::every_token{}, options);
  }
  template <score_policy Score, class Logits, class DeviceOf, class Counts, class Valid>
  double operator()(host_context const& ctx, Score const& score, Logits const& logits,
                    DeviceOf const& device_of, Counts const& device_counts, Valid const& valid,
                    load_balance_options const& options) const {
    constexpr char const* op = "device_balance_loss";
    auto const z = detail::as_view<2>(ctx, logits);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::buffer<double> slopes(ctx.memory());
    auto const term = detail::make_device_term(op, ctx, score, z, device_of, device_counts, marks,
                                               options, slopes);
    return detail::sum_over_tokens(ctx, z, marks, term);
  }
};
/// The balancing losses over devices of DeepSeek-V2 (arXiv:2405.04434, eq. 26 to 31),
///   L = coefficient * devices * sum over d of f[d] * P[d],
///   f[d] = device_counts[d] / (counted_tokens * choices),
///   P[d] = sum over the experts e of d of the mean over tokens of q[e],
/// as device_balance_loss(ctx, score, logits, device_of, device_counts, [valid,] options):
///   device-level          device_counts by count_device_routes, choices = k
///   communication-level   device_counts by count_device_tokens, choices = the most devices to
///                         which a token may go
///   score: makes q of a token's logits; softmax_score for DeepSeek-V2
///   logits: [T, experts], any element type, after the transforms of the router; NaN and -inf have
///           q = 0
///   device_of: [experts] std::int32_t; every device has as many experts
///   device_counts: [devices] integers. They have no gradient
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
/// Returns this call's part: the sum over its tokens, divided by options.tokens. For any
/// probabilities it is the coefficient if the load is uniform.
inline constexpr device_balance_loss_fn device_balance_loss{};

struct device_balance_loss_backward_fn {
  template <score_policy Score, class Logits, class DeviceOf, class Counts, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  DeviceOf const& device_of, Counts const& device_counts,
                  load_balance_options const& options, DLogits&& d_logits) const {
    (*this)(ctx, score, logits, device_of, device_counts, detail::every_token{}, options, d_logits);
  }
  template <score_policy Score, class Logits, class DeviceOf, class Counts, class Valid,
            class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  DeviceOf const& device_of, Counts const& device_counts, Valid const& valid,
                  load_balance_options const& options, DLogits&& d_logits) const {
    constexpr char const* op = "device_balance_loss_backward";
    auto const z = detail::as_view<2>(ctx, logits);
    auto const dz = detail::as_output<2>(ctx, d_logits);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::buffer<double> slopes(ctx.memory());
    auto const term = detail::make_device_term(op, ctx, score, z, device_of, device_counts, marks,
                                               options, slopes);
    detail::check_loss_gradient(detail::argument(op, "d_logits"), z, dz);
    detail::add_gradients(ctx, z, marks, term, dz);
  }
};
/// ADDS the gradient of device_balance_loss() to d_logits [T, experts]; the last argument, after
/// those of the loss. Tokens that are not valid stay as they are.
inline constexpr device_balance_loss_backward_fn device_balance_loss_backward{};

}  // namespace expar::inline v0

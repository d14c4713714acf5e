// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/load_balance_loss.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>

namespace expar::inline v0 {
namespace detail {

/// The device of each expert: the view, and a check of what is in it.
template <class DeviceOf>
auto read_devices(arguments<host_context>& a, DeviceOf const& device_of, rules fits = {}) {
  auto const of = a.read_any_vector("device_of", device_of, fits);
  static_assert(std::is_same_v<element_of<decltype(of)>, std::int32_t>,
                "expar: device numbers are std::int32_t");
  return of;
}
inline void check_devices(char const* op, tensor_view<std::int32_t const, 1> const& device_of,
                          index_t devices) {
  for (index_t e = 0; e < device_of.extents[0]; ++e)
    expects(device_of(e) >= 0 && device_of(e) < devices, op, ": device_of(", e, ") is ",
            device_of(e), "; devices are 0 to ", devices - 1);
}

}  // namespace detail

struct count_device_routes_fn {
  template <class Counts, class DeviceOf, class DeviceCounts>
  void operator()(host_context const& ctx, Counts const& counts, DeviceOf const& device_of,
                  DeviceCounts&& device_counts) const {
    detail::arguments a(ctx, "count_device_routes");
    auto const n = detail::as_counts(a.read_any_vector("counts", counts));
    index_t const experts = n.extents[0];
    auto const of = detail::read_devices(a, device_of, {{experts, "the number of experts"}});
    auto const d = detail::as_counts(a.written_any_vector("device_counts", device_counts));
    detail::check_devices(a, of, d.extents[0]);
    using Count = detail::element_of<decltype(d)>;
    detail::buffer<index_t> sums(ctx.memory());
    sums.assign(static_cast<std::size_t>(d.extents[0]), 0);
    for (index_t e = 0; e < experts; ++e)
      detail::add_count("count_device_routes: counts", e, n(e), sums[of(e)]);
    for (index_t const sum : sums) detail::check_countable<Count>(a, sum);
    for (index_t i = 0; i < d.extents[0]; ++i) d(i) = static_cast<Count>(sums[i]);
  }
};
/// `count_device_routes(ctx, counts, device_of, device_counts)`: how many routes go to each device,
/// the sums of counts [experts], see count_choices, by the device of each expert.
///   device_of: [experts] std::int32_t
///   device_counts: [devices] integers, overwritten
inline constexpr count_device_routes_fn count_device_routes{};

struct count_device_tokens_fn {
  template <class Ids, class DeviceOf, class DeviceCounts>
  void operator()(host_context const& ctx, Ids const& ids, DeviceOf const& device_of,
                  DeviceCounts&& device_counts) const {
    detail::arguments a(ctx, "count_device_tokens");
    auto const i = a.masked_ids("ids", ids);
    auto const of = detail::read_devices(a, device_of);
    auto const d = detail::as_counts(a.written_any_vector("device_counts", device_counts));
    index_t const devices = d.extents[0];
    detail::check_devices(a, of, devices);
    detail::check_countable<detail::element_of<decltype(d)>>(a, i.extents[0]);
    detail::check_expert_ids("count_device_tokens: ids", i, of.extents[0], i.valid);
    detail::buffer<index_t> last(ctx.memory());  // the last token that went to the device
    last.assign(static_cast<std::size_t>(devices), -1);
    for (index_t n = 0; n < devices; ++n) d(n) = 0;
    for (index_t t = 0; t < i.extents[0]; ++t)
      for (index_t j = 0; i.valid(t) && j < i.extents[1]; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0) {
          std::int32_t const device = of(id);
          if (last[device] != t) ++d(device);
          last[device] = t;
        }
  }
};
/// `count_device_tokens(ctx, ids, device_of, device_counts)`: how many tokens go to each device,
/// each once however many of its experts it takes.
///   ids: [T,k] of a signed integer type, -1 = no expert, or only(valid, ids)
///   device_of: [experts] std::int32_t
///   device_counts: [devices] integers, overwritten. They add up over ranks
/// Cost: one pass, on the caller's thread.
inline constexpr count_device_tokens_fn count_device_tokens{};

namespace detail {

template <class Score, class Logits, class DeviceOf, class Counts, class... DLogits>
double device_balance_loss_of(host_context const& ctx, char const* operation, Score const& score,
                              Logits const& logits, DeviceOf const& device_of,
                              Counts const& device_counts, load_balance_options const& o,
                              DLogits&... d_logits) {
  arguments a(ctx, operation);
  auto const z = logits_of_loss(a, "logits", logits);
  index_t const experts = z.extents[1];
  auto const of = read_devices(a, device_of, {{experts, "the number of experts"}});
  auto const n = as_counts(a.read_any_vector("device_counts", device_counts));
  auto const dz = gradient_of_loss(a, z, d_logits...);
  index_t const devices = n.extents[0];
  check_devices(a, of, devices);
  check_score(a, score, z);
  double const unit = balance_unit(a, o, devices, z);
  buffer<double> slopes(ctx.memory());
  slopes.assign(static_cast<std::size_t>(experts > devices ? experts : devices), 0);
  for (index_t e = 0; e < experts; ++e) ++slopes[of(e)];
  for (index_t d = 0; d < devices; ++d)
    expects(static_cast<index_t>(slopes[d]) * devices == experts, a, ": device ", d, " has ",
            slopes[d], " of the ", experts, " experts, but there are ", devices,
            " devices, each of which has as many");
  for (index_t e = 0; e < experts; ++e) slopes[e] = unit * count_at(a, "device_counts", n, of(e));
  score_sum<Score> const term{score, slopes.data(), static_cast<int>(experts)};
  return loss_of_tokens(ctx, z, term, dz);
}

}  // namespace detail

struct device_balance_loss_fn {
  template <score_policy Score, class Logits, class DeviceOf, class Counts>
  double operator()(host_context const& ctx, Score const& score, Logits const& logits,
                    DeviceOf const& device_of, Counts const& device_counts,
                    load_balance_options const& options) const {
    return detail::device_balance_loss_of(ctx, "device_balance_loss", score, logits, device_of,
                                          device_counts, options);
  }
};
/// `device_balance_loss(ctx, score, logits, device_of, device_counts, options)`: the balancing
/// losses over devices of DeepSeek-V2 (arXiv:2405.04434, eq. 26 to 31),
///   L = coefficient * devices * sum over d of f[d] * P[d],
///   f[d] = device_counts[d] / (counted_tokens * choices),
///   P[d] = sum over the experts e of d of the mean over tokens of q[e].
///   device-level          device_counts by count_device_routes, choices = k
///   communication-level   device_counts by count_device_tokens, choices = the most devices to
///                         which a token may go
///   score: makes q of a token's logits; softmax_score for DeepSeek-V2
///   logits: [T, experts], any element type, after the transforms of the router, or
///           only(valid, logits); NaN and -inf have q = 0
///   device_of: [experts] std::int32_t; every device has as many experts
///   device_counts: [devices] integers. They have no gradient
/// Returns this call's part: the sum over its tokens, divided by options.tokens. For any
/// probabilities it is the coefficient if the load is uniform.
inline constexpr device_balance_loss_fn device_balance_loss{};

struct device_balance_loss_backward_fn {
  template <score_policy Score, class Logits, class DeviceOf, class Counts, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  DeviceOf const& device_of, Counts const& device_counts,
                  load_balance_options const& options, DLogits&& d_logits) const {
    detail::device_balance_loss_of(ctx, "device_balance_loss_backward", score, logits, device_of,
                                   device_counts, options, d_logits);
  }
};
/// `device_balance_loss_backward(ctx, score, logits, device_of, device_counts, options, d_logits)`:
/// the gradient of device_balance_loss() to d_logits [T, experts], any element type, overwritten,
/// or added to by add_to(d_logits). That of tokens left out is 0.
inline constexpr device_balance_loss_backward_fn device_balance_loss_backward{};

}  // namespace expar::inline v0

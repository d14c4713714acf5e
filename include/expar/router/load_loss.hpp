// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/cv_squared.hpp>
#include <expar/router/smooth_load.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct load_loss_backward_fn {
  template <class Clean, class Noisy, class Sigma, class Sums, class DClean, class DNoisy>
  requires(std::is_arithmetic_v<Sigma>) void operator()(host_context const& ctx, Clean const& clean,
                                                        Noisy const& noisy, Sigma const& sigma,
                                                        Sums const& sums,
                                                        load_options const& options,
                                                        cv_squared_options const& variation,
                                                        DClean&& d_clean, DNoisy&& d_noisy) const {
    (*this)(ctx, clean, noisy, sigma, sums, detail::every_token{}, options, variation, d_clean,
            d_noisy);
  }
  template <class Clean, class Noisy, class Sigma, class Sums, class Valid, class DClean,
            class DNoisy>
  requires(std::is_arithmetic_v<Sigma>) void operator()(host_context const& ctx, Clean const& clean,
                                                        Noisy const& noisy, Sigma const& sigma,
                                                        Sums const& sums, Valid const& valid,
                                                        load_options const& options,
                                                        cv_squared_options const& variation,
                                                        DClean&& d_clean, DNoisy&& d_noisy) const {
    add(ctx, clean, noisy, sigma, sums, valid, options, variation,
        detail::as_output<2>(ctx, d_clean), detail::as_output<2>(ctx, d_noisy), nullptr);
  }
  template <class Clean, class Noisy, class Sigma, class Sums, class DClean, class DNoisy,
            class DSigma>
  requires(!std::is_arithmetic_v<Sigma>) void operator()(
      host_context const& ctx, Clean const& clean, Noisy const& noisy, Sigma const& sigma,
      Sums const& sums, load_options const& options, cv_squared_options const& variation,
      DClean&& d_clean, DNoisy&& d_noisy, DSigma&& d_sigma) const {
    (*this)(ctx, clean, noisy, sigma, sums, detail::every_token{}, options, variation, d_clean,
            d_noisy, d_sigma);
  }
  template <class Clean, class Noisy, class Sigma, class Sums, class Valid, class DClean,
            class DNoisy, class DSigma>
  requires(!std::is_arithmetic_v<Sigma>) void operator()(
      host_context const& ctx, Clean const& clean, Noisy const& noisy, Sigma const& sigma,
      Sums const& sums, Valid const& valid, load_options const& options,
      cv_squared_options const& variation, DClean&& d_clean, DNoisy&& d_noisy,
      DSigma&& d_sigma) const {
    add(ctx, clean, noisy, sigma, sums, valid, options, variation,
        detail::as_output<2>(ctx, d_clean), detail::as_output<2>(ctx, d_noisy),
        detail::as_output<2>(ctx, d_sigma));
  }

 private:
  template <class D>
  static void add_to(D& d, double x) {
    d = narrow<D>(widen(d) + static_cast<accumulator_t<D>>(x));
  }
  template <class Clean, class Noisy, class Sigma, class Sums, class Valid, class C, class N,
            class DSigma>
  static void add(host_context const& ctx, Clean const& clean, Noisy const& noisy,
                  Sigma const& sigma, Sums const& sums, Valid const& valid,
                  load_options const& options, cv_squared_options const& variation,
                  tensor_view<C, 2> d_clean, tensor_view<N, 2> d_noisy, DSigma d_sigma) {
    constexpr char const* op = "load_loss_backward";
    constexpr bool with_sigma = !std::is_same_v<DSigma, std::nullptr_t>;
    auto const c = detail::as_view<2>(ctx, clean);
    auto const h = detail::as_view<2>(ctx, noisy);
    index_t const tokens = c.extents[0], experts = c.extents[1];
    int const parts = ctx.chunks(tokens, 16);
    detail::load_reader reader(op, ctx, c, h, options, parts);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, tokens);
    auto const spread = detail::sigma_of(op, ctx, sigma, tokens, experts, marks);
    detail::check_loss_gradient(detail::argument(op, "d_clean"), c, d_clean);
    detail::check_loss_gradient(detail::argument(op, "d_noisy"), c, d_noisy);
    if constexpr (with_sigma)
      detail::check_loss_gradient(detail::argument(op, "d_sigma"), c, d_sigma);
    detail::buffer<double> slopes(ctx.memory()), scratch(ctx.memory());
    detail::make_variation_slopes(op, ctx, sums, experts, variation, slopes);
    index_t const stride = reader.scratch() + 64;
    scratch.resize(stride * parts);
    ctx.for_each_chunk(tokens, 16, [&](int part, index_t first, index_t last) {
      double* const x = scratch.data() + part * stride;
      for (index_t t = first; t < last; ++t) {
        if (!marks(t)) continue;
        detail::load_token const token = reader.read(part, t, x);
        std::int32_t const kth = token.ids[options.top_k - 1];
        double of_kth = 0, of_next = 0;
        for (int e = 0; e < experts; ++e) {
          std::int32_t const rival = token.rival(e);
          if (rival < 0 || detail::masked(token.noisy[e])) continue;
          double const s = spread(t, e), at = detail::margin(x[e], token.noisy[rival]) / s;
          double const slope = slopes[e] * detail::normal_density(at) / s;
          if (slope == 0) continue;  // also where `at` is infinite
          add_to(d_clean.row(t)[e], slope);
          (rival == kth ? of_kth : of_next) -= slope;
          if constexpr (with_sigma) add_to(d_sigma.row(t)[e], -slope * at);
        }
        if (of_kth != 0) add_to(d_noisy.row(t)[kth], of_kth);
        if (of_next != 0) add_to(d_noisy.row(t)[token.ids[options.top_k]], of_next);
      }
    });
  }
};
/// ADDS the gradients of cv_squared(ctx, sums, variation), where sums are smooth_load() of this
/// call's logits or of all ranks', as load_loss_backward(ctx, clean, noisy, sigma, sums, [valid,]
/// options, variation, d_clean, d_noisy, [d_sigma]), each [T, experts]:
///   d_clean: for the logits without noise, where they stand themselves
///   d_noisy: for the noisy logits that are thresholds. Thresholds have a gradient, as in all the
///            systems that smooth_load() names
///   d_sigma: where sigma is [T, experts]
/// A caller whose noisy = clean + sigma * n goes on from d_noisy: d_clean += d_noisy,
/// d_sigma += d_noisy * n. d_clean and d_noisy may be the same tensor, which then has both.
inline constexpr load_loss_backward_fn load_loss_backward{};

}  // namespace expar::inline v0

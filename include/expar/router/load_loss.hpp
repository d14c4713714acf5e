// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tuple>

#include <expar/detail/arguments.hpp>
#include <expar/router/cv_squared.hpp>
#include <expar/router/smooth_load.hpp>
#include <expar/router/token_loss.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

struct load_loss_backward_fn {
  template <class Clean, class Noisy, class Sigma, class Sums, class DClean, class DNoisy,
            class... DSigma>
  void operator()(host_context const& ctx, Clean const& clean, Noisy const& noisy,
                  Sigma const& sigma, Sums const& sums, load_options const& options,
                  cv_squared_options const& variation, DClean&& d_clean, DNoisy&& d_noisy,
                  DSigma&&... d_sigma) const {
    constexpr bool with_sigma = !std::is_arithmetic_v<Sigma>;
    static_assert(sizeof...(DSigma) == (with_sigma ? 1 : 0),
                  "expar: d_sigma stands last where sigma is a tensor, and nowhere else");
    detail::arguments a(ctx, "load_loss_backward");
    auto const c = detail::logits_of_loss(a, "clean", clean);
    index_t const tokens = c.extents[0], experts = c.extents[1];
    detail::rule const each_token{tokens, "the number of tokens"},
        each_expert{experts, "the number of experts"};
    auto const h = a.read("noisy", noisy, {each_token, each_expert});
    auto const spread = detail::read_sigma(a, sigma, each_token, each_expert);
    auto const s = detail::as_sums(a.read_any_vector("sums", sums, {each_expert}));
    auto const dc = a.gradient("d_clean", d_clean, {each_token, each_expert});
    auto const dh = a.gradient(
        "d_noisy", d_noisy,
        {each_token, each_expert, dc.adds ? detail::any_extent : detail::may_be("d_clean")});
    std::tuple const ds{a.gradient("d_sigma", d_sigma, {each_token, each_expert})...};
    bool const one_tensor = static_cast<void const*>(dc.data) == dh.data;
    int const parts = ctx.chunks(tokens, 16);
    detail::load_reader reader(a, ctx, c, h, options, parts);
    spread.validate(a, c);
    detail::buffer<double> slopes(ctx.memory()), scratch(ctx.memory());
    detail::make_variation_slopes(a, s, variation, slopes);
    index_t const stride = reader.scratch() + 3 * experts + 64;
    scratch.resize(stride * parts);
    ctx.for_each_chunk(tokens, 16, [&](int part, index_t first, index_t last) {
      double* const x = scratch.data() + part * stride;
      double* const of_clean = x + reader.scratch();
      double* const of_noisy = of_clean + experts;
      double* const of_sigma = of_noisy + experts;
      for (index_t t = first; t < last; ++t) {
        for (index_t i = 0; i < 3 * experts; ++i) of_clean[i] = 0;
        if (c.valid(t)) {
          detail::load_token const token = reader.read(part, t, x);
          for (int e = 0; e < experts; ++e) {
            std::int32_t const rival = token.rival(e);
            if (rival < 0 || detail::masked(token.noisy[e])) continue;
            double const sigma_of = spread(t, e),
                         at = detail::margin(x[e], token.noisy[rival]) / sigma_of;
            double const slope = slopes[e] * detail::normal_density(at) / sigma_of;
            if (slope == 0) continue;  // also where `at` is infinite
            of_clean[e] = slope;
            of_noisy[rival] -= slope;
            of_sigma[e] = -slope * at;
          }
        }
        for (int e = 0; one_tensor && e < experts; ++e) of_clean[e] += of_noisy[e];
        dc.put_row(dc.row(t), of_clean, experts);
        if (!one_tensor) dh.put_row(dh.row(t), of_noisy, experts);
        if constexpr (with_sigma)
          std::get<0>(ds).put_row(std::get<0>(ds).row(t), of_sigma, experts);
      }
    });
  }
};
/// `load_loss_backward(ctx, clean, noisy, sigma, sums, options, variation, d_clean, d_noisy,
/// [d_sigma])`: the gradients of cv_squared(ctx, sums, variation), where sums are smooth_load() of
/// this call's logits or of all ranks', each [T, experts] of any element type, overwritten, or
/// added to by add_to():
///   d_clean: for the logits without noise, where they stand themselves
///   d_noisy: for the noisy logits that are thresholds. Thresholds have a gradient, as in all the
///            systems that smooth_load() names
///   d_sigma: where sigma is [T, experts]
/// Those of tokens left out are 0. A caller whose noisy = clean + sigma * n goes on from d_noisy:
/// d_clean += d_noisy, d_sigma += d_noisy * n. Where both are overwritten, d_noisy may be d_clean,
/// which then has the sum.
inline constexpr load_loss_backward_fn load_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/cv_squared.hpp>
#include <expar/router/math.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/router/top_k.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// What an expert must beat to be selected, among the noisy logits of its token.
enum class load_threshold {
  others,  ///< the k-th largest of the other experts' (Shazeer; fastmoe, Tensor2Tensor)
  kth      ///< the k-th largest of all (V-MoE)
};

struct load_options {
  int top_k;
  load_threshold threshold = load_threshold::others;
};

namespace detail {

/// The standard deviation of the noise: one number, or one per token and expert.
struct one_sigma {
  double value;

  double operator()(index_t, index_t) const { return value; }
  template <class Logits>
  void validate(char const* op, Logits const&) const {
    expects(value > 0 && value < infinity<double>, op, ": sigma is ", value,
            "; it is greater than 0 and finite");
  }
};
template <class View>
struct each_sigma {
  View values;

  double operator()(index_t t, index_t e) const {
    return static_cast<double>(widen(values.row(t)[e]));
  }
  template <class Logits>
  void validate(char const* op, Logits const& clean) const {
    for (index_t t = 0; t < values.extents[0]; ++t)
      for (index_t e = 0; clean.valid(t) && e < values.extents[1]; ++e)
        expects((*this)(t, e) > 0 && (*this)(t, e) < infinity<double>, op, ": sigma(", t, ", ", e,
                ") is ", (*this)(t, e), "; it is greater than 0 and finite");
  }
};

template <class Sigma>
auto read_sigma(arguments<host_context>& a, Sigma const& sigma, rule each_token, rule each_expert) {
  if constexpr (std::is_arithmetic_v<Sigma>) {
    return one_sigma{static_cast<double>(sigma)};
  } else {
    auto const s = a.read("sigma", sigma, {each_token, each_expert});
    return each_sigma<std::remove_const_t<decltype(s)>>{s};
  }
}

/// One token: which noisy logit is the threshold of each expert.
struct load_token {
  double const* noisy;
  std::int32_t const* ids;  // [k + 1], by descending noisy logit
  int needed;               // how many candidates there must be for a threshold
  int k;
  bool own;  // an expert is compared with the others alone

  /// The expert whose noisy logit is the threshold of e, or -1: e is selected in any case.
  std::int32_t rival(int e) const {
    if (ids[needed - 1] < 0) return -1;
    bool selected = false;
    for (int j = 0; own && j < k; ++j) selected = selected || ids[j] == e;
    return ids[selected ? k : k - 1];
  }
};

/// Reads tokens one by one; [parts] of them at once.
template <class Clean, class Noisy>
class load_reader {
 public:
  load_reader(char const* op, host_context const& ctx, Clean const& clean, Noisy const& noisy,
              load_options const& o, int parts)
      : clean_(clean), noisy_(noisy), o_(o), ids_(ctx.memory()) {
    expects(o.top_k >= 1 && o.top_k <= clean.extents[1], op, ": top_k is ", o.top_k,
            "; it is at least 1 and at most the ", clean.extents[1], " experts");
    ids_.resize(static_cast<index_t>(parts) * (o.top_k + 1));
  }
  index_t scratch() const { return 2 * clean_.extents[1] + o_.top_k + 1; }

  /// c, behind it h, and behind it the keys of the k + 1 best: all in scratch.
  load_token read(int part, index_t t, double* scratch) {
    index_t const experts = clean_.extents[1];
    double *const c = scratch, *const h = c + experts;
    std::int32_t* const ids = ids_.data() + static_cast<index_t>(part) * (o_.top_k + 1);
    widen_row(clean_.row(t), c, experts);
    widen_row(noisy_.row(t), h, experts);
    for (index_t e = 0; e < experts; ++e)
      if (masked(c[e]) || masked(h[e])) h[e] = -infinity<double>;
    select_top_k(static_cast<double const*>(h), static_cast<int>(experts), o_.top_k + 1, ids,
                 h + experts);
    bool const own = o_.threshold == load_threshold::others;
    return {h, ids, own ? o_.top_k + 1 : o_.top_k, o_.top_k, own};
  }

 private:
  Clean const& clean_;
  Noisy const& noisy_;
  load_options o_;
  buffer<std::int32_t> ids_;
};

/// x - threshold, also where both are infinite.
inline double margin(double x, double threshold) {
  return x == threshold ? 0 : x - threshold;
}
inline double normal_cdf(double x) {
  return 0.5 * __builtin_erfc(-x * 0.70710678118654752440);
}
inline double normal_density(double x) {
  return 0.39894228040143267794 * exponential(-0.5 * x * x);
}

}  // namespace detail

struct smooth_load_fn {
  template <class Clean, class Noisy, class Sigma, class Sums>
  void operator()(host_context const& ctx, Clean const& clean, Noisy const& noisy,
                  Sigma const& sigma, load_options const& options, Sums&& sums) const {
    detail::arguments a(ctx, "smooth_load");
    auto const c = detail::logits_of_loss(a, "clean", clean);
    index_t const tokens = c.extents[0], experts = c.extents[1];
    detail::rule const each_token{tokens, "the number of tokens"},
        each_expert{experts, "the number of experts"};
    auto const h = a.read("noisy", noisy, {each_token, each_expert});
    auto const spread = detail::read_sigma(a, sigma, each_token, each_expert);
    auto const s = detail::as_sums(a.written_any_vector("sums", sums, {each_expert}));
    detail::load_reader reader(a, ctx, c, h, options, ctx.chunks(detail::sum_blocks, 1));
    spread.validate(a, c);
    detail::sum_rows<double>(
        ctx, tokens, reader.scratch(), c.valid, s, [&](int part, index_t t, double* row) {
          double const* const x = row + experts;
          detail::load_token const token = reader.read(part, t, row + experts);
          for (int e = 0; e < experts; ++e) {
            std::int32_t const rival = token.rival(e);
            row[e] =
                detail::masked(token.noisy[e]) ? 0
                : rival < 0
                    ? 1
                    : detail::normal_cdf(detail::margin(x[e], token.noisy[rival]) / spread(t, e));
          }
        });
  }
};
/// `smooth_load(ctx, clean, noisy, sigma, options, sums)`: how many tokens each expert would get,
/// smoothly, sums[e] = sum over tokens of the probability that e is among the top k when its noise
/// alone is drawn again,
///   normal_cdf((clean[t,e] - threshold[t,e]) / sigma[t,e]).
///   clean: logits [T, experts] without noise, any element type, or only(valid, clean)
///   noisy: the same with noise. Where either is NaN or -inf, the probability is 0
///   sigma: the standard deviation of the noise, greater than 0 and finite: a number (V-MoE:
///          noise / experts), or [T, experts] (Shazeer: softplus(x W) + 0.01), of which that of
///          tokens that are not valid is not looked at
///   sums: [experts] of double, overwritten. They add up over ranks
/// The threshold is a noisy logit of the token, see load_threshold; where there are too few for
/// one, all are selected and the probability is 1. The load loss is cv_squared(ctx, sums, options).
/// Tutel's load loss (impls/losses.py, load_importance_loss) is that of V-MoE with softmax scores
/// as `clean`, but noisy logits as thresholds. Sources: arXiv:1701.06538, appendix A; fastmoe,
/// noisy_gate.py, _prob_in_top_k; V-MoE, nn/routing.py, NoisyTopExpertsPerItemRouter.
inline constexpr smooth_load_fn smooth_load{};

}  // namespace expar::inline v0
EXPAR_IEEE_END

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/error.hpp>
#include <expar/plan/layout.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

constexpr void check_positive(char const* rule, char const* name, index_t n) {
  expects(n >= 1 && n <= INT32_MAX, "capacities::", rule, ": ", name, " is ", n,
          "; it lies between 1 and ", INT32_MAX);
}
/// Throws unless a capacity follows from these. What exceeds a bound could exceed an index_t.
constexpr void check_capacity(char const* rule, index_t tokens, index_t experts, index_t top_k = 1,
                              double factor = 1, index_t ranks = 1) {
  check_positive(rule, "experts", experts);
  check_positive(rule, "top_k", top_k);
  check_positive(rule, "ranks", ranks);
  index_t const most = (index_t{1} << 42) / top_k / ranks;
  expects(tokens >= 0 && tokens <= most, "capacities::", rule, ": tokens is ", tokens,
          "; it lies between 0 and ", most);
  expects(factor >= 0 && factor <= 1e6, "capacities::", rule, ": factor is ", factor,
          "; it lies between 0 and 1000000");
}

// Of numbers from 0 to 2^62; libraries have these only for other than constant expressions.
constexpr index_t rounded_up(double x) {
  auto const whole = static_cast<index_t>(x);
  return whole + static_cast<index_t>(static_cast<double>(whole) < x);
}
/// Ties go to the even number, as in Python's round().
constexpr index_t rounded_to_nearest(double x) {
  auto const whole = static_cast<index_t>(x);
  double const rest = x - static_cast<double>(whole);
  return whole + static_cast<index_t>(rest > 0.5 || (rest == 0.5 && whole % 2 == 1));
}
constexpr index_t at_least(index_t n, index_t minimum) {
  return n < minimum ? minimum : n;
}
constexpr index_t divided_up(index_t n, index_t by) {
  return (n + by - 1) / by;
}

}  // namespace detail

/// How many routes an expert takes, by the rules of published systems. They differ in where the
/// factor comes in and what is rounded, so each keeps its source's own order of operations and its
/// precision: double, unless it says float. The rule of Tutel is capacity_of().
///
/// tokens (T): those that share the capacity: of a rank, or of what the system calls a group, a
/// sequence or a batch row. experts (E): all of them, unless it says otherwise. A result may be 0,
/// or exceed T, where the source's does; see clamped(). Throws unless T is at least 0, and E, k,
/// multiples and ranks are at least 1, and the factor lies between 0 and 1000000.
namespace capacities {

/// The capacity brought to 1 .. tokens, or 0 where there are no tokens. An expert that a token
/// cannot choose twice never takes more.
constexpr index_t clamped(index_t capacity, index_t tokens) {
  detail::check_capacity("clamped", tokens, 1);
  index_t const most = capacity < tokens ? capacity : tokens;
  return most < 1 && tokens > 0 ? 1 : most;
}

/// ceil(T * k / E * factor). megatron/core/transformer/moe/moe_utils.py, get_capacity
constexpr index_t megatron(index_t tokens, int experts, int top_k, double factor) {
  detail::check_capacity("megatron", tokens, experts, top_k, factor);
  return detail::rounded_up(static_cast<double>(tokens * top_k) / experts * factor);
}

/// max(ceil(T / E * (factor * k)), minimum), where the last product is made in float.
/// deepspeed/moe/sharded_moe.py, _capacity
constexpr index_t deepspeed(index_t tokens, int experts, int top_k, double factor,
                            index_t minimum = 4) {
  detail::check_capacity("deepspeed", tokens, experts, top_k, factor);
  auto const share = static_cast<float>(static_cast<double>(tokens) / experts);
  float const product = share * static_cast<float>(factor * top_k);
  return detail::at_least(detail::rounded_up(static_cast<double>(product)), minimum);
}

/// max(min(T, int(T * factor / E)), minimum), for any k. mesh_tensorflow/transformer/moe.py, also
/// st_moe_pytorch
constexpr index_t mesh_tensorflow(index_t tokens, int experts, double factor, index_t minimum = 4) {
  detail::check_capacity("mesh_tensorflow", tokens, experts, 1, factor);
  auto const share = static_cast<index_t>(static_cast<double>(tokens) * factor / experts);
  return detail::at_least(share < tokens ? share : tokens, minimum);
}

/// max(round(factor * T / E), minimum), for any k; halves are rounded to even.
/// flaxformer/architectures/moe/moe_layers.py
constexpr index_t flaxformer(index_t tokens, int experts, double factor, index_t minimum = 4) {
  detail::check_capacity("flaxformer", tokens, experts, 1, factor);
  return detail::at_least(
      detail::rounded_to_nearest(factor * static_cast<double>(tokens) / experts), minimum);
}

enum class rounding { up, to_nearest };

/// ceil or round of T * k * factor / E, then up to a multiple. vmoe/moe.py, compute_capacity, which
/// refuses a result of 0
constexpr index_t vmoe(index_t tokens, int experts, int top_k, double factor,
                       rounding how = rounding::up, index_t multiple = 4) {
  detail::check_capacity("vmoe", tokens, experts, top_k, factor);
  detail::check_positive("vmoe", "multiple", multiple);
  double const share = static_cast<double>(tokens * top_k) * factor / experts;
  return round_up(
      how == rounding::up ? detail::rounded_up(share) : detail::rounded_to_nearest(share),
      multiple);
}

/// int(factor * (k * T * ranks / E)), over all ranks that share the experts. A factor of 0 stands
/// for no limit there. megablocks/layers/moe.py, expert_capacity
constexpr index_t megablocks(index_t tokens, int experts, int top_k, double factor, int ranks = 1) {
  detail::check_capacity("megablocks", tokens, experts, top_k, factor, ranks);
  return static_cast<index_t>(factor * (static_cast<double>(top_k * tokens * ranks) / experts));
}

/// floor(2 * T / E), for k = 2. fairscale/nn/moe/top2gate.py
constexpr index_t fairscale(index_t tokens, int experts) {
  detail::check_capacity("fairscale", tokens, experts);
  return 2 * tokens / experts;
}

/// floor(ceil(factor * T) * k / E). fmoe/gates/gshard_gate.py
constexpr index_t fastmoe_gshard(index_t tokens, int experts, int top_k, double factor) {
  detail::check_capacity("fastmoe_gshard", tokens, experts, top_k, factor);
  return detail::rounded_up(factor * static_cast<double>(tokens)) * top_k / experts;
}

/// ceil(factor * T / experts of a rank): what an expert takes from all ranks together, for k = 1.
/// fmoe/gates/switch_gate.py
constexpr index_t fastmoe_switch(index_t tokens, int experts_of_rank, double factor) {
  detail::check_capacity("fastmoe_switch", tokens, experts_of_rank, 1, factor);
  return detail::rounded_up(factor * static_cast<double>(tokens) / experts_of_rank);
}

/// floor(factor * T / E), for any k. PaddlePaddle ERNIE, top2_gate.py, get_capacity
constexpr index_t ernie(index_t tokens, int experts, double factor) {
  detail::check_capacity("ernie", tokens, experts, 1, factor);
  return static_cast<index_t>(factor * static_cast<double>(tokens) / experts);
}

/// 2 * ceil(T / E), for k = 2. transformers/models/nllb_moe, in training
constexpr index_t nllb(index_t tokens, int experts) {
  detail::check_capacity("nllb", tokens, experts);
  return 2 * detail::divided_up(tokens, experts);
}

/// ceil(factor * T). transformers/models/nllb_moe, in evaluation
constexpr index_t nllb_evaluation(index_t tokens, double factor) {
  detail::check_capacity("nllb_evaluation", tokens, 1, 1, factor);
  return detail::rounded_up(factor * static_cast<double>(tokens));
}

/// int(max(ceil(T * k / E) * factor, factor)), where T is the length of a batch row.
/// MaxText, layers/moe.py
constexpr index_t maxtext(index_t tokens, int experts, int top_k, double factor) {
  detail::check_capacity("maxtext", tokens, experts, top_k, factor);
  index_t const share = detail::at_least(detail::divided_up(tokens * top_k, experts), 1);
  return static_cast<index_t>(static_cast<double>(share) * factor);
}

/// int(factor * (k * T / E)) up to a multiple: what an expert takes from each rank.
/// olmo_core/nn/moe/parallel_mlp.py, expert_capacity
constexpr index_t olmo_core(index_t tokens, int experts, int top_k, double factor,
                            index_t multiple = 8) {
  detail::check_capacity("olmo_core", tokens, experts, top_k, factor);
  detail::check_positive("olmo_core", "multiple", multiple);
  double const share = static_cast<double>(top_k * tokens) / experts;
  return round_up(static_cast<index_t>(factor * share), multiple);
}

/// max(k, floor(k * T / E)). Hunyuan, modeling_hunyuan.py, topkgating; where it drops nothing, it
/// takes k * T instead
constexpr index_t hunyuan(index_t tokens, int experts, int top_k) {
  detail::check_capacity("hunyuan", tokens, experts, top_k);
  return detail::at_least(top_k * tokens / experts, top_k);
}

}  // namespace capacities
}  // namespace expar::inline v0
EXPAR_IEEE_END

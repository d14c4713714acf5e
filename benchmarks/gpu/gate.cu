// SPDX-License-Identifier: Apache-2.0
#include "suite.hpp"

#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include "reference.cuh"

namespace bench {
namespace {

/// What the forward path reads and writes; the experts return what they are given.
struct buffers {
  array<float> logits, weights;
  array<std::int32_t> ids;
  array<bf16> x, rows, out;
  expar::gpu::route_plan plan;
};

template <class Router>
void measure(suite& s, config const& c, Router const& router) {
  // What the host chooses.
  std::int64_t const experts = c.experts, h = c.hidden;
  random next(static_cast<std::uint64_t>(c.tokens + c.experts));
  std::vector<float> logits, bias;
  for (std::int64_t i = 0; i < c.tokens * experts; ++i)
    logits.push_back(static_cast<float>(8 * next() - 4));
  for (int e = 0; e < c.experts; ++e) bias.push_back(static_cast<float>(next() / 8));
  expar::routes<float> chosen(c.tokens, c.top_k);
  auto const on_host = expar::make_view(logits.data(), c.tokens, experts);
  if constexpr (Router::takes_bias)
    expar::route(expar::host_context{}, router, on_host, bias, chosen);
  else
    expar::route(expar::host_context{}, router, on_host, chosen);
  problem const p(c, {chosen.ids.data, chosen.ids.data + chosen.ids.size()});
  array<std::int32_t> const ids(p.ids), row_of(p.row_of);
  array<float> const weights(std::vector(chosen.weights.data, chosen.weights.data + p.routes()));
  array<float> const device_bias(bias);
  reference truth(s.stream(), p, p.row_of);

  double const routes = static_cast<double>(p.routes());
  double const gate_bytes = 4. * static_cast<double>(p.tokens * experts) + 12 * routes +
                            8. * static_cast<double>(experts + 1);
  double const moved = 2. * static_cast<double>((p.tokens + p.rows) * p.row_bytes()) + 16 * routes;
  for (bool const forward : {false, true}) {
    std::string const op = forward ? "forward" : "gate_plan";
    if (!s.wants(op, p)) continue;
    double const set_bytes =
        gate_bytes + (forward ? static_cast<double>((2 * p.tokens + p.rows) * p.row_bytes()) : 0);
    for (int const sets : s.sets_for(set_bytes)) {
      if (!s.fits(op + "/" + p.name, set_bytes * sets)) continue;
      std::vector<buffers> all_sets;
      for (int i = 0; i < sets; ++i)
        all_sets.push_back(
            {array(logits), array<float>(p.routes()), array<std::int32_t>(p.routes()),
             random_rows(s.stream(), forward ? p.tokens * h : 0, static_cast<std::uint64_t>(i)),
             array<bf16>(forward ? p.rows * h : 0), array<bf16>(forward ? p.tokens * h : 0),
             expar::gpu::route_plan(s.context())});
      auto const at = [&](int set) -> buffers& { return all_sets[static_cast<std::size_t>(set)]; };
      auto const routes_of = [&](float* w, std::int32_t* i) {
        return expar::routes_view{expar::make_view(i, p.tokens, expar::index_t{p.top_k}),
                                  expar::make_view(w, p.tokens, expar::index_t{p.top_k})};
      };
      auto const run = [&, forward](int set) {
        auto& b = at(set);
        auto const z = expar::make_view(b.logits.data(), p.tokens, experts);
        auto const to = routes_of(b.weights.data(), b.ids.data());
        if constexpr (Router::takes_bias)
          expar::gpu::gate_plan(s.context(), router, z,
                                expar::make_view(device_bias.data(), experts), expar::ragged{}, to,
                                b.plan);
        else
          expar::gpu::gate_plan(s.context(), router, z, expar::ragged{}, to, b.plan);
        if (!forward) return;
        expar::gpu::encode(s.context(), b.plan, expar::make_view(b.x.data(), p.tokens, h),
                           expar::make_view(b.rows.data(), p.rows, h));
        expar::gpu::decode(s.context(), b.plan, expar::make_view(b.rows.data(), p.rows, h),
                           to.weights, expar::make_view(b.out.data(), p.tokens, h));
      };
      for (int set = 0; set < sets; ++set) run(set);  // takes its memory
      auto const wrong = [&, forward](int set) {
        auto const& b = at(set);
        std::string found = truth.count(
            "routes", p.routes(),
            [view = b.plan.view(), id = b.ids.data(), w = b.weights.data(), ids_ = ids.data(),
             row = row_of.data(), weight = weights.data()] __device__(std::int64_t i) {
              int const k = view.top_k;
              return id[i] != ids_[i] || view.row(i / k, static_cast<int>(i % k)) != row[i] ||
                     !(fabsf(w[i] - weight[i]) <= 1e-5f * weight[i]);
            });
        if (found.empty() && forward) found = truth.encoded(b.x.data(), b.rows.data());
        if (found.empty() && forward)
          found = truth.decoded(b.rows.data(), b.weights.data(), b.out.data());
        return found;
      };
      std::vector<variant::memory> outputs{at(0).weights, at(0).ids};
      if (forward) outputs.insert(outputs.end(), {at(0).rows, at(0).out});
      s.measure({op,
                 p,
                 gate_bytes + (forward ? moved : 0),
                 set_bytes,
                 sets,
                 {{variant::kind::expar, "expar", "", run, wrong, outputs}}});
    }
  }
}

}  // namespace

/// The gate of the model, on logits that favour no expert.
void measure_gate(suite& s, problem const& p) {
  if (p.ids_drawn != spread::uniform || (!s.wants("gate_plan", p) && !s.wants("forward", p)))
    return;
  namespace models = expar::models;
  if (p.experts == 256)
    measure(s, p,
            models::deepseek_v3(
                {.experts = 256, .top_k = p.top_k, .groups = 8, .top_groups = 4, .scale = 2.5}));
  else if (p.experts == 384)
    measure(s, p, models::kimi_k2());
  else
    measure(s, p, models::qwen3_moe({.experts = p.experts, .top_k = p.top_k}));
}

}  // namespace bench

// SPDX-License-Identifier: Apache-2.0
// What make_plan() costs beside the loop that it cannot do without (limits/ranks.hpp) and what
// others do for the same (peers/plan.hpp), which know no threads; see rounds.hpp.
#include <limits/ranks.hpp>
#include <peers/plan.hpp>
#include <problem.hpp>
#include <rounds.hpp>

namespace {

using namespace benchmarks;
using places = std::vector<std::int32_t>;

void make_plan(benchmark::State& state) {
  shape const s = shape_of(state);
  expar::host_context const ctx(static_cast<int>(state.range(4)));
  auto const ids = draw_ids(s);
  peers::plan_problem const p{ids.data(), s.tokens, s.top_k, s.experts};
  expar::route_plan plan;
  places found(ids.size()), next;

  // By token and choice, as ours and sorted pairs are; or by choice and token, as Tutel's are.
  std::vector<index_t> offsets(size_of(s.experts + 1));
  places by_token(ids.size()), rows(ids.size()), by_choice(ids.size());
  limits::rank_in_one_pass(ids.data(), p.routes(), s.experts, next, by_token.data());
  for (std::size_t e = 0; e < next.size(); ++e) offsets[e + 1] = offsets[e] + next[e];
  for (std::size_t i = 0; i < ids.size(); ++i)
    rows[i] = static_cast<std::int32_t>(offsets[size_of(ids[i])]) + by_token[i];
  next.assign(next.size(), 0);
  for (int j = 0; j < s.top_k; ++j)
    for (std::size_t i = size_of(j); i < ids.size(); i += size_of(s.top_k))
      by_choice[i] = next[size_of(ids[i])]++;
  auto const is = [&found](places const& expected) {
    return [&found, &expected] { return found == expected; };
  };

  comparison c(state, [&] { found.assign(ids.size(), -1), plan = expar::route_plan(); });
  c.ours(
      [&] {
        expar::make_plan(ctx, expar::make_view(ids.data(), s.tokens, s.top_k), s.experts,
                         expar::ragged{}, plan);
      },
      [&] {
        for (index_t i = 0; i < p.routes(); ++i)
          if (plan.row(i / s.top_k, static_cast<int>(i % s.top_k)) != rows[size_of(i)])
            return false;
        return true;
      });
  c.limit(
      "one_pass",
      [&] { limits::rank_in_one_pass(ids.data(), p.routes(), s.experts, next, found.data()); },
      is(by_token));
  if (ctx.threads() > 1)
    c.limit(
        "two_passes",
        [&] {
          limits::rank_in_two_passes(ctx, ids.data(), p.routes(), s.experts, next, found.data());
        },
        is(by_token));
  peers::one_hot_cumsum one_hot;
  c.peer(
      "one_hot_cumsum", [&] { one_hot(p, found.data()); }, is(by_choice));
  peers::stable_sort sort;
  c.peer(
      "stable_sort", [&] { sort(p, found.data()); }, is(rows));
  peers::lists lists;
  c.peer(
      "lists", [&] { lists(p, found.data()); }, is(rows));
  c.run();
}
BENCHMARK(make_plan)->Apply(all_shapes);

}  // namespace

// SPDX-License-Identifier: Apache-2.0
// Two ranks that are threads: dispatch and combine, over windows and over messages, beside two
// threads that push the same rows straight to where they go, and pull them from there: their limit,
// without plan, counts or agreement. See ranks.hpp and rounds.hpp.
#include <ranks.hpp>

#include <expar/comm/thread.hpp>

namespace {

using namespace benchmarks;
using expar::thread_communicator;
using limits::streaming, limits::streaming_alone, limits::temporal;

template <class T, template <class> class Transport>
using rank_of = rank_of_two<T, thread_communicator, Transport<thread_communicator>>;

/// Memory of all ranks, as each sees it: that of a row of a route, in `base`.
template <class T, class Rank>
auto places(Rank const& rank, T* const (&base)[ranks]) {
  return [&rank, &base, e = rank.extent()](index_t t, int j) {
    index_t const route = t * e.k + j;
    return base[rank.owner(route)] + rank.row_of(route) * e.hidden;
  };
}

template <class T, template <class> class Transport>
std::vector<timing> time_dispatch(rank_of<T, Transport>& rank, rank_rounds<thread_communicator>& in,
                                  T* const (&rows)[ranks], index_t rounds, int& disturbed) {
  index_t const tokens = rank.x.size() / rank.extent().hidden;
  in.add(
      kind::ours, "ours", [&] { rank.dispatch(); }, [&] { return rank.dispatch_is_right(); });
  auto const limit = [&](char const* name, auto push) {
    in.add(
        kind::limit, name,
        [&rank, &rows, tokens, push] {
          push(rank.x.data(), places(rank, rows), rank.extent(), index_t{0}, tokens);
        },
        [&rank] { return rank.rows_are_those_of_the_batch(); }, [&rank] { rank.rows.poison(); });
  };
  limit("memcpy", [](auto... a) { limits::push_by_memcpy_to(a...); });
  limit("streaming", [](auto... a) { limits::push_to<streaming>(a...); });
  limit("streaming_rows", [](auto... a) { limits::push_rows_to<streaming>(a...); });
  in.check();
  return in.measure(rounds, disturbed);
}

template <class T, template <class> class Transport>
std::vector<timing> time_combine(rank_of<T, Transport>& rank, rank_rounds<thread_communicator>& in,
                                 T* const (&y)[ranks], index_t rounds, int& disturbed) {
  index_t const tokens = rank.x.size() / rank.extent().hidden;
  in.add(
      kind::ours, "ours", [&] { rank.combine(); }, [&] { return rank.combine_is_right(); },
      [&] { rank.fill_y(), rank.out.poison(); });
  auto const limit = [&](char const* name, auto gather) {
    in.add(
        kind::limit, name,
        [&rank, &y, tokens, gather] {
          gather(places(rank, y), rank.weights.data(), rank.out.data(), rank.extent(), index_t{0},
                 tokens);
        },
        [&rank] { return rank.combine_is_right(); }, [&rank] { rank.out.poison(); });
  };
  limit("temporal", [](auto... a) { limits::gather_from<temporal>(a...); });
  limit("streaming", [](auto... a) { limits::gather_from<streaming>(a...); });
  limit("streaming_alone", [](auto... a) { limits::gather_from<streaming_alone>(a...); });
  in.check();
  return in.measure(rounds, disturbed);
}

template <class T, template <class> class Transport, bool Home>
void time_ranks(benchmark::State& state) {
  std::vector<timing> of_first;
  int disturbed = 0;
  T* base[ranks] = {};
  expar::run_ranks(ranks, [&](thread_communicator& comm) {
    Transport<thread_communicator> transport(comm);
    rank_of<T, Transport> rank(comm, transport, shape_of(state));
    base[comm.rank()] = Home ? rank.y.data() : rank.rows.data();
    comm.barrier(rank.ctx);
    rank_rounds<thread_communicator> in(comm);
    int mine = 0;
    auto const rounds = static_cast<index_t>(state.max_iterations);
    auto timings = Home ? time_combine<T, Transport>(rank, in, base, rounds, mine)
                        : time_dispatch<T, Transport>(rank, in, base, rounds, mine);
    if (comm.rank() == 0) of_first = std::move(timings), disturbed = mine;
  });
  report(state, of_first, disturbed);
}
template <class T, template <class> class Transport>
void dispatch(benchmark::State& state) {
  time_ranks<T, Transport, false>(state);
}
template <class T, template <class> class Transport>
void combine(benchmark::State& state) {
  time_ranks<T, Transport, true>(state);
}

using expar::bfloat16, expar::messages, expar::windows;
BENCHMARK_TEMPLATE(dispatch, float, windows)->Apply(float_ranks);
BENCHMARK_TEMPLATE(dispatch, float, messages)->Apply(float_ranks);
BENCHMARK_TEMPLATE(dispatch, bfloat16, windows)->Apply(bfloat16_ranks);
BENCHMARK_TEMPLATE(dispatch, bfloat16, messages)->Apply(bfloat16_ranks);
BENCHMARK_TEMPLATE(combine, float, windows)->Apply(float_ranks);
BENCHMARK_TEMPLATE(combine, float, messages)->Apply(float_ranks);
BENCHMARK_TEMPLATE(combine, bfloat16, windows)->Apply(bfloat16_ranks);
BENCHMARK_TEMPLATE(combine, bfloat16, messages)->Apply(bfloat16_ranks);

}  // namespace

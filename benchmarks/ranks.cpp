// SPDX-License-Identifier: Apache-2.0
// Two ranks that are threads: dispatch and combine, over windows and over messages, beside two
// threads that push the same rows straight to where they go, and pull them from there: their limit,
// without plan, counts or agreement. See ranks.hpp and rounds.hpp.
#include <direct.hpp>

#include <expar/comm/thread.hpp>

namespace {

using namespace benchmarks;
using expar::thread_communicator;

template <class T, template <class> class Transport>
using rank_of = rank_of_two<T, thread_communicator, Transport<thread_communicator>>;

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
    auto timings = Home ? time_combine(rank, in, base, rounds, mine)
                        : time_dispatch(rank, in, base, rounds, mine);
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

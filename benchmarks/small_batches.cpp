// SPDX-License-Identifier: Apache-2.0
// Two ranks that are threads; see small_batches.hpp.
#include "small_batches.hpp"

#include <expar/comm/thread.hpp>

namespace {

template <template <class> class Transport>
void small_batch(benchmark::State& state) {
  small_batches::figures of_first;
  expar::run_ranks(small_batches::ranks, [&](expar::thread_communicator& comm) {
    Transport<expar::thread_communicator> transport(comm);
    small_batches::rank_of_two rank(comm, transport, static_cast<int>(state.range(0)),
                                    static_cast<int>(state.range(1)));
    auto const measured = rank.measure(static_cast<expar::index_t>(state.max_iterations));
    if (comm.rank() == 0) of_first = measured;
  });
  small_batches::report(state, of_first);
}

BENCHMARK_TEMPLATE(small_batch, expar::messages)->Apply(small_batches::shapes);
BENCHMARK_TEMPLATE(small_batch, expar::windows)->Apply(small_batches::shapes);

}  // namespace

// SPDX-License-Identifier: Apache-2.0
// Two ranks that are processes: dispatch and combine beside one MPI_Alltoallv of the same bytes,
// with one pack in front and one unpack behind it. What is bare has its counts from before, agrees
// on nothing, and puts rows of its own rank straight to their place. See ranks.hpp and rounds.hpp.
#include <ranks.hpp>

#include <expar/comm/mpi.hpp>

namespace {

using namespace benchmarks;
using expar::mpi_communicator;

template <class T>
using rank_of = rank_of_two<T, mpi_communicator, expar::messages<mpi_communicator>>;

/// The rows that go to the other rank and come from it, one behind the other.
template <class T>
class bare {
 public:
  bare(mpi_communicator& comm, rank_of<T>& rank)
      : rank_(rank),
        comm_(comm.native_handle()),
        me_(comm.rank()),
        peer_(1 - me_),
        first_(rank.batch.plan().offsets()[size_of(peer_ * rank.locals())]),
        away_(rank.rows_to(peer_)),
        here_(rank.batch.row_count() - rank.rows_to(me_)),
        of_tokens_(away_ * hidden()),
        of_experts_(here_ * hidden()) {}

  void dispatch() {
    limits::push_by_memcpy_to(rank_.x.data(), places(rank_.rows.data(), of_tokens_.data()),
                              rank_.extent(), 0, tokens());
    swap(of_tokens_, away_, of_experts_, here_);
    each_block([&](T* packed, T* row, std::size_t bytes) { std::memcpy(row, packed, bytes); },
               rank_.rows.data());
  }
  void combine() {
    each_block([&](T* packed, T* row, std::size_t bytes) { std::memcpy(packed, row, bytes); },
               rank_.y.data());
    swap(of_experts_, here_, of_tokens_, away_);
    limits::gather_from<limits::temporal>(places(rank_.y.data(), of_tokens_.data()),
                                          rank_.weights.data(), rank_.out.data(), rank_.extent(), 0,
                                          tokens());
  }

 private:
  index_t hidden() const { return rank_.extent().hidden; }
  index_t tokens() const { return rank_.x.size() / hidden(); }

  /// Rows of the own rank stand in their place, those of the other in the order of the plan.
  auto places(T* own, T* others) const {
    return [this, own, others, k = rank_.extent().k](index_t t, int j) {
      index_t const route = t * k + j;
      return rank_.owner(route) == me_
                 ? own + rank_.row_of(route) * hidden()
                 : others + (rank_.batch.plan().view().row(t, j) - first_) * hidden();
    };
  }
  /// The rows of the other rank for each expert here.
  template <class F>
  void each_block(F f, T* rows) const {
    T* packed = of_experts_.data();
    for (int l = 0; l < rank_.locals(); ++l) {
      index_t const n = rank_.batch.count_from(peer_, l) * hidden();
      f(packed, rows + rank_.batch.first_row_from(peer_, l) * hidden(), size_of(n) * sizeof(T));
      packed += n;
    }
  }
  void swap(array<T> const& from, index_t sent, array<T> const& to, index_t expected) const {
    int const row = static_cast<int>(hidden() * index_t{sizeof(T)});
    MPI_Datatype type;
    MPI_Type_contiguous(row, MPI_BYTE, &type);
    MPI_Type_commit(&type);
    int sends[ranks] = {}, receives[ranks] = {}, zero[ranks] = {};
    sends[peer_] = static_cast<int>(sent), receives[peer_] = static_cast<int>(expected);
    MPI_Alltoallv(from.data(), sends, zero, type, to.data(), receives, zero, type, comm_);
    MPI_Type_free(&type);
  }

  rank_of<T>& rank_;
  MPI_Comm comm_;
  int me_, peer_;
  index_t first_, away_, here_;  // of the plan; rows to the other rank, and from it
  array<T> of_tokens_, of_experts_;
};

template <class T>
void time_ranks(benchmark::State& state, bool home) {
  mpi_communicator comm(MPI_COMM_WORLD);
  expar::messages transport(comm);
  rank_of<T> rank(comm, transport, shape_of(state));
  bare<T> alltoallv(comm, rank);
  rank_rounds<mpi_communicator> in(comm);
  if (home) {
    in.add(
        kind::ours, "ours", [&] { rank.combine(); }, [&] { return rank.combine_is_right(); },
        [&] { rank.fill_y(), rank.out.poison(); });
    in.add(
        kind::limit, "alltoallv", [&] { alltoallv.combine(); },
        [&] { return rank.combine_is_right(); }, [&] { rank.out.poison(); });
  } else {
    in.add(
        kind::ours, "ours", [&] { rank.dispatch(); }, [&] { return rank.dispatch_is_right(); });
    in.add(
        kind::limit, "alltoallv", [&] { alltoallv.dispatch(); },
        [&] { return rank.rows_are_those_of_the_batch(); }, [&] { rank.rows.poison(); });
  }
  in.check();
  int disturbed = 0;
  auto const timings = in.measure(static_cast<index_t>(state.max_iterations), disturbed);
  report(state, timings, disturbed);
}
template <class T>
void dispatch(benchmark::State& state) {
  time_ranks<T>(state, false);
}
template <class T>
void combine(benchmark::State& state) {
  time_ranks<T>(state, true);
}

using expar::bfloat16;
BENCHMARK_TEMPLATE(dispatch, float)->Name("dispatch<float, mpi>")->Apply(float_ranks);
BENCHMARK_TEMPLATE(dispatch, bfloat16)->Name("dispatch<bfloat16, mpi>")->Apply(bfloat16_ranks);
BENCHMARK_TEMPLATE(combine, float)->Name("combine<float, mpi>")->Apply(float_ranks);
BENCHMARK_TEMPLATE(combine, bfloat16)->Name("combine<bfloat16, mpi>")->Apply(bfloat16_ranks);

}  // namespace

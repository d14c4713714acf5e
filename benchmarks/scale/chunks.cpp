// SPDX-License-Identifier: Apache-2.0
// One layer by chunks on the ranks of a simulated cluster, for chunks.py:
//   smpirun -np RANKS ... chunks TOKENS EXPERTS_US CHUNKS...
// Every rank sends as many rows to each other one, and every chunk has as many. Experts take
// EXPERTS_US in all, forward and backward alike, which pass on the clock of the simulator and
// nowhere else. Rank 0 prints what run() and run_backward() take on that clock, from an instant at
// which all ranks begin to that at which the last has finished, as one line of JSON for each number
// of chunks, and whether all make the bytes that one chunk makes.

#include <mpi.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

// What the communicator calls, where SimGrid has it not or at a price. It polls, and every poll
// would be a step of the simulator: here a poll ends when something has come, and takes no time.
#define MPI_Testsome(n, requests, complete, which, statuses) \
  (*(complete) = 1, PMPI_Waitany(n, requests, which, statuses))
#define MPI_Test(request, complete, status) (*(complete) = 1, PMPI_Wait(request, status))
#define MPI_Comm_idup(comm, made, request) \
  (*(request) = MPI_REQUEST_NULL, PMPI_Comm_dup(comm, made))

#include <expar/comm/mpi.hpp>
#include <expar/overlap.hpp>

namespace {

using expar::index_t;

constexpr int top_k = 8;
constexpr index_t hidden = 448;

void sleep_us(double us) {
  timespec const rest{0, static_cast<long>(us * 1e3)};
  if (us > 0) nanosleep(&rest, nullptr);
}

struct figures {
  double forward, backward;
};

class layer {
 public:
  layer(expar::mpi_communicator& comm, index_t tokens, double experts_us)
      : comm_(comm),
        tokens_(tokens),
        experts_us_(experts_us),
        x_(static_cast<std::size_t>(tokens * hidden)),
        d_out_(x_),
        weights_(static_cast<std::size_t>(tokens * top_k), 1.f / top_k) {
    // Choices of a token on `top_k` ranks that differ, in turn, and on their slots in turn.
    int const per_choice = experts() / top_k;
    for (index_t t = 0; t < tokens; ++t)
      for (int j = 0; j < top_k; ++j)
        ids_.push_back(j * per_choice + static_cast<int>((t + comm.rank()) % per_choice));
    for (std::size_t i = 0; i < x_.size(); ++i)
      x_[i] = static_cast<float>((i * 7 + static_cast<std::size_t>(comm.rank())) % 31),
      d_out_[i] = static_cast<float>(i % 13);
  }
  int experts() const { return 16 * comm_.size(); }

  figures run(int chunks, std::vector<float>& made) {
    expar::host_context const ctx;
    expar::overlapped_layer moe(comm_, {.experts = experts(), .top_k = top_k, .hidden = hidden},
                                chunks);
    auto batch = moe.make_batch<float>();
    struct {
      expar::tensor_view<std::int32_t, 2> ids;
      expar::tensor_view<float, 2> weights;
    } const routes{expar::make_view(ids_.data(), tokens_, index_t{top_k}),
                   expar::make_view(weights_.data(), tokens_, index_t{top_k})};
    std::vector<float> out(x_.size()), d_x(x_.size()), d_w(weights_.size());
    auto const view = [&](std::vector<float>& v, index_t n = hidden) {
      return expar::make_view(v.data(), tokens_, n);
    };
    auto const experts = [&](auto const& from, auto const& to, auto& b, expar::slot_range s) {
      index_t const first = b.slot_offsets()[static_cast<std::size_t>(s.first)],
                    last = b.slot_offsets()[static_cast<std::size_t>(s.last)];
      for (index_t i = first; i < last; ++i)
        for (index_t h = 0; h < hidden; ++h) to.row(i)[h] = from.row(i)[h] * 1.37f + .1f;
      sleep_us(experts_us_ * static_cast<double>(last - first) /
               static_cast<double>(b.row_count()));
    };
    figures f{};
    f.forward = us_of([&] {
      moe.run(
          ctx, view(x_), routes, batch,
          [&](auto& b, expar::slot_range s) { experts(b.rows(), b.y(), b, s); }, view(out));
    });
    f.backward = us_of([&] {
      moe.run_backward(
          ctx, view(d_out_), batch,
          [&](auto& b, expar::slot_range s) { experts(b.d_y(), b.d_rows(), b, s); }, view(d_x),
          view(d_w, top_k));
    });
    made.clear();
    for (auto const* v : {&out, &d_x, &d_w}) made.insert(made.end(), v->begin(), v->end());
    return f;
  }

 private:
  /// Microseconds until the last rank has finished what all begin at one instant.
  template <class Operation>
  double us_of(Operation operation) {
    double ready = MPI_Wtime(), begin = 0;
    MPI_Allreduce(&ready, &begin, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    begin += 100e-6;
    sleep_us((begin - MPI_Wtime()) * 1e6);
    operation();
    double took = MPI_Wtime() - begin, longest = 0;
    MPI_Reduce(&took, &longest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    return longest * 1e6;
  }

  expar::mpi_communicator& comm_;
  index_t tokens_;
  double experts_us_;
  std::vector<float> x_, d_out_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
};

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc < 4) {
    std::fprintf(stderr, "smpirun -np RANKS ... chunks TOKENS EXPERTS_US CHUNKS...\n");
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  {
    expar::mpi_communicator comm(MPI_COMM_WORLD);
    layer l(comm, std::atol(argv[1]), std::atof(argv[2]));
    std::vector<float> one, made;
    l.run(1, one);
    for (int i = 3; i < argc; ++i) {
      int const chunks = std::atoi(argv[i]);
      figures const f = l.run(chunks, made);
      int same = std::memcmp(one.data(), made.data(), one.size() * sizeof(float)) == 0, all = 0;
      MPI_Reduce(&same, &all, 1, MPI_INT, MPI_MIN, 0, MPI_COMM_WORLD);
      if (comm.rank() == 0)
        std::printf("{\"chunks\": %d, \"forward\": %.3f, \"backward\": %.3f, \"same\": %s}\n",
                    chunks, f.forward, f.backward, all ? "true" : "false");
    }
  }
  MPI_Finalize();
}

// SPDX-License-Identifier: Apache-2.0
// A rank that is lost, and what the others do then. MPI may never end afterwards, so each scenario
// is a run of its own, which says at last that all was right.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <expar/comm/mpi_node.hpp>
#include <expar/expert_parallel.hpp>
#include <expar/router/routes.hpp>

namespace {

using expar::host_context;
using expar::mpi_communicator;
using expar::mpi_node_communicator;

constexpr std::chrono::milliseconds deadline{1500};
std::string found;  // what was not as it should be

void expect(bool holds, std::string const& what) {
  if (!holds) found += what + "\n";
}
void expect_same(std::string const& got, std::string const& wanted) {
  expect(got == wanted, "'" + got + "', not '" + wanted + "'");
}

// Calls f until a rank is lost, and says when that took too long.
template <class F>
expar::lost_rank lost_in(F f) {
  for (;;) {
    double const begun = MPI_Wtime();
    try {
      f();
    } catch (expar::lost_rank const& e) {
      expect(MPI_Wtime() - begun < 2e-3 * static_cast<double>(deadline.count()),
             "a rank is lost later than after two deadlines");
      return e;
    }
  }
}

template <class Comm>
void expect_dead(Comm const& comm, std::string const& sentence) {
  double const begun = MPI_Wtime();
  for (int i = 0; i < 1000; ++i) {
    try {
      comm.barrier(host_context());
      found += "a dead communicator works\n";
    } catch (expar::lost_rank const& e) {
      if (e.what() != sentence) found += "a dead communicator says " + std::string(e.what()) + "\n";
    }
  }
  expect(MPI_Wtime() - begun < .5, "a dead communicator waits");
}

// Every rank sends a row to each expert and gets it back twice; then rank 0 says what all found.
template <class Comm>
void go_on(Comm comm) {
  host_context const ctx;
  int const experts = 2 * comm.size(), hidden = 4;
  std::vector<std::int32_t> ids;
  std::vector<float> x, weights, out(static_cast<std::size_t>(experts * hidden));
  for (int e = 0; e < experts; ++e) {
    ids.push_back(e), weights.push_back(2);
    for (int h = 0; h < hidden; ++h)
      x.push_back(static_cast<float>(1000 * comm.rank() + 10 * e + h));
  }
  expar::expert_parallel moe(comm, {experts, 1, hidden});
  expar::expert_batch<float> batch;
  expar::routes_view<float> const routes{expar::make_view(ids.data(), experts, 1),
                                         expar::make_view(weights.data(), experts, 1)};
  moe.dispatch(ctx, expar::make_view(x.data(), experts, hidden), routes, batch);
  moe.combine(ctx, batch, batch.rows(), expar::make_view(out.data(), experts, hidden));
  for (std::size_t i = 0; i < x.size(); ++i)
    if (out[i] < 2 * x[i] || out[i] > 2 * x[i]) found += "a row is wrong\n";

  std::vector<char> line(2000), all(line.size() * static_cast<std::size_t>(comm.size()));
  std::strncpy(line.data(), found.c_str(), line.size() - 1);
  comm.all_gather(ctx, line.data(), all.data(), line.size());
  std::string of_all;
  for (int p = 0; p < comm.size(); ++p) of_all += &all[static_cast<std::size_t>(p) * line.size()];
  if (comm.rank() == 0)
    std::printf("%s%d ranks go on: %s\n", of_all.c_str(), comm.size(),
                of_all.empty() ? "all is right" : "wrong");
  std::fflush(stdout);
  comm.barrier(ctx);
}

// An executor that ends the process.
struct last_executor {
  unsigned concurrency() const { return 2; }
  void run(int, expar::task) const { std::raise(SIGKILL); }
};

// Rank 1 dies between two exchanges, or in one: outside of MPI, since the memory that processes of
// one machine share must stay in order.
void killed(bool in_exchange) {
  mpi_communicator comm(MPI_COMM_WORLD, std::size_t{1} << 30, deadline);
  std::size_t const bytes = in_exchange ? std::size_t{3} << 20 : 64;
  std::vector<char> in(bytes * static_cast<std::size_t>(comm.size())), out(in.size());
  last_executor pool;
  host_context const ordinary, last(pool);
  int calls = 0;
  auto const e = lost_in([&] {
    bool const dies = comm.rank() == 1 && ++calls == 10;
    if (dies && !in_exchange) std::raise(SIGKILL);
    comm.all_to_all(dies ? last : ordinary, in.data(), out.data(), bytes);
  });
  std::string const said = e.what();
  expect(said == "expar: all_to_all: rank 1 did not come within 1500 ms" ||
             said.find(" rank 1 gave error ") != said.npos,  // MPI knew it before
         said);
  expect(e.rank() == 1, "another rank is named");
  expect_dead(comm, e.what());
  comm = comm.without(e.rank());
  go_on(std::move(comm));
}

// One byte from a rank of the world.
void await(int rank) {
  char byte = 0;
  MPI_Recv(&byte, 1, MPI_BYTE, rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}
void release(int rank) {
  char const byte = 0;
  MPI_Send(&byte, 1, MPI_BYTE, rank, 0, MPI_COMM_WORLD);
}

// The last rank does not come, and comes back when the others have given it up.
void absent() {
  mpi_communicator comm(MPI_COMM_WORLD, std::size_t{1} << 30, deadline);
  int const last = comm.size() - 1;
  std::string const late = std::to_string(last);
  if (comm.rank() == last) {
    await(0);
    auto const e = lost_in([&] { comm.barrier(host_context()); });
    expect_same(e.what(), "expar: barrier: rank 0 gave up rank " + late +
                              ", which did not come within 1500 ms");
    expect(e.rank() == 0, "another rank is named");
    expect_dead(comm, e.what());
    MPI_Send(found.c_str(), static_cast<int>(found.size()), MPI_CHAR, 0, 0, MPI_COMM_WORLD);
    await(0);
    return;
  }
  auto const e = lost_in([&] { comm.barrier(host_context()); });
  expect_same(e.what(), "expar: barrier: rank " + late + " did not come within 1500 ms");
  expect(e.rank() == last, "another rank is named");
  expect_dead(comm, e.what());
  if (comm.rank() == 0) {
    char text[1000]{};
    release(last);
    MPI_Recv(text, sizeof text - 1, MPI_CHAR, last, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    found += text;
  }
  go_on(comm.without(e.rank()));
  if (comm.rank() == 0) release(last);
}

// Rank 0 constructs no communicator.
void unmade() {
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank > 0) {
    try {
      mpi_communicator const comm(MPI_COMM_WORLD, std::size_t{1} << 30, deadline);
      found = "a communicator without rank 0\n";
    } catch (expar::error const& e) {
      expect_same(e.what(), "expar: mpi_communicator: not all ranks of comm came within 1500 ms");
    }
  }
  if (!found.empty()) std::printf("wrong: %s", found.c_str());
  if (rank > 0) {
    release(0);
    await(0);
    return;
  }
  for (int peer = 1; peer < size; ++peer) await(peer);
  std::printf("all is right\n");
  std::fflush(stdout);
  for (int peer = 1; peer < size; ++peer) release(peer);
}

// Of ranks that share memory, rank 1 dies between two phases, or anywhere: its end is found before
// any deadline.
void node_killed(bool anywhere) {
  mpi_node_communicator comm(MPI_COMM_WORLD, deadline);
  std::size_t const bytes = std::size_t{3} << 20;
  std::vector<char> in(bytes * static_cast<std::size_t>(comm.size())), out(in.size());
  host_context const ctx;
  auto window = comm.allocate_window(bytes);
  if (comm.rank() == 1 && anywhere) ualarm(static_cast<useconds_t>(20000 + getpid() % 64 * 500), 0);
  int calls = 0;
  double begun = 0;
  auto const e = lost_in([&] {
    begun = MPI_Wtime();
    if (!anywhere && comm.rank() == 1 && ++calls == 1000) std::raise(SIGKILL);
    comm.exchange_phase(ctx);
    if (!anywhere) return;
    comm.all_to_all(ctx, in.data(), out.data(), bytes);
    window = comm.allocate_window(bytes);
    std::memset(window.view().peer(1, 0), comm.rank(), bytes);
  });
  expect(MPI_Wtime() - begun < 5e-4 * static_cast<double>(deadline.count()),
         "the end of a rank is found late");
  std::string const said = e.what(), end = ": rank 1 has left and will not come";
  expect(said.ends_with(end), said);
  expect(e.rank() == 1, "another rank is named");
  expect_dead(comm, said);
  std::memset(window.view().peer(1, 0), comm.rank(),
              bytes);  // it is there as long as a rank has it
  comm = comm.without(e.rank());
  go_on(std::move(comm));
}

// The last rank does not come. Where it comes after all, it hears the same.
void node_absent() {
  mpi_node_communicator comm(MPI_COMM_WORLD, deadline);
  int const last = comm.size() - 1;
  if (comm.rank() == last) await(0);
  auto const e = lost_in([&] { comm.barrier(host_context()); });
  expect_same(e.what(),
              "expar: barrier: rank " + std::to_string(last) + " did not come within 1500 ms");
  expect(e.rank() == last, "another rank is named");
  expect_dead(comm, e.what());
  if (comm.rank() == last) {
    MPI_Send(found.c_str(), static_cast<int>(found.size()), MPI_CHAR, 0, 0, MPI_COMM_WORLD);
    await(0);
    return;
  }
  if (comm.rank() == 0) {
    char text[1000]{};
    release(last);
    MPI_Recv(text, sizeof text - 1, MPI_CHAR, last, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    found += text;
  }
  go_on(comm.without(e.rank()));
  if (comm.rank() == 0) release(last);
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  std::signal(SIGUSR1, SIG_IGN);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  std::string const scenario = argc > 1 ? argv[1] : "";
  try {
    if (scenario == "killed") killed(false);
    if (scenario == "killed_in_exchange") killed(true);
    if (scenario == "absent") absent();
    if (scenario == "unmade") unmade();
    if (scenario == "node_killed") node_killed(false);
    if (scenario == "node_killed_anywhere") node_killed(true);
    if (scenario == "node_absent") node_absent();
  } catch (std::exception const& e) {
    std::printf("%swrong: %s\n", found.c_str(), e.what());
    std::fflush(stdout);
  }
  std::_Exit(0);
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/overlap.hpp>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <expar/comm/mpi.hpp>

#include "../support/catch.hpp"
#include "../support/layer_by_chunks.hpp"
#include "../support/mpi_main.hpp"

namespace {

using namespace expar_test;

/// What f returns on each rank.
template <class F>
std::vector<std::string> on_all(expar::mpi_communicator& comm, F f) {
  char mine[512]{};
  std::string const said = f();
  std::strncpy(mine, said.c_str(), sizeof mine - 1);
  std::vector<char> all(sizeof mine * static_cast<std::size_t>(comm.size()));
  MPI_Allgather(mine, sizeof mine, MPI_CHAR, all.data(), sizeof mine, MPI_CHAR, MPI_COMM_WORLD);
  std::vector<std::string> sentences;
  for (std::size_t at = 0; at < all.size(); at += sizeof mine) sentences.emplace_back(&all[at]);
  return sentences;
}

}  // namespace

TEST_CASE("overlapped_layer over MPI: every bit is that of expert_parallel") {
  // Pieces of a message, and whole ones.
  auto const most = GENERATE(std::size_t{1} << 30, std::size_t{256});
  expar::mpi_communicator comm(MPI_COMM_WORLD, most);
  expar::host_context const ctx;
  for (std::uint64_t seed = 40; seed < 52; ++seed) {
    layer_by_chunks const layer(seed, comm.size());
    for (int const chunks : {1, 2, 4})
      for (auto const& said : on_all(comm, [&] {
             auto wrong =
                 wrong_in_any_layout<float, expar::weights_at_decode>(ctx, comm, layer, chunks);
             if (wrong.empty() && chunks == 2)
               wrong = wrong_in_any_layout<float, expar::weights_per_row>(ctx, comm, layer, chunks);
             return wrong;
           }))
        REQUIRE(said == "");
  }
}

TEST_CASE("overlapped_layer over MPI: experts that throw on one rank are one sentence on all") {
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  expar::host_context const ctx;
  layer_by_chunks layer(3, comm.size());
  layer.place = expar::placement::blocks(layer.experts, comm.size()), layer.quotas = false;
  using run_type = layer_run<float, expar::weights_at_decode>;
  expar::overlapped_layer moe(comm, layer.shape(), 3);
  auto batch = moe.make_batch<float>();
  for (int chunk = 0; chunk < 3; ++chunk)
    for (auto const& said : on_all(comm, [&]() -> std::string {
           run_type run(layer, comm.rank(), 0);
           if (comm.rank() == comm.size() - 1) run.throws_in = chunk;
           try {
             run.by_chunks(ctx, moe, batch);
           } catch (expar::error const& e) {
             return e.what();
           } catch (std::runtime_error const&) {  // of one rank alone
             return comm.size() == 1 ? "expar: an exception: an expert is ill (rank 0)" : "";
           }
           return "";
         }))
      CHECK(said ==
            "expar: an exception: an expert is ill (rank " + std::to_string(comm.size() - 1) + ")");
  expar::messages x(comm);
  expar::expert_parallel whole(x, layer.shape());
  for (auto const& said : on_all(comm, [&] {
         run_type one(layer, comm.rank(), 1), other(layer, comm.rank(), 1);
         return one.whole(ctx, whole) == other.by_chunks(ctx, moe, batch) ? "" : "other bytes";
       }))
    CHECK(said == "");
}

// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/mpi.hpp>

#include <climits>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <expar/laws.hpp>

#include "../comm/random_rounds.hpp"
#include "../support/catch.hpp"
#include "../support/mpi_main.hpp"
#include "ranks.hpp"

namespace {

using namespace expar_test;
using expar::host_context;
using expar::mpi_communicator;

void ignore_error(MPI_Comm*, int*, ...) {}

}  // namespace

TEST_CASE("mpi_communicator: the laws on all ranks") {
  auto const most = GENERATE(std::size_t{1} << 30, std::size_t{1000}, std::size_t{97});
  CAPTURE(most);
  CHECK(everyone([&] {
          mpi_communicator comm(MPI_COMM_WORLD, most);
          return expar::broken_communicator_law(host_context(), comm);
        }) == all_say(""));
}

TEST_CASE("mpi_communicator: the laws on parts of the world") {
  SECTION("two halves at once") {
    part const half(world_rank() % 2, world_rank());
    CHECK(everyone([&] {
            mpi_communicator comm(half.get());
            return expar::broken_communicator_law(host_context(), comm);
          }) == all_say(""));
  }
  SECTION("every rank alone") {
    CHECK(everyone([&] {
            mpi_communicator comm(MPI_COMM_SELF);
            return expar::broken_communicator_law(host_context(), comm);
          }) == all_say(""));
  }
  SECTION("all but rank 0") {
    part const others(world_rank() == 0 ? MPI_UNDEFINED : 1, world_rank());
    CHECK(everyone([&]() -> std::string {
            if (others.get() == MPI_COMM_NULL) return "";
            mpi_communicator comm(others.get());
            return expar::broken_communicator_law(host_context(), comm);
          }) == all_say(""));
  }
}

TEST_CASE("mpi_communicator: ranks are those of the communicator, not of the world") {
  part const reversed(0, -world_rank());
  CHECK(everyone([&]() -> std::string {
          mpi_communicator comm(reversed.get());
          if (comm.rank() != world_size() - 1 - world_rank()) return "not reversed";
          int const mine = world_rank();
          std::vector<int> all(static_cast<std::size_t>(comm.size()));
          comm.all_gather(host_context(), &mine, all.data(), sizeof mine);
          for (int p = 0; p < comm.size(); ++p)
            if (all[static_cast<std::size_t>(p)] != comm.size() - 1 - p) return "wrong order";
          return expar::broken_communicator_law(host_context(), comm);
        }) == all_say(""));
}

TEST_CASE("mpi_communicator: 200 exchanges back to back, ranks late at random") {
  auto const most = GENERATE(std::size_t{1} << 30, std::size_t{64});
  CAPTURE(most);
  CHECK(everyone([&] {
          mpi_communicator comm(MPI_COMM_WORLD, most);
          return wrong_bytes(expar_test::random_rounds(host_context(), comm, 200, 5));
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_communicator: two communicators over the same ranks, used in turn") {
  CHECK(everyone([&] {
          mpi_communicator a(MPI_COMM_WORLD), b(MPI_COMM_WORLD, 100);
          long wrong = 0;
          for (std::uint64_t seed = 0; seed < 20; ++seed)
            wrong += expar_test::random_rounds(host_context(), seed % 2 == 0 ? a : b, 3, seed);
          return wrong_bytes(wrong);
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_communicator: its messages are its own") {
  // A receive of the caller's for any message of any rank stays empty through an exchange.
  CHECK(everyone([&]() -> std::string {
          mpi_communicator comm(MPI_COMM_WORLD);
          int caught = 0, arrived = 0;
          MPI_Request any;
          MPI_Irecv(&caught, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &any);
          long const wrong = expar_test::random_rounds(host_context(), comm, 20, 6);
          MPI_Test(&any, &arrived, MPI_STATUS_IGNORE);
          comm.barrier(host_context());
          int const next = (world_rank() + 1) % world_size(), sent = 42;
          MPI_Send(&sent, 1, MPI_INT, next, 3, MPI_COMM_WORLD);
          if (arrived == 0) MPI_Wait(&any, MPI_STATUS_IGNORE);
          if (arrived != 0) return "caught a message";
          return caught == 42 ? wrong_bytes(wrong) : "lost a message";
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_communicator: it moves") {
  STATIC_REQUIRE(std::is_nothrow_move_constructible_v<mpi_communicator>);
  STATIC_REQUIRE(std::is_nothrow_move_assignable_v<mpi_communicator>);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<mpi_communicator>);
  CHECK(everyone([&] {
          mpi_communicator first(MPI_COMM_WORLD), other(MPI_COMM_SELF);
          mpi_communicator second(std::move(first));
          other = std::move(second);
          mpi_communicator& same = other;
          other = std::move(same);
          return std::to_string(other.size() - world_size()) + " " +
                 wrong_bytes(expar_test::random_rounds(host_context(), other, 20, 7));
        }) == all_say("0 0 wrong bytes"));
}

TEST_CASE("mpi_communicator: what it duplicates it frees") {
  // More than the libraries have communicators to give.
  CHECK(everyone([&]() -> std::string {
          for (int i = 0; i < 2500; ++i) mpi_communicator const comm(MPI_COMM_WORLD);
          return "";
        }) == all_say(""));
}

TEST_CASE("mpi_communicator: the error handler of the caller's communicator stays") {
  CHECK(everyone([&]() -> std::string {
          part const mine(0, world_rank());
          MPI_Errhandler own, after;
          MPI_Comm_create_errhandler(ignore_error, &own);
          MPI_Comm_set_errhandler(mine.get(), own);
          mpi_communicator const comm(mine.get());
          MPI_Comm_get_errhandler(mine.get(), &after);
          bool const same = after == own;
          MPI_Errhandler of_duplicate;
          MPI_Comm_get_errhandler(comm.native_handle(), &of_duplicate);
          bool const returns = of_duplicate == MPI_ERRORS_RETURN;
          MPI_Errhandler_free(&after);
          MPI_Errhandler_free(&own);
          MPI_Errhandler_free(&of_duplicate);
          return same ? returns ? "" : "the duplicate does not return errors" : "replaced";
        }) == all_say(""));
}

TEST_CASE("mpi_communicator: what it cannot be made of") {
  CHECK(expar_test::said_before_mpi_init() ==
        "expar: mpi_communicator: MPI is not running; construct between MPI_Init and MPI_Finalize");
  CHECK(everyone([] {
          mpi_communicator const comm(MPI_COMM_NULL);
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: comm is MPI_COMM_NULL"));
  CHECK(everyone([] {
          mpi_communicator const comm(MPI_COMM_WORLD, 0);
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: max_message is 0; it lies between 1 and " +
                      std::to_string(INT_MAX)));
  CHECK(everyone([] {
          mpi_communicator const comm(MPI_COMM_WORLD, 1, std::chrono::milliseconds(-1));
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: deadline is -1 ms; at least 1 is needed"));
  if (world_size() < 2) return;
  CHECK(everyone([] {
          mpi_communicator const comm(MPI_COMM_WORLD, world_rank() == 1 ? 4096 : 1 << 20);
          return std::string();
        }) ==
        all_say("throws: expar: mpi_communicator: max_message is 4096 on one rank and 1048576 "
                "on another; all ranks must pass the same"));
  CHECK(everyone([] {
          using std::chrono::milliseconds;
          mpi_communicator const comm(MPI_COMM_WORLD, 1,
                                      milliseconds(world_rank() == 1 ? 0 : 9000));
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: deadline (ms) is 0 on one rank and 9000 on "
                      "another; all ranks must pass the same"));
  part const half(world_rank() % 2, world_rank());
  MPI_Comm between = MPI_COMM_NULL;
  MPI_Intercomm_create(half.get(), 0, MPI_COMM_WORLD, 1 - world_rank() % 2, 0, &between);
  CHECK(everyone([&] {
          mpi_communicator const comm(between);
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: comm is an intercommunicator; only an "
                      "intracommunicator numbers all ranks"));
  MPI_Comm_free(&between);
}

TEST_CASE("mpi_communicator: ranks that disagree about a size get one sentence, and go on") {
  STATIC_REQUIRE(expar::traits_of<mpi_communicator>().checks_sizes);
  if (world_size() < 2) return;
  auto const ranks = static_cast<std::size_t>(world_size());
  std::size_t const most = GENERATE(std::size_t{1} << 30, std::size_t{1000});
  mpi_communicator comm(MPI_COMM_WORLD, most);
  constexpr std::size_t room = 20000;
  // All ranks send `others` bytes to each other; rank 0 and rank 1 say more. Gives the sentence, or
  // how many bytes are wrong of those from ranks that agree with this one.
  auto const exchange = [&](std::size_t others, std::size_t sent_by_0, std::size_t expected_by_1) {
    return everyone([&]() -> std::string {
      std::vector<std::size_t> sent(ranks, others), got(ranks, others), places(ranks);
      for (std::size_t p = 0; p < ranks; ++p) places[p] = p * room;
      if (world_rank() == 0) sent[1] = sent_by_0;
      if (world_rank() == 1) got[0] = expected_by_1;
      std::vector<char> in(ranks * room, static_cast<char>(world_rank() + 1)), out(ranks * room);
      std::string said;
      try {
        comm.all_to_all_v(host_context(), in.data(), sent, places, out.data(), got, places);
      } catch (expar::disagreement const& e) {
        said = e.what();
      }
      long wrong = 0;
      for (std::size_t p = 0; p < ranks; ++p) {
        if (static_cast<std::size_t>(world_rank()) + p == 1 && sent_by_0 != expected_by_1) continue;
        for (std::size_t k = 0; k < got[p]; ++k)
          wrong += out[p * room + k] != static_cast<char>(p + 1);
      }
      return said + "; " + wrong_bytes(wrong);
    });
  };
  auto const sentence = [&](std::size_t sent, std::size_t expected) {
    auto said = all_say("; 0 wrong bytes");
    for (std::size_t rank : {0u, 1u})
      said[rank] = "expar: all_to_all_v: rank 0 sends " + std::to_string(sent) +
                   " bytes to rank 1, which expects " + std::to_string(expected) + said[rank];
    return said;
  };
  for (std::size_t others : {0u, 5u, 20000u})
    for (auto const& [sent, expected] : {std::pair{8u, 4u},
                                         {4u, 8u},
                                         {0u, 1u},
                                         {1u, 0u},
                                         {4096u, 4097u},
                                         {4097u, 4096u},
                                         {20000u, 19999u}}) {
      CAPTURE(most, others, sent, expected);
      CHECK(exchange(others, sent, expected) == sentence(sent, expected));
      CHECK(exchange(others, sent, sent) == all_say("; 0 wrong bytes"));
    }
}

TEST_CASE("mpi_communicator: a rank that disagrees with itself") {
  mpi_communicator comm(MPI_COMM_WORLD);
  auto said = everyone([&]() -> std::string {
    auto const ranks = static_cast<std::size_t>(world_size());
    std::vector<std::size_t> sent(ranks, 0), got(ranks, 0), places(ranks, 0);
    if (world_rank() == 0) sent[0] = 3, got[0] = 4;
    char in[4]{}, out[4]{};
    comm.all_to_all_v(host_context(), in, sent, places, out, got, places);
    return "";
  });
  CHECK(said[0] == "throws: expar: all_to_all_v: rank 0 sends 3 bytes to itself but expects 4");
  said[0].clear();
  CHECK(said == all_say(""));
  CHECK(everyone([&] {
          return wrong_bytes(expar_test::random_rounds(host_context(), comm, 5, 8));
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_communicator: a rank that skips a call is a sentence on all, and all go on") {
  if (world_size() < 2) return;
  std::size_t const bytes = GENERATE(std::size_t{4}, std::size_t{100000});
  mpi_communicator comm(MPI_COMM_WORLD);
  std::vector<char> in(bytes * static_cast<std::size_t>(world_size())), out(in.size());
  bool const skips = world_rank() == 1;
  CAPTURE(bytes);
  auto said = everyone([&]() -> std::string {
    if (!skips) comm.all_gather(host_context(), in.data(), out.data(), bytes);
    comm.all_to_all(host_context(), in.data(), out.data(), bytes);
    return "";
  });
  std::string const end = "; all ranks call the same operations in the same order";
  for (int rank = 0; rank < world_size(); ++rank)
    CHECK(said[static_cast<std::size_t>(rank)] ==
          (rank < 2 ? "throws: expar: rank 0 calls all_gather while rank 1 calls all_to_all" + end
                    : "throws: expar: rank 1 calls all_to_all while rank " + std::to_string(rank) +
                          " calls all_gather" + end));
  CHECK(everyone([&] {
          return wrong_bytes(expar_test::random_rounds(host_context(), comm, 20, 9));
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_communicator: an executor that throws on one rank leaves nothing behind") {
  struct {
    unsigned concurrency() const { return 2; }
    void run(int, expar::task) { throw std::runtime_error("no threads today"); }
  } pool;
  mpi_communicator comm(MPI_COMM_WORLD);
  std::size_t const bytes = std::size_t{3} << 20;
  auto said = everyone([&]() -> std::string {
    std::vector<char> in(bytes, static_cast<char>(world_rank()));
    std::vector<char> out(bytes * static_cast<std::size_t>(world_size()), 99);
    std::string what;
    try {
      comm.all_gather(world_rank() == 0 ? host_context(pool) : host_context(), in.data(),
                      out.data(), bytes);
    } catch (std::runtime_error const& e) {
      what = e.what();
    }
    long wrong = 0;
    for (std::size_t k = 0; k < out.size(); ++k)
      wrong += (world_rank() != 0 || k >= bytes) && out[k] != static_cast<char>(k / bytes);
    return what + "; " + wrong_bytes(wrong);
  });
  CHECK(said[0] == "no threads today; 0 wrong bytes");
  said[0] = "; 0 wrong bytes";
  CHECK(said == all_say("; 0 wrong bytes"));
  CHECK(everyone([&] {
          return wrong_bytes(expar_test::random_rounds(host_context(), comm, 20, 10));
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_communicator: a ticket that gets less than it expects") {
  std::string const odd = world_size() > 1 ? "throws: expar: all_to_all_v: rank 1 sends 3 bytes to "
                                             "rank 0, which expects 8"
                                           : "";
  auto const said = everyone([&]() -> std::string {
    mpi_communicator comm(MPI_COMM_WORLD);
    std::vector<std::size_t> counts(static_cast<std::size_t>(comm.size()), 8), places;
    for (std::size_t p = 0; p < counts.size(); ++p) places.push_back(8 * p);
    std::vector<std::size_t> sent = counts;
    if (comm.rank() == 1) sent[0] = 3;
    std::vector<char> in(8 * counts.size(), 'a'), out(in.size());
    {
      auto ticket = comm.start_all_to_all_v(host_context(), in.data(), sent, places, out.data(),
                                            counts, places);
      try {
        ticket.wait();
      } catch (expar::disagreement const& e) {
        if (expar_test::random_rounds(host_context(), comm, 5, 3) != 0) return "it does not go on";
        throw;
      }
    }
    return expar_test::random_rounds(host_context(), comm, 5, 3) != 0 ? "it does not go on" : "";
  });
  auto expected = all_say("");
  expected[0] = odd;
  CHECK(said == expected);
}

TEST_CASE("mpi_communicator: without a rank, the others go on under numbers of their own") {
  if (world_size() < 2) return;
  int const lost = GENERATE(0, 1);
  CAPTURE(lost);
  CHECK(everyone([&]() -> std::string {
          mpi_communicator comm(MPI_COMM_WORLD, 1000);
          comm.barrier(host_context());
          if (world_rank() == lost) return "";
          mpi_communicator others = comm.without(lost);
          if (others.size() != world_size() - 1) return "another size";
          if (others.rank() != world_rank() - (world_rank() > lost)) return "another rank";
          long wrong = expar_test::random_rounds(host_context(), others, 20, 11);
          if (others.size() > 1) {  // rank 0 of these goes, too
            if (others.rank() == 0) return wrong == 0 ? "" : wrong_bytes(wrong);
            others = others.without(0);
            wrong += expar_test::random_rounds(host_context(), others, 20, 12);
          }
          if (wrong != 0) return wrong_bytes(wrong);
          return expar::broken_communicator_law(host_context(), others);
        }) == all_say(""));
}

TEST_CASE("mpi_communicator: ranks that go on without different ranks") {
  if (world_size() != 4) return;
  auto const said = everyone([&]() -> std::string {
    mpi_communicator const comm(MPI_COMM_WORLD);
    comm.without((world_rank() + 2) % 4).barrier(host_context());
    return "";
  });
  auto expected =
      all_say("throws: expar: barrier: rank 0 and rank 1 go on without different ranks");
  expected[3] = "throws: expar: barrier: rank 0 and rank 2 go on without different ranks";
  CHECK(said == expected);
}

TEST_CASE("mpi_communicator: which rank to go on without") {
  mpi_communicator comm(MPI_COMM_WORLD);
  for (int lost : {-1, world_rank(), world_size()})
    CHECK(everyone([&] {
            comm.without(lost);
            return std::string();
          })[static_cast<std::size_t>(world_rank())] ==
          "throws: expar: without: lost is " + std::to_string(lost) +
              "; it is another rank than this one, " + std::to_string(world_rank()) + ", of " +
              std::to_string(world_size()));
}

// Needs 2.1 GiB on each of two ranks.
TEST_CASE("mpi_communicator: a segment longer than an int can count", "[.large]") {
  if (world_size() < 2) return;
  constexpr std::size_t bytes = static_cast<std::size_t>(INT_MAX) + (std::size_t{64} << 20) + 5;
  CHECK(everyone([&] {
          mpi_communicator comm(MPI_COMM_WORLD);
          auto const ranks = static_cast<std::size_t>(world_size());
          auto const value = [](std::size_t k) { return static_cast<unsigned char>(k % 251); };
          std::vector<std::size_t> sent(ranks, 0), got(ranks, 0), places(ranks, 0);
          std::vector<unsigned char> in, out;
          if (world_rank() == 0) {
            sent[1] = bytes, in.resize(bytes);
            for (std::size_t k = 0; k < bytes; ++k) in[k] = value(k);
          }
          if (world_rank() == 1) got[0] = bytes, out.resize(bytes);
          comm.all_to_all_v(host_context(), in.data(), sent, places, out.data(), got, places);
          long wrong = 0;
          for (std::size_t k = 0; k < out.size(); ++k) wrong += out[k] != value(k);
          return wrong_bytes(wrong);
        }) == all_say("0 wrong bytes"));
}

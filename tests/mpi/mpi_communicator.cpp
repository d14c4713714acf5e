// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/mpi.hpp>

#include <climits>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <expar/laws.hpp>

#include "../comm/random_rounds.hpp"
#include "../support/catch.hpp"
#include "../support/mpi_main.hpp"

// An assertion that failed on one rank alone would leave the others waiting for it. So each test
// lets every rank say something, gathers that, and all ranks assert the same.

namespace {

using expar::host_context;
using expar::mpi_communicator;

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}
int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

std::vector<std::string> gathered(std::string const& mine) {
  constexpr std::size_t room = 512;
  std::vector<char> all(room * static_cast<std::size_t>(world_size()));
  char line[room]{};
  std::strncpy(line, mine.c_str(), room - 1);
  MPI_Allgather(line, room, MPI_CHAR, all.data(), room, MPI_CHAR, MPI_COMM_WORLD);
  std::vector<std::string> said;
  for (std::size_t at = 0; at < all.size(); at += room) said.emplace_back(&all[at]);
  return said;
}

// What f returns or throws, of every rank.
template <class F>
std::vector<std::string> everyone(F f) {
  std::string mine;
  try {
    mine = f();
  } catch (std::exception const& e) {
    mine = std::string("throws: ") + e.what();
  }
  return gathered(mine);
}

std::vector<std::string> all_say(std::string const& sentence) {
  return std::vector<std::string>(static_cast<std::size_t>(world_size()), sentence);
}

// MPI_COMM_WORLD split, and freed again.
class part {
 public:
  part(int color, int key) { MPI_Comm_split(MPI_COMM_WORLD, color, key, &comm_); }
  part(part const&) = delete;
  ~part() {
    if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }
  MPI_Comm get() const { return comm_; }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

void ignore_error(MPI_Comm*, int*, ...) {}

// An MPI library may raise what goes wrong with a pending message on these two.
class returning_errors {
 public:
  returning_errors() {
    for (int i = 0; i < 2; ++i) {
      MPI_Comm_get_errhandler(both_[i], &before_[i]);
      MPI_Comm_set_errhandler(both_[i], MPI_ERRORS_RETURN);
    }
  }
  returning_errors(returning_errors const&) = delete;
  ~returning_errors() {
    for (int i = 0; i < 2; ++i) {
      MPI_Comm_set_errhandler(both_[i], before_[i]);
      MPI_Errhandler_free(&before_[i]);
    }
  }

 private:
  MPI_Comm both_[2]{MPI_COMM_WORLD, MPI_COMM_SELF};
  MPI_Errhandler before_[2]{};
};

std::string wrong_bytes(long n) {
  return std::to_string(n) + " wrong bytes";
}

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
  if (world_size() < 2) return;
  CHECK(everyone([] {
          mpi_communicator const comm(MPI_COMM_WORLD, world_rank() == 1 ? 4096 : 1 << 20);
          return std::string();
        }) ==
        all_say("throws: expar: mpi_communicator: max_message is 4096 on one rank and 1048576 "
                "on another; all ranks must pass the same"));
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

TEST_CASE("mpi_communicator: ranks that disagree about a size") {
  if (world_size() < 2) return;
  returning_errors const scope;
  auto const ranks = static_cast<std::size_t>(world_size());
  auto const exchange = [&](std::size_t sent_by_0, std::size_t expected_by_1) {
    return everyone([&]() -> std::string {
      mpi_communicator comm(MPI_COMM_WORLD);
      std::vector<std::size_t> sent(ranks, 0), got(ranks, 0), places(ranks, 0);
      if (world_rank() == 0) sent[1] = sent_by_0;
      if (world_rank() == 1) got[0] = expected_by_1;
      char in[64]{}, out[64]{};
      comm.all_to_all_v(host_context(), in, sent, places, out, got, places);
      return "";
    });
  };
  SECTION("more than expected is an error of MPI, in its words") {
    auto said = exchange(8, 4);
    std::string const start =
        "throws: expar: all_to_all_v: receiving 4 bytes from rank 0 gave error ";
    CAPTURE(said);
    CHECK(said[1].compare(0, start.size(), start) == 0);
    CHECK(said[1].find("runcat") != std::string::npos);
    said[1].clear();
    CHECK(said == all_say(""));
  }
  SECTION("less than expected") {
    auto said = exchange(4, 8);
    CHECK(said[1] ==
          "throws: expar: all_to_all_v: rank 0 sends 4 bytes to rank 1, which expects 8");
    said[1].clear();
    CHECK(said == all_say(""));
  }
  SECTION("of a rank with itself") {
    auto said = everyone([&]() -> std::string {
      mpi_communicator comm(MPI_COMM_WORLD);
      std::vector<std::size_t> sent(ranks, 0), got(ranks, 0), places(ranks, 0);
      if (world_rank() == 0) sent[0] = 3, got[0] = 4;
      char in[4]{}, out[4]{};
      comm.all_to_all_v(host_context(), in, sent, places, out, got, places);
      return "";
    });
    CHECK(said[0] == "throws: expar: all_to_all_v: rank 0 sends 3 bytes to itself but expects 4");
    said[0].clear();
    CHECK(said == all_say(""));
  }
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

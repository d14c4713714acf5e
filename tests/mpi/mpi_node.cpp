// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/mpi_node.hpp>

#include <sys/resource.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <expar/laws.hpp>

#include "../comm/random_rounds.hpp"
#include "../support/catch.hpp"
#include "ranks.hpp"

namespace {

using namespace expar_test;
using expar::host_context;
using expar::mpi_node_communicator;

std::string const in_order = "; all ranks call the same operations in the same order";

// How often this process has memory that a communicator shares.
std::size_t shared_maps() {
  std::ifstream maps("/proc/self/maps");
  std::size_t n = 0;
  for (std::string line; std::getline(maps, line);) n += line.find("memfd:expar") != line.npos;
  return n;
}

// The ranks of the world, without the deadlines of what brings them together.
expar::detail::node_exchange exchange_of_world(std::chrono::milliseconds deadline) {
  using namespace expar::detail;
  struct {
    node_address address;
    std::size_t board;
  } place{};
  auto const ranks = static_cast<std::size_t>(world_size());
  auto memory = std::make_shared<node_memory>();
  int error = 0;
  if (world_rank() == 0) {
    error = memory->make(world_size(), 1) | memory->take(node_board::bytes_for(ranks), place.board);
    place.address = memory->file().address();
  }
  MPI_Bcast(&place, sizeof place, MPI_BYTE, 0, MPI_COMM_WORLD);
  if (world_rank() != 0) error = memory->open(place.address, world_size(), 1);
  node_mapping map;
  error |= memory->enter(world_rank());
  error |= map.map(memory->file(), place.board, node_board::bytes_for(ranks));
  std::vector<int> members;
  for (int r = 0; r < world_size(); ++r) members.push_back(r);
  if (error != 0) throw std::runtime_error("no memory");
  MPI_Barrier(MPI_COMM_WORLD);
  return node_exchange({std::move(memory), std::move(map), std::move(members),
                        static_cast<std::size_t>(world_rank()), deadline});
}

}  // namespace

TEST_CASE("mpi_node_communicator: the laws on all ranks") {
  CHECK(everyone([] {
          mpi_node_communicator comm(MPI_COMM_WORLD);
          return expar::broken_communicator_law(host_context(), comm);
        }) == all_say(""));
}

TEST_CASE("mpi_node_communicator: the laws on parts of the world") {
  SECTION("two halves at once") {
    part const half(world_rank() % 2, -world_rank());
    CHECK(everyone([&] {
            mpi_node_communicator comm(half.get());
            return expar::broken_communicator_law(host_context(), comm);
          }) == all_say(""));
  }
  SECTION("every rank alone") {
    CHECK(everyone([&] {
            mpi_node_communicator comm(MPI_COMM_SELF);
            return expar::broken_communicator_law(host_context(), comm);
          }) == all_say(""));
  }
  SECTION("the machine of a part") {
    part const others(world_rank() == 0 ? MPI_UNDEFINED : 1, -world_rank());
    CHECK(everyone([&]() -> std::string {
            if (others.get() == MPI_COMM_NULL) return "";
            auto comm = mpi_node_communicator::of_node(others.get());
            if (comm.rank() != world_size() - 1 - world_rank()) return "another rank";
            return expar::broken_communicator_law(host_context(), comm);
          }) == all_say(""));
  }
}

TEST_CASE("mpi_node_communicator: on which machine ranks are") {
  CHECK(expar::detail::machines_of({0, 0, 2, 0, 4, 2, 4, 7}) ==
        std::vector<int>{0, 0, 1, 0, 2, 1, 2, 3});
  // The tests run on one.
  auto const one = std::vector<int>(static_cast<std::size_t>(world_size()), 0);
  CHECK(everyone([&]() -> std::string {
          return expar::mpi_node_of(MPI_COMM_WORLD) == one ? "" : "other machines";
        }) == all_say(""));
}

TEST_CASE("mpi_node_communicator: exchanges back to back, ranks late at random, two in turn") {
  CHECK(everyone([] {
          mpi_node_communicator a(MPI_COMM_WORLD), b(MPI_COMM_WORLD);
          long wrong = expar_test::random_rounds(host_context(), a, 200, 5);
          for (std::uint64_t seed = 0; seed < 20; ++seed)
            wrong += expar_test::random_rounds(host_context(), seed % 2 == 0 ? a : b, 3, seed);
          return wrong_bytes(wrong);
        }) == all_say("0 wrong bytes"));
}

TEST_CASE("mpi_node_communicator: it moves") {
  STATIC_REQUIRE(std::is_nothrow_move_constructible_v<mpi_node_communicator>);
  STATIC_REQUIRE(std::is_nothrow_move_assignable_v<mpi_node_communicator>);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<mpi_node_communicator>);
  STATIC_REQUIRE(expar::window_communicator<mpi_node_communicator>);
  STATIC_REQUIRE(expar::traits_of<mpi_node_communicator>().checks_sizes);
  CHECK(everyone([] {
          mpi_node_communicator first(MPI_COMM_WORLD), other(MPI_COMM_SELF);
          mpi_node_communicator second(std::move(first));
          other = std::move(second);
          mpi_node_communicator& same = other;
          other = std::move(same);
          return std::to_string(other.size() - world_size()) + " " +
                 wrong_bytes(expar_test::random_rounds(host_context(), other, 20, 7));
        }) == all_say("0 0 wrong bytes"));
}

TEST_CASE("mpi_node_communicator: what it takes it gives back, and asks nobody") {
  auto const before = shared_maps();
  CHECK(everyone([]() -> std::string {
          for (int i = 0; i < 1500; ++i) mpi_node_communicator const comm(MPI_COMM_WORLD);
          mpi_node_communicator comm(MPI_COMM_WORLD);
          for (int i = 0; i < 1500; ++i) (void)comm.allocate_window(100000);
          return "";
        }) == all_say(""));
  CHECK(shared_maps() == before);
}

TEST_CASE("mpi_node_communicator: a window outlives its communicator and that of its peers") {
  CHECK(everyone([]() -> std::string {
          mpi_node_communicator::window memory, moved;
          auto const none = memory.view();
          if (memory.size_bytes() != 0 || none.size() != 0) return "no window has bytes";
          host_context const ctx;
          int const last = world_size() - 1;
          {
            mpi_node_communicator comm(MPI_COMM_WORLD);
            memory = comm.allocate_window(5000);
            for (int p = 0; p <= last; ++p)
              for (std::size_t k = 0; k < 5000; ++k)
                if (*static_cast<char*>(memory.view().peer(p, k)) != 0) return "not zero";
            comm.exchange_phase(ctx);
            for (int p = 0; p <= last; ++p)
              *static_cast<char*>(
                  memory.view().peer(p, static_cast<std::size_t>(4999 - world_rank()))) = 7;
            comm.exchange_phase(ctx);
          }
          MPI_Barrier(MPI_COMM_WORLD);
          moved = std::move(memory);
          if (world_rank() == 0) moved = {};
          MPI_Barrier(MPI_COMM_WORLD);
          if (world_rank() == 0) return "";
          for (int p = 0; p <= last; ++p)
            for (int r = 0; r <= last; ++r)
              if (*static_cast<char*>(moved.view().peer(p, static_cast<std::size_t>(4999 - r))) !=
                  7)
                return "a byte is lost";
          return "";
        }) == all_say(""));
}

TEST_CASE("mpi_node_communicator: what it cannot be made of") {
  CHECK(everyone([] {
          mpi_node_communicator const comm(MPI_COMM_NULL);
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: comm is MPI_COMM_NULL"));
  CHECK(everyone([] {
          mpi_node_communicator const comm(MPI_COMM_WORLD, std::chrono::milliseconds(0));
          return std::string();
        }) == all_say("throws: expar: mpi_communicator: deadline is 0 ms; at least 1 is needed"));
}

TEST_CASE("mpi_node_communicator: ranks that cannot reach the memory") {
  if (world_size() < 2) return;
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  auto const without_files = [&](int rank, auto make) {
    return everyone([&]() -> std::string {
      // All that MPI opens is open.
      expar::mpi_communicator const link(MPI_COMM_WORLD);
      link.barrier(host_context());
      if (world_rank() == rank) {
        int const next = open("/dev/null", O_RDONLY);
        close(next);
        rlimit const none{static_cast<rlim_t>(next), before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &none);
      }
      std::string said = "nothing thrown";
      try {
        make();
      } catch (expar::error const& e) {
        said = e.what();
      }
      setrlimit(RLIMIT_NOFILE, &before);
      return said;
    });
  };
  CHECK(without_files(1, [] { mpi_node_communicator const comm(MPI_COMM_WORLD); }) ==
        all_say("expar: mpi_node_communicator: rank 1 of comm cannot reach the memory of rank 0 "
                "(Too many open files); all ranks of comm must be on one machine, as those of "
                "of_node()"));
  CHECK(without_files(0, [] { mpi_node_communicator const comm(MPI_COMM_WORLD); }) ==
        all_say("expar: mpi_node_communicator: no memory to share (Too many open files)"));
  mpi_node_communicator comm(MPI_COMM_WORLD);
  for (int rank : {0, 1}) {
    // Where the first rank has none, there is no file for the others.
    CHECK(without_files(rank, [&] { (void)comm.allocate_window(100); }) ==
          all_say("expar: allocate_window: rank " + std::to_string(rank) +
                  " has no memory for 100 bytes"));
    CHECK(everyone([&] { return std::to_string(comm.allocate_window(100).size_bytes()); }) ==
          all_say("100"));
  }
  for (std::size_t bytes : {std::size_t{1} << 46, ~std::size_t{0}})
    CHECK(everyone([&] {
            (void)comm.allocate_window(bytes);
            return std::string();
          }) == all_say("throws: expar: allocate_window: rank 0 has no memory for " +
                        std::to_string(bytes) + " bytes"));
}

TEST_CASE("mpi_node_communicator: ranks that disagree about a size get one sentence, and go on") {
  if (world_size() < 2) return;
  auto const ranks = static_cast<std::size_t>(world_size());
  mpi_node_communicator comm(MPI_COMM_WORLD);
  constexpr std::size_t room = 300000;
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
  for (std::size_t others : {0u, 5u, 300000u})
    for (auto const& [sent, expected] : {std::pair{8u, 4u},
                                         {4u, 8u},
                                         {0u, 1u},
                                         {1u, 0u},
                                         {65536u, 65537u},
                                         {65537u, 65536u},
                                         {300000u, 299999u}}) {
      CAPTURE(others, sent, expected);
      CHECK(exchange(others, sent, expected) == sentence(sent, expected));
      CHECK(exchange(others, sent, sent) == all_say("; 0 wrong bytes"));
    }
}

TEST_CASE("mpi_node_communicator: blocks of another size on one rank, or of none") {
  if (world_size() < 2) return;
  auto const ranks = static_cast<std::size_t>(world_size());
  mpi_node_communicator comm(MPI_COMM_WORLD);
  bool const gathers = GENERATE(false, true);
  constexpr std::size_t room = 300000;
  for (auto const& [odd, usual] :
       {std::pair{std::size_t{0}, room}, {room, std::size_t{0}}, {room - 1, room}, {7, 8}}) {
    CAPTURE(gathers, odd, usual);
    std::size_t const mine = world_rank() == 1 ? odd : usual;
    auto const said = everyone([&]() -> std::string {
      std::vector<char> in(ranks * mine, 5), out(ranks * mine);
      std::string what;
      try {
        if (gathers)
          comm.all_gather(host_context(), in.data(), out.data(), mine);
        else
          comm.all_to_all(host_context(), in.data(), out.data(), mine);
      } catch (expar::disagreement const& e) {
        what = e.what();
      }
      long wrong = 0;  // of the ranks that want as much
      for (std::size_t k = 0; k < out.size(); ++k)
        wrong += (k / mine == 1) == (world_rank() == 1) && out[k] != 5;
      return what + "; " + wrong_bytes(wrong);
    });
    std::string const name = gathers ? "expar: all_gather: rank " : "expar: all_to_all: rank ";
    for (int rank = 0; rank < world_size(); ++rank) {
      int const low = rank < 2 ? 0 : 1, high = rank < 2 ? 1 : rank;
      CHECK(said[static_cast<std::size_t>(rank)] ==
            name + std::to_string(low) + " sends " + std::to_string(low == 1 ? odd : usual) +
                " bytes to rank " + std::to_string(high) + ", which expects " +
                std::to_string(high == 1 ? odd : usual) + "; 0 wrong bytes");
    }
    CHECK(everyone([&] {
            return wrong_bytes(expar_test::random_rounds(host_context(), comm, 3, 4));
          }) == all_say("0 wrong bytes"));
  }
}

TEST_CASE("mpi_node_communicator: a rank that disagrees with itself") {
  mpi_node_communicator comm(MPI_COMM_WORLD);
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
}

TEST_CASE("mpi_node_communicator: windows of other sizes, and every other pair of calls") {
  if (world_size() < 2) return;
  mpi_node_communicator comm(MPI_COMM_WORLD);
  int const odd = GENERATE(0, 1);
  bool const mine = world_rank() == odd;
  CHECK(everyone([&] {
          (void)comm.allocate_window(mine ? 4096 : 8);
          return std::string();
        }) == all_say("throws: expar: allocate_window: bytes is " +
                      std::string(odd == 0 ? "4096 on rank 0 but 8" : "8 on rank 0 but 4096") +
                      " on rank 1; all ranks must pass the same"));
  auto const ranks = static_cast<std::size_t>(world_size());
  constexpr std::size_t bytes = 100000;
  std::vector<char> in(bytes * ranks), out(bytes * ranks);
  std::vector<std::size_t> const counts(ranks, bytes), places(ranks, 0);
  host_context const ctx;
  constexpr char const* names[] = {"barrier",      "all_to_all",      "all_gather",
                                   "all_to_all_v", "allocate_window", "exchange_phase"};
  auto const run = [&](int call) {
    if (call == 0) comm.barrier(ctx);
    if (call == 1) comm.all_to_all(ctx, in.data(), out.data(), bytes);
    if (call == 2) comm.all_gather(ctx, in.data(), out.data(), bytes);
    if (call == 3) comm.all_to_all_v(ctx, in.data(), counts, places, out.data(), counts, places);
    if (call == 4) (void)comm.allocate_window(bytes);
    if (call == 5) comm.exchange_phase(ctx);
  };
  for (int one = 0; one < 6; ++one)
    for (int other = 0; other < 6; ++other) {
      if (one == other) continue;
      CAPTURE(names[one], names[other]);
      CHECK(everyone([&] {
              run(mine ? other : one);
              return std::string();
            }) ==
            all_say(std::string("throws: expar: rank 0 calls ") + names[odd == 0 ? other : one] +
                    " while rank 1 calls " + names[odd == 0 ? one : other] + in_order));
      CHECK(everyone([&] {
              run(one);
              return std::string();
            }) == all_say(""));
    }
  CHECK(everyone([&] { return wrong_bytes(expar_test::random_rounds(ctx, comm, 20, 9)); }) ==
        all_say("0 wrong bytes"));
}

TEST_CASE("mpi_node_communicator: without a rank, the others go on under numbers of their own") {
  if (world_size() < 2) return;
  int const lost = GENERATE(0, 1);
  CAPTURE(lost);
  CHECK(everyone([&]() -> std::string {
          mpi_node_communicator comm(MPI_COMM_WORLD);
          comm.barrier(host_context());
          if (world_rank() == lost) return "";
          mpi_node_communicator others = comm.without(lost), again = comm.without(lost);
          if (others.size() != world_size() - 1) return "another size";
          if (others.rank() != world_rank() - (world_rank() > lost)) return "another rank";
          long wrong = 0;  // it is one group
          for (std::uint64_t seed = 0; seed < 10; ++seed)
            wrong +=
                expar_test::random_rounds(host_context(), seed % 2 == 0 ? others : again, 3, seed);
          if (others.size() > 1) {  // rank 0 of these goes, too
            if (others.rank() == 0) return wrong == 0 ? "" : wrong_bytes(wrong);
            others = others.without(0);
            wrong += expar_test::random_rounds(host_context(), others, 20, 12);
          }
          if (wrong != 0) return wrong_bytes(wrong);
          return expar::broken_communicator_law(host_context(), others);
        }) == all_say(""));
  mpi_node_communicator comm(MPI_COMM_WORLD);
  for (int wrong : {-1, world_rank(), world_size()})
    CHECK(everyone([&] {
            (void)comm.without(wrong);
            return std::string();
          })[static_cast<std::size_t>(world_rank())] ==
          "throws: expar: without: lost is " + std::to_string(wrong) +
              "; it is another rank than this one, " + std::to_string(world_rank()) + ", of " +
              std::to_string(world_size()));
}

TEST_CASE("mpi_node_communicator: a rank that gives its communicator back is lost at once") {
  if (world_size() < 2) return;
  auto said = everyone([&]() -> std::string {
    mpi_node_communicator comm(MPI_COMM_WORLD);
    comm.barrier(host_context());
    if (world_rank() == 0) return "";
    std::string first, later;
    try {
      comm.exchange_phase(host_context());
    } catch (expar::lost_rank const& e) {
      first = e.what() + std::to_string(e.rank());
    }
    try {
      comm.barrier(host_context());
    } catch (expar::lost_rank const& e) {
      later = e.what() + std::to_string(e.rank());
    }
    comm = comm.without(0);
    comm.barrier(host_context());
    return first == later ? first : first + ", and then " + later;
  });
  CHECK(said[0].empty());
  said[0] = "expar: exchange_phase: rank 0 has left and will not come0";
  CHECK(said == all_say(said[0]));
}

TEST_CASE("mpi_node_communicator: all ranks pass a meeting or none, and name one rank") {
  if (world_size() < 2) return;
  using namespace std::chrono;
  expar_test::random late(static_cast<std::uint64_t>(world_rank() + 1));
  int lost = 0;
  for (int round = 0; round < 60; ++round) {
    auto const said = everyone([&]() -> std::string {
      auto exchange = exchange_of_world(milliseconds(4));
      int phase = 0;
      try {
        for (; phase < 40; ++phase) {
          if (late.chance(.01)) std::this_thread::sleep_for(microseconds(late.integer(3500, 4500)));
          exchange.meet(expar::detail::node_call::exchange_phase);
        }
      } catch (expar::lost_rank const& e) {
        return "phase " + std::to_string(phase) + ", rank " + std::to_string(e.rank()) + ": " +
               e.what();
      }
      return "";
    });
    CAPTURE(round);
    REQUIRE(said == all_say(said[0]));
    lost += !said[0].empty();
  }
  CHECK(lost > 0);
}

// Needs 2.1 GiB on each of two ranks.
TEST_CASE("mpi_node_communicator: a segment longer than an int can count", "[.large]") {
  if (world_size() < 2) return;
  constexpr std::size_t bytes = (std::size_t{1} << 31) + 5;
  CHECK(everyone([&] {
          mpi_node_communicator comm(MPI_COMM_WORLD);
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

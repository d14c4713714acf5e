// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/thread_ticket.hpp>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <expar/laws.hpp>

#include "../support/catch.hpp"
#include "random_rounds.hpp"
#include "sentences.hpp"

using namespace expar_test;

TEST_CASE("thread_ticket_communicator: the laws") {
  int const ranks = GENERATE(1, 2, 3, 5);
  std::vector<std::string> broken(static_cast<std::size_t>(ranks));
  run_ranks(ranks, [&](thread_communicator& all) {
    expar::thread_ticket_communicator comm(all);
    broken[static_cast<std::size_t>(comm.rank())] =
        expar::broken_communicator_law(host_context(), comm);
  });
  for (auto const& law : broken) CHECK(law == "");
}

namespace {

/// An exchange of eight bytes with every rank, and its tables.
struct parcels {
  std::vector<std::size_t> sent, got, places;
  std::vector<char> in, out;

  explicit parcels(int ranks, char what)
      : sent(static_cast<std::size_t>(ranks), 8),
        got(sent),
        in(8 * sent.size(), what),
        out(in.size(), ' ') {
    for (std::size_t p = 0; p < sent.size(); ++p) places.push_back(8 * p);
  }
  auto start(expar::thread_ticket_communicator& comm) {
    return comm.start_all_to_all_v(host_context{}, in.data(), sent, places, out.data(), got,
                                   places);
  }
  std::string came() const {
    std::string heads;
    for (std::size_t p : places) heads += out[p];
    return heads;
  }
};

}  // namespace

TEST_CASE(
    "thread_ticket_communicator: a ticket waits for peers to start, and not for them to wait") {
  std::vector<std::string> came(3);
  std::atomic<int> done{0};
  run_ranks(3, [&](thread_communicator& ranks) {
    expar::thread_ticket_communicator comm(ranks);
    auto const me = static_cast<std::size_t>(comm.rank());
    parcels first(3, static_cast<char>('a' + comm.rank())), second(3, 'x');
    auto ticket = first.start(comm), other = second.start(comm);
    // Ranks wait one after another, the last one for what it started last.
    while (done != comm.rank()) std::this_thread::yield();
    if (comm.rank() == 2) other.wait();
    ticket.wait(), ticket.wait();
    came[me] = first.came();
    ++done;
    while (done != 3) std::this_thread::yield();
    other = std::move(ticket);  // which waits for the other one
    if (second.came() != "xxx") came[me] = second.came();
  });
  for (auto const& c : came) CHECK(c == "abc");
}

TEST_CASE("thread_ticket_communicator: ranks that disagree, or do not come") {
  std::atomic<int> good{0};
  auto const said = sentences(3, [&](thread_communicator& ranks) {
    expar::thread_ticket_communicator comm(ranks);
    parcels all(3, 'a');
    if (comm.rank() == 1) all.sent[2] = 3;
    auto ticket = all.start(comm);
    std::string const mine = sentence_of([&] { ticket.wait(); });
    good += all.out[0] == 'a' && expar_test::random_rounds(host_context{}, comm, 5, 3) == 0;
    parcels again(3, 'b');
    again.start(comm).wait();
    good += again.came() == "bbb";
    throw expar::error(mine);
  });
  std::string const odd =
      "disagreement: expar: all_to_all_v: rank 1 sends 3 bytes to rank 2, which expects 8";
  CHECK(said == std::vector<std::string>{"", odd, odd});
  CHECK(good == 6);

  auto const left = sentences(3, [](thread_communicator& ranks) {
    expar::thread_ticket_communicator comm(ranks);
    parcels all(3, 'a');
    if (comm.rank() == 1) return;
    auto ticket = all.start(comm);
    std::string const mine = sentence_of([&] { ticket.wait(); });
    all = parcels(3, 'b');  // nobody reads what it was
    if (sentence_of([&] { all.start(comm); }) == "") return;
    throw expar::error(mine);
  });
  std::string const gone = "lost 1: expar: all_to_all_v: rank 1 has left and will not come";
  CHECK(left == std::vector<std::string>{gone, "", gone});

  auto const late = sentences(
      3,
      [](thread_communicator& ranks) {
        expar::thread_ticket_communicator comm(ranks);
        if (comm.rank() == 1) std::this_thread::sleep_for(700ms);
        parcels all(3, 'a');
        all.start(comm).wait();
      },
      250ms);
  for (auto const& s : late)
    CHECK(s == "lost 1: expar: all_to_all_v: rank 1 did not come within 250 ms");
}

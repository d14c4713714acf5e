// SPDX-License-Identifier: Apache-2.0
#if __has_include(<nccl.h>)
#include <expar/comm/nccl.hpp>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include <expar/laws.hpp>

#include "gpu/comm/nccl_fake.hpp"
#include "gpu/device.cuh"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/thrown_by.hpp"

using expar::nccl_communicator;
using expar::nccl_error;
using expar_test::nccl_here;
using expar_test::nccl_world;
using expar_test::require_success;

using expar_test::thrown_by;

namespace {

std::size_t at(int i) {
  return static_cast<std::size_t>(i);
}

/// Runs f(rank) on a thread per rank.
template <class F>
void on_ranks(int ranks, F f) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back([r, &f] { f(r); });
  for (auto& t : threads) t.join();
}

/// A communicator of host memory that goes through a device communicator: the laws read its
/// buffers.
class staged {
 public:
  staged(ncclComm_t comm, std::size_t room)
      : comm_(comm), on_(stream_), in_(std::vector<char>(room)), out_(std::vector<char>(room)) {}

  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void barrier(expar::host_context const&) const {
    comm_.barrier(on_);
    stream_.wait();
  }
  void all_to_all(expar::host_context const&, void const* in, void* out, std::size_t n) const {
    std::size_t const all = n * at(size());
    through(in, all, out, all, [&] { comm_.all_to_all(on_, in_.data(), out_.data(), n); });
  }
  void all_gather(expar::host_context const&, void const* in, void* out, std::size_t n) const {
    through(in, n, out, n * at(size()), [&] { comm_.all_gather(on_, in_.data(), out_.data(), n); });
  }
  void all_to_all_v(expar::host_context const&, void const* in, expar::byte_counts n,
                    expar::byte_counts from, void* out, expar::byte_counts out_n,
                    expar::byte_counts to) const {
    through(in, end_of(n, from), out, end_of(out_n, to),
            [&] { comm_.all_to_all_v(on_, in_.data(), n, from, out_.data(), out_n, to); });
  }

 private:
  static std::size_t end_of(expar::byte_counts n, expar::byte_counts from) {
    std::size_t end = 0;
    for (std::size_t p = 0; p < n.size(); ++p)
      if (n[p] != 0) end = std::max(end, from[p] + n[p]);
    return end;
  }
  template <class F>
  void through(void const* in, std::size_t in_bytes, void* out, std::size_t out_bytes, F f) const {
    auto const copy = [&](void* to, void const* from, std::size_t n) {
      if (n != 0) require_success(cudaMemcpyAsync(to, from, n, cudaMemcpyDefault, stream_.get()));
    };
    copy(in_.data(), in, in_bytes);
    copy(out_.data(), out, out_bytes);  // what no segment covers stays
    f();
    copy(out, out_.data(), out_bytes);
    stream_.wait();
  }

  nccl_communicator comm_;
  expar_test::own_stream stream_;
  expar::gpu::context on_;
  expar_test::device_array<char> in_, out_;
};

}  // namespace

TEST_CASE("nccl_communicator: the laws, on ranks of a stand-in for NCCL") {
  int const ranks = GENERATE(1, 2, 3, 5);
  CAPTURE(ranks);
  nccl_world world(ranks);
  std::vector<std::unique_ptr<staged>> comms;
  for (int r = 0; r < ranks; ++r)
    comms.push_back(std::make_unique<staged>(world.comm(r), (3u << 20) + at(ranks) * 80000));
  std::vector<std::string> broken(at(ranks));
  on_ranks(ranks, [&](int r) {
    broken[at(r)] = expar::broken_communicator_law(expar::host_context{}, *comms[at(r)]);
  });
  REQUIRE(broken == std::vector<std::string>(at(ranks)));
}

TEST_CASE("all_to_all_v is one group that holds a send and a receive for each segment") {
  expar_test::own_stream const stream;
  expar::gpu::context const on(stream);
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    expar_test::random rng(seed);
    int const ranks = static_cast<int>(rng.integer(1, 9));
    int const me = static_cast<int>(rng.integer(0, ranks - 1));
    nccl_world world(ranks);
    nccl_communicator const comm(world.comm(me));
    REQUIRE((comm.rank() == me && comm.size() == ranks));
    REQUIRE(comm.native_handle() == world.comm(me));
    // Counts beyond 2^32 too: nothing moves here, so that nothing is allocated.
    std::vector<std::size_t> n[4];
    for (auto& v : n)
      for (int p = 0; p < ranks; ++p)
        v.push_back(rng.chance(.4) ? 0 : static_cast<std::size_t>(rng.integer(1, 1ll << 40)));
    n[2][at(me)] = n[0][at(me)];
    auto& here = nccl_here() = {};
    here.moves = false;
    auto const before = expar_test::runtime_calls::now();
    comm.all_to_all_v(on, nullptr, n[0], n[1], nullptr, n[2], n[3]);
    REQUIRE(expar_test::runtime_calls::now().since(before) == std::vector<unsigned long>(5, 0));

    REQUIRE(here.calls.front().name == "ncclGroupStart");
    REQUIRE(here.calls.back().name == "ncclGroupEnd");
    REQUIRE((here.count("ncclGroupStart") == 1 && here.count("ncclGroupEnd") == 1));
    std::vector<std::size_t> sent(at(ranks)), received(at(ranks));
    for (std::size_t i = 1; i + 1 < here.calls.size(); ++i) {
      auto const& c = here.calls[i];
      REQUIRE(c.depth == 1);
      REQUIRE(c.bytes != 0);
      auto& place = (c.name == "ncclSend" ? sent : received)[at(c.peer)];
      REQUIRE(place == 0);
      place = c.bytes;
    }
    REQUIRE(sent == n[0]);
    REQUIRE(received == n[2]);
  }
  nccl_here() = {};
}

TEST_CASE("fixed sizes are one call of NCCL each, and none of them waits or allocates") {
  expar_test::own_stream const stream;
  expar::gpu::context const on(stream);
  nccl_world world(4);
  nccl_communicator const comm(world.comm(2));
  auto& here = nccl_here() = {};
  here.moves = false;
  auto const before = expar_test::runtime_calls::now();
  comm.all_to_all(on, nullptr, nullptr, std::size_t{5} << 30);
  comm.all_gather(on, nullptr, nullptr, std::size_t{7} << 30);
  comm.barrier(on);
  comm.all_to_all(on, nullptr, nullptr, 0);
  comm.all_gather(on, nullptr, nullptr, 0);
  comm.check_async();
  REQUIRE(expar_test::runtime_calls::now().since(before) == std::vector<unsigned long>(5, 0));
  std::vector<std::string> names;
  for (auto const& c : here.calls) names.push_back(c.name);
#if NCCL_VERSION_CODE >= 22800  // earlier, all_to_all is a group like all_to_all_v
  REQUIRE(names == std::vector<std::string>{"ncclAlltoAll", "ncclAllGather", "ncclAllReduce",
                                            "ncclCommGetAsyncError"});
  REQUIRE(here.calls[0].bytes == std::size_t{5} << 30);
  REQUIRE(here.calls[1].bytes == std::size_t{7} << 30);
#endif
  nccl_here() = {};
}

TEST_CASE(
    "one thread that drives all ranks groups their calls, and nothing begins before its end") {
  expar_test::own_stream const stream;
  expar::gpu::context const on(stream);
  constexpr int ranks = 3;
  nccl_world world(ranks);
  nccl_here() = {};
  std::vector<nccl_communicator> comms;
  std::vector<std::unique_ptr<expar_test::device_array<int>>> in, out;
  for (int r = 0; r < ranks; ++r) {
    comms.emplace_back(world.comm(r));
    in.push_back(std::make_unique<expar_test::device_array<int>>(
        std::vector<int>{10 * r, 10 * r + 1, 10 * r + 2}));
    out.push_back(std::make_unique<expar_test::device_array<int>>(std::vector<int>(ranks, -1)));
  }
  std::vector<std::size_t> const n(ranks, sizeof(int));
  std::vector<std::size_t> const places{0, sizeof(int), 2 * sizeof(int)};
  REQUIRE(ncclGroupStart() == ncclSuccess);
  for (int r = 0; r < ranks; ++r)
    comms[at(r)].all_to_all_v(on, in[at(r)]->data(), n, places, out[at(r)]->data(), n, places);
  REQUIRE(nccl_here().started == 0);
  REQUIRE(ncclGroupEnd() == ncclSuccess);
  REQUIRE(nccl_here().started == 2 * ranks * ranks);
  for (int r = 0; r < ranks; ++r)
    REQUIRE(out[at(r)]->read() == std::vector<int>{r, 10 + r, 20 + r});
}

TEST_CASE("an error of any call is an nccl_error, and leaves no group open behind it") {
  expar_test::own_stream const stream;
  expar::gpu::context const on(stream);
  nccl_world world(3);
  nccl_communicator const comm(world.comm(1));
  std::vector<std::size_t> const n{4, 4, 4}, places{0, 4, 8};
  auto const fails = [&](char const* call, char const* place, int after, auto f) {
    auto& here = nccl_here() = {};
    here.moves = false;
    here.fails = call;
    here.fails_after = after;
    CAPTURE(call, place, after);
    bool thrown = false;
    try {
      f();
    } catch (nccl_error const& e) {
      thrown = true;
      CHECK(std::string(e.what()) == std::string("expar: ") + place + ": " + call +
                                         " gave NCCL error 4 (invalid argument: " + call +
                                         " was told to fail)");
      CHECK(e.code() == ncclInvalidArgument);
      CHECK(std::string(e.call()) == call);
      CHECK(std::string(e.place()) == place);
    }
    CHECK(thrown);
    CHECK(here.depth == 0);
    CHECK(here.started == 0);
    CHECK(here.count("ncclGroupEnd") ==
          here.count("ncclGroupStart") - (std::string(call) == "ncclGroupStart"));
    here = {};
    CHECK(thrown_by([&] { comm.check_async(); }) == "nothing was thrown");
  };
  auto const ragged = [&] { comm.all_to_all_v(on, nullptr, n, places, nullptr, n, places); };
  fails("ncclGroupStart", "all_to_all_v", 0, ragged);
  for (int after = 0; after < 3; ++after) {
    fails("ncclSend", "all_to_all_v", after, ragged);
    fails("ncclRecv", "all_to_all_v", after, ragged);
  }
  fails("ncclGroupEnd", "all_to_all_v", 0, ragged);
  fails(NCCL_VERSION_CODE >= 22800 ? "ncclAlltoAll" : "ncclSend", "all_to_all", 0,
        [&] { comm.all_to_all(on, nullptr, nullptr, 1); });
  fails("ncclAllGather", "all_gather", 0, [&] { comm.all_gather(on, nullptr, nullptr, 1); });
  fails("ncclAllReduce", "barrier", 0, [&] { comm.barrier(on); });
  fails("ncclCommGetAsyncError", "check_async", 0, [&] { comm.check_async(); });
  for (char const* call : {"ncclCommUserRank", "ncclCommCount", "ncclCommCuDevice"})
    fails(call, "nccl_communicator", 0, [&] { nccl_communicator other(world.comm(0)); });
}

TEST_CASE("what a rank sends to itself and expects differ: an error, once its peers are served") {
  constexpr int ranks = 3;
  nccl_world world(ranks);
  std::vector<std::unique_ptr<staged>> comms;
  for (int r = 0; r < ranks; ++r) comms.push_back(std::make_unique<staged>(world.comm(r), 64));
  std::vector<std::string> said(ranks);
  std::vector<std::vector<char>> out(ranks, std::vector<char>(16, '.'));
  on_ranks(ranks, [&](int r) {
    std::vector<char> const in(16, static_cast<char>('a' + r));
    std::vector<std::size_t> n(ranks, 2), places{0, 4, 8};
    auto wanted = n;
    if (r == 1) wanted[1] = 3;
    said[at(r)] = thrown_by([&] {
      comms[at(r)]->all_to_all_v(expar::host_context{}, in.data(), n, places, out[at(r)].data(),
                                 wanted, places);
    });
  });
  CHECK(said == std::vector<std::string>{
                    "nothing was thrown",
                    "expar: all_to_all_v: rank 1 sends 2 bytes to itself but expects 3",
                    "nothing was thrown"});
  CHECK(std::string(out[0].begin(), out[0].begin() + 10) == "aa..bb..cc");
  CHECK(std::string(out[2].begin(), out[2].begin() + 10) == "aa..bb..cc");
}

TEST_CASE("a non-blocking communicator is waited for on the host, and its error is thrown") {
  expar_test::own_stream const stream;
  expar::gpu::context const on(stream);
  nccl_world world(1);
  nccl_communicator const comm(world.comm(0));
  std::vector<std::size_t> const n{4}, places{0};
  expar_test::device_array<int> const in(std::vector<int>{7}), out(std::vector<int>{0});
  auto const run = [&] { comm.all_to_all_v(on, in.data(), n, places, out.data(), n, places); };
  nccl_here() = {};
  nccl_here().polls = 5;
  run();
  CHECK(nccl_here().count("ncclCommGetAsyncError") == 5);
  CHECK(out.read() == std::vector<int>{7});

  nccl_here() = {};
  nccl_here().polls = 2;
  nccl_here().async = ncclRemoteError;
  CHECK(thrown_by(run) ==
        "expar: all_to_all_v: ncclGroupEnd gave NCCL error 6 (remote process exited or there was a "
        "network error)");
  CHECK(thrown_by([&] { comm.check_async(); }) ==
        "expar: check_async: ncclCommGetAsyncError gave NCCL error 6 (remote process exited or "
        "there was a network error)");
  nccl_here() = {};
}

TEST_CASE("nccl_communicator: a communicator that cannot be used") {
  nccl_world world(2);
  nccl_here() = {};
  CHECK(thrown_by([] { nccl_communicator comm(nullptr); }) ==
        "expar: nccl_communicator: comm is null");
  nccl_here().fails = "device";
  CHECK(thrown_by([&] { nccl_communicator comm(world.comm(0)); }) ==
        "expar: nccl_communicator: comm is of device 3 but the current device is 0");
  nccl_here() = {};
}
#endif

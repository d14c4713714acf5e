// SPDX-License-Identifier: Apache-2.0
#include <expar/overlap.hpp>

#include <array>
#include <atomic>
#include <memory_resource>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <expar/comm/thread_ticket.hpp>

#include "support/catch.hpp"
#include "support/layer_by_chunks.hpp"
#include "support/thread_ranks.hpp"

using namespace expar_test;

TEMPLATE_TEST_CASE("overlapped_layer: every bit is that of expert_parallel over messages", "",
                   expar::weights_at_decode, expar::weights_at_encode, expar::weights_per_row) {
  for (int const ranks : {1, 2, 3, 5})
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
      layer_by_chunks const layer(seed, ranks);
      for (int const chunks : {1, 2, 3, 5, 9})
        REQUIRE(on_ranks(ranks, [&](expar::thread_communicator& all) {
                  expar::thread_ticket_communicator comm(all);
                  expar::host_context const ctx(1 + static_cast<int>(seed % 2));
                  return wrong_in_any_layout<float, TestType>(ctx, comm, layer, chunks);
                }) == "");
    }
}

TEST_CASE("overlapped_layer: other types, and a communicator without tickets") {
  for (std::uint64_t seed = 20; seed < 28; ++seed) {
    layer_by_chunks const layer(seed, 3);
    REQUIRE(on_ranks(3, [&](expar::thread_communicator& all) {
              expar::thread_ticket_communicator comm(all);
              expar::host_context const ctx;
              bare_communicator bare(comm);
              std::string wrong = wrong_by_chunks<expar::bfloat16, expar::weights_at_decode>(
                  ctx, comm, layer, 3, expar::ragged{});
              if (wrong.empty())
                wrong = wrong_by_chunks<double, expar::weights_at_decode>(ctx, bare, layer, 2,
                                                                          expar::ragged{});
              return wrong;
            }) == "");
  }
}

namespace {

/// What each rank says of a layer of three chunks in which `change` makes rank 1 do something else,
/// and whether the layer works afterwards.
template <class Change>
std::vector<std::string> said_where(Change change, std::atomic<int>& good) {
  layer_by_chunks layer(3, 3);
  layer.place = expar::placement::blocks(layer.experts, 3), layer.quotas = false;
  std::vector<std::string> said(3);
  expar::run_ranks(3, [&](expar::thread_communicator& all) {
    expar::thread_ticket_communicator comm(all);
    using run_type = layer_run<float, expar::weights_at_decode>;
    expar::host_context const ctx;
    expar::overlapped_layer moe(comm, layer.shape(), 3);
    auto batch = moe.template make_batch<float>();
    run_type run(layer, comm.rank(), 0);
    if (comm.rank() == 1) change(run);
    try {
      run.by_chunks(ctx, moe, batch);
    } catch (expar::error const& e) {
      said[static_cast<std::size_t>(comm.rank())] = e.what();
    }
    expar::messages x(comm);
    expar::expert_parallel whole(x, layer.shape());
    run_type one(layer, comm.rank(), 1), other(layer, comm.rank(), 1);
    good += one.whole(ctx, whole) == other.by_chunks(ctx, moe, batch);
  });
  return said;
}
std::vector<std::string> three(char const* sentence) {
  return std::vector<std::string>(3, sentence);
}

}  // namespace

TEST_CASE("overlapped_layer: experts that throw on one rank are one sentence on all") {
  for (int chunk = 0; chunk < 3; ++chunk) {
    std::atomic<int> good{0};
    CHECK(said_where([&](auto& run) { run.throws_in = chunk; }, good) ==
          three("expar: an exception: an expert is ill (rank 1)"));
    CHECK(said_where([&](auto& run) { run.backward_throws_in = chunk; }, good) ==
          three("expar: an exception: a gradient is lost (rank 1)"));
    CHECK(good == 6);
  }
}

TEST_CASE("overlapped_layer: wrong arguments on one rank are one sentence on all") {
  std::atomic<int> good{0};
  CHECK(said_where(
            [](auto& run) {
              run.x = {run.tokens + 1, run.layer.hidden};
            },
            good) ==
        three("expar: run: tokens has extent 14 in dimension 0, but the number of tokens in the "
              "batch is 13 (rank 1)"));
  CHECK(said_where(
            [](auto& run) {
              run.d_out = {run.tokens, run.layer.hidden_out + 1};
            },
            good)[0] != "");
  CHECK(said_where([](auto& run) { run.d_w = {run.tokens, run.layer.top_k + 1}; }, good)[2] != "");
  CHECK(good == 9);
}

TEST_CASE("overlapped_layer: what it is not made of") {
  auto const made_of = [](int ranks, auto chunks_of) {
    std::vector<std::string> said(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&](expar::thread_communicator& all) {
      expar::thread_ticket_communicator comm(all);
      try {
        expar::overlapped_layer const moe(comm, {.experts = 2, .top_k = 1, .hidden = 3},
                                          chunks_of(comm.rank()));
      } catch (expar::error const& e) {
        said[static_cast<std::size_t>(comm.rank())] = e.what();
      }
    });
    return said;
  };
  for (auto const& s : made_of(2, [](int) { return 0; }))
    CHECK(s == "expar: overlapped_layer: chunks is 0; at least 1 is needed");
  for (auto const& s : made_of(2, [](int rank) { return 2 + rank; }))
    CHECK(s ==
          "expar: overlapped_layer: chunks is 2 on rank 0 but 3 on rank 1; all ranks must pass the "
          "same");
}

TEST_CASE("overlapped_layer: ranks in different calls, and a batch without what it needs") {
  std::vector<std::string> said(2), empty(2);
  expar::run_ranks(2, [&](expar::thread_communicator& all) {
    expar::thread_ticket_communicator comm(all);
    using run_type = layer_run<float, expar::weights_at_decode>;
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::host_context const ctx;
    layer_by_chunks layer(3, 2);
    layer.place = expar::placement::blocks(layer.experts, 2), layer.quotas = false;
    expar::overlapped_layer moe(comm, layer.shape(), 2), second(comm, layer.shape(), 2);
    auto batch = moe.make_batch<float>();
    run_type run(layer, comm.rank(), 0);
    auto const nothing = [](auto&, expar::slot_range) {};
    auto const sentence = [](auto f) {
      try {
        f();
      } catch (expar::error const& e) {
        return std::string(e.what());
      }
      return std::string();
    };
    auto const back = [&](auto& b) {
      moe.run_backward(ctx, run.d_out.view(), b, nothing, run.d_x.view(), run.d_w.view());
    };
    empty[me] = sentence([&] { back(batch); });
    moe.run(ctx, run.x.view(), run.routes(), batch, nothing, run.out.view());
    said[me] = sentence([&] {
      if (comm.rank() == 0) return back(batch);
      auto other = second.make_batch<float>();
      second.run(ctx, run.x.view(), run.routes(), other, nothing, run.out.view());
    });
  });
  for (auto const& s : empty)
    CHECK(s ==
          "expar: run_backward: the batch has no routes; dispatch or prepare it first (rank 0)");
  for (auto const& s : said)
    CHECK(s ==
          "expar: rank 0 calls run_backward for its batch 1 while rank 1 calls prepare; all ranks "
          "call the same operations in the same order");
}

TEST_CASE("overlapped_layer: a rank that does not come back from its experts is lost") {
  std::vector<int> lost(3, -1);
  // What a lost rank may still read is never freed by its layer.
  std::array<std::pmr::monotonic_buffer_resource, 3> memory;
  expar::run_ranks(
      3,
      [&](expar::thread_communicator& all) {
        using run_type = layer_run<float, expar::weights_at_decode>;
        auto const me = static_cast<std::size_t>(all.rank());
        expar::thread_ticket_communicator comm(all);
        expar::host_context const ctx;
        layer_by_chunks layer(3, 3);
        layer.place = expar::placement::blocks(layer.experts, 3), layer.quotas = false;
        expar::overlapped_layer moe(comm, layer.shape(), 3, expar::ragged{},
                                    expar::weights_at_decode{}, &memory[me]);
        auto batch = moe.make_batch<float>();
        run_type run(layer, comm.rank(), 0);
        auto const experts = [&](auto& b, expar::slot_range s) {
          run.experts(b, s.first, s.last);
          if (me == 1) std::this_thread::sleep_for(std::chrono::milliseconds(900));
        };
        for (int times = 0; times < 2; ++times) try {
            moe.run(ctx, run.x.view(), run.routes(), batch, experts, run.out.view());
            lost[me] = -2;
          } catch (expar::lost_rank const& e) {
            lost[me] = e.rank();
          }
      },
      std::chrono::milliseconds(300));
  CHECK(lost == std::vector<int>{1, 1, 1});
}

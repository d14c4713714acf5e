// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <expar/expert_parallel.hpp>
#include <memory_resource>

#include <functional>
#include <stdexcept>

#include <expar/balance/sum_counts.hpp>
#include <expar/exchange/hops.hpp>
#include <expar/report.hpp>

#include "support/exhausted_resource.hpp"
#include "support/layer_of_few.hpp"
#include "support/thrown_by.hpp"

using namespace expar_test;

namespace {

constexpr int ranks = 3;
using context = expar::host_context;
using sentences = std::vector<std::string>;

sentences all(std::string const& sentence) {
  return sentences(ranks, sentence);
}

/// What no rank tells another.
struct gone : expar::lost_rank {
  gone() : lost_rank(-1, expar::detail::sentence("this rank has gone")) {}
};

/// Passes everything on, and throws in the n-th collective of one rank, before or behind it.
class failing_communicator {
 public:
  static constexpr expar::communicator_traits traits{.checks_sizes = true};
  enum when { before, behind };

  failing_communicator(expar::thread_communicator& to, when w) : to_(to), when_(w) {}

  int rank() const noexcept { return to_.rank(); }
  int size() const noexcept { return to_.size(); }
  void fail_in(int calls) { left_ = calls, leaves_ = false; }
  /// What it throws then takes this rank away.
  void leave_in(int calls) { left_ = calls, leaves_ = true; }
  bool has_failed() const { return left_ == 0; }

  void all_to_all_v(context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts at) {
    pass([&] { to_.all_to_all_v(on, in, counts, from, out, out_counts, at); });
  }
  auto allocate_window(std::size_t bytes) {
    expar::thread_communicator::window made;
    pass([&] { made = to_.allocate_window(bytes); });
    return made;
  }
  void exchange_phase(context const& on) {
    pass([&] { to_.exchange_phase(on); });
  }

 private:
  template <class F>
  void pass(F f) {
    bool const fails = left_ > 0 && --left_ == 0;
    if (fails && leaves_) throw gone();
    if (fails && when_ == before) throw std::runtime_error("the cable is out");
    f();
    if (fails) throw std::runtime_error("the cable is out");
  }

  expar::thread_communicator& to_;
  when when_;
  int left_ = -1;
  bool leaves_ = false;
};

/// A pool that throws in its n-th run.
struct failing_pool {
  int left = -1;

  int concurrency() const { return 2; }
  void run(int n, expar::task const& t) {
    if (left > 0 && --left == 0) throw std::runtime_error("the pool is closed");
    for (int i = 0; i < n; ++i) t(i);
  }
};

/// Forward and backward, each call by `attempt(what, call)`, until one throws.
template <class Moe, class Batch, class Attempt>
void every_call(Moe& moe, Batch& batch, layer_data& d, context const& ctx, Attempt attempt) {
  std::vector<float> d_weights(tokens * k);
  auto const fill = [](auto const& rows) {
    for (index_t i = 0; i < rows.extents[0]; ++i)
      for (index_t c = 0; c < rows.extents[1]; ++c) rows(i, c) = 1;
  };
  attempt([&] { moe.dispatch(ctx, d.rows(), d.routes(), batch); }) && attempt([&] {
    fill(batch.y());
    moe.combine(ctx, batch, d.result());
  }) &&
      attempt([&] {
        moe.combine_backward(ctx, batch, d.rows(), make_view(d_weights.data(), tokens, k));
      }) &&
      attempt([&] {
        fill(batch.d_rows());
        moe.dispatch_backward(ctx, batch, d.result());
      }) &&
      attempt([&] { moe.place(moe.placement()); });
}

/// What one rank hears when another fails once in every_call(), between start() and stop(): its
/// sentences, or that tokens do not come home afterwards.
template <class X>
std::string hear(X& x, layer_data& d, context const& ctx, std::function<void()> const& start,
                 std::function<void()> const& stop) {
  expar::expert_parallel moe(x, {experts, k, d.columns});
  auto batch = moe.template make_batch<float>();
  if (auto const wrong = run_layer(moe, batch, d); !wrong.empty()) return wrong;
  start();
  std::string said;
  every_call(moe, batch, d, ctx, [&](auto call) {
    said = thrown_by([&] {
      try {
        call();
      } catch (std::runtime_error const& e) {
        throw expar::error(std::string("at once: ") + e.what());
      }
    });
    return said == "nothing was thrown";
  });
  stop();
  if (said.starts_with("at once") || said == "nothing was thrown")  // of what others hear later
    said += "; " + thrown_by([&] { moe.place(moe.placement()); });
  for (int time = 0; time < 2; ++time)
    if (auto const wrong = run_layer(moe, batch, d, ctx); !wrong.empty()) return wrong;
  return said;
}

/// A chain of two hops, which sums at both.
expar::chain two_hops() {
  return expar::chain::once_per_node(expar::topology::blocks(ranks, 2), expar::sum::per_hop);
}

/// `f(x, comm)` over messages, windows and hops of communicators that fail_in() can make fail.
enum class by { messages, windows, hops };
template <class F>
sentences over(by what, failing_communicator::when when, F f) {
  sentences said(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& threads) {
    failing_communicator comm(threads, when);
    std::string& mine = said[static_cast<std::size_t>(comm.rank())];
    if (what == by::hops) {
      expar::hops x(comm, two_hops());
      mine = f(x, comm);
    } else {
      mine = with_transport(what == by::windows, comm,
                            [&](auto& x) { return std::string(f(x, comm)); });
    }
  });
  return said;
}

}  // namespace

TEST_CASE("a communicator that fails on one rank, at any call, is one sentence on all") {
  by const what = GENERATE(by::messages, by::windows, by::hops);
  auto const when = GENERATE(failing_communicator::before, failing_communicator::behind);
  CAPTURE(static_cast<int>(what), when);
  std::string const sentence = "expar: an exception: the cable is out (rank 1)";
  int firings = 0;
  for (int n = 1; n < 30; ++n) {
    bool failed = false;
    auto const said = over(what, when, [&](auto& x, auto& comm) {
      layer_data d(comm.rank());
      auto const start = [&] {
        if (comm.rank() == 1) comm.fail_in(n);
      };
      return hear(x, d, {}, start, [&] {
        if (comm.rank() == 1) failed = comm.has_failed();
        comm.fail_in(-1);
      });
    });
    if (!failed) break;
    ++firings;
    INFO("collective " << n);
    for (auto const& s : said) CHECK((s == sentence || s == "nothing was thrown; " + sentence));
  }
  CHECK(firings > 4);
}

constexpr index_t wide = 70000;  // columns of a row that is work for a pool

TEST_CASE("a pool that throws on one rank, at any message, is one sentence on all") {
  by const what = GENERATE(by::messages, by::hops);
  CAPTURE(static_cast<int>(what));
  std::string const sentence = "expar: an exception: the pool is closed (rank 1)";
  int firings = 0;
  for (int n = 1; n < 30; ++n) {
    bool failed = false;
    auto const said = over(what, failing_communicator::before, [&](auto& x, auto& comm) {
      failing_pool pool;
      layer_data d(comm.rank(), wide);
      auto const start = [&] {
        if (comm.rank() == 1) pool.left = n;
      };
      return hear(x, d, context(pool), start, [&] {
        if (comm.rank() == 1) failed = pool.left == 0;
        pool.left = -1;
      });
    });
    if (!failed) break;
    ++firings;
    INFO("run " << n);
    for (std::size_t r = 0; r < ranks; ++r) {
      std::string const before = r == 1 ? "at once: the pool is closed; " : "nothing was thrown; ";
      CHECK((said[r] == sentence || said[r] == before + sentence));
    }
  }
  CHECK(firings > 2);
}

TEST_CASE("a pool that throws behind the last meeting in windows is heard in the next call") {
  auto const said = over(by::windows, failing_communicator::before, [&](auto& x, auto& comm) {
    failing_pool pool;
    context const ctx(pool);
    std::vector<std::int32_t> const ids(2, comm.rank());
    std::vector<float> const weights(2, 1.f), from(2 * wide, 1.f);
    std::vector<float> to(from);
    expar::expert_parallel moe(x, {ranks, 1, wide});
    auto batch = moe.template make_batch<float>();
    moe.prepare(ctx, routes_of_rank{make_view(ids.data(), 2, 1), make_view(weights.data(), 2, 1)},
                batch);
    if (comm.rank() == 1) pool.left = 2;  // in the first, tokens are scattered
    auto const at_once = [&] {
      try {
        moe.dispatch(ctx, make_view(from.data(), 2, wide), batch, make_view(to.data(), 2, wide));
      } catch (std::runtime_error const& e) {
        throw expar::error(e.what());
      }
    };
    std::string heard = thrown_by(at_once);
    for (int time = 0; time < 2; ++time)
      heard += "; " + thrown_by([&] { moe.place(moe.placement()); });
    return heard;
  });
  for (std::size_t r = 0; r < ranks; ++r)
    CHECK(said[r] == std::string(r == 1 ? "the pool is closed" : "nothing was thrown") +
                         "; expar: an exception: the pool is closed (rank 1); nothing was thrown");
}

TEST_CASE("a rank that misses a call and goes on with the next batch is told, and catches up") {
  by const what = GENERATE(by::messages, by::windows, by::hops);
  CAPTURE(static_cast<int>(what));
  auto const said = over(what, failing_communicator::before, [](auto& x, auto& comm) {
    context const ctx;
    layer_data d(comm.rank());
    expar::expert_parallel moe(x, {experts, k, hidden});
    auto batch = moe.template make_batch<float>(), next = moe.template make_batch<float>();
    std::string heard;
    for (int step = 0; step < 3; ++step) {
      if (!run_layer(moe, batch, d).empty()) return std::string("later");
      heard += thrown_by([&] {
        if (comm.rank() == 1)
          moe.dispatch(ctx, d.rows(), d.routes(), next);
        else
          moe.combine(ctx, batch, d.result());
      });
    }
    return heard;
  });
  std::string sentence;
  for (int batch = 1; batch < 4; ++batch)
    sentence += "expar: rank 0 calls combine for its batch " + std::to_string(batch) +
                " while rank 1 calls prepare; all ranks call the same operations in the same order";
  CHECK(said == all(sentence));
}

TEST_CASE("ranks in operations of other parts of the library all say so, and go on") {
  by const what = GENERATE(by::messages, by::windows, by::hops);
  int const which = GENERATE(0, 1, 2);
  CAPTURE(static_cast<int>(what), which);
  auto const said = over(what, failing_communicator::before, [&](auto& x, auto& comm) {
    context const ctx;
    layer_data d(comm.rank());
    expar::expert_parallel moe(x, {experts, k, hidden});
    auto batch = moe.template make_batch<float>();
    if (!run_layer(moe, batch, d).empty()) return std::string("before");
    std::vector<std::int64_t> counts(256, 1);
    auto const sum = [&] { expar::sum_counts(ctx, comm, make_view(counts.data(), 256)); };
    auto const heard = thrown_by([&] {
      if (comm.rank() != 2)
        moe.prepare(ctx, d.routes(), batch);
      else if (which == 0)
        sum();
      else if (which == 1)
        expar::gather_report(ctx, comm, batch);
      else
        expar::expert_parallel(comm, {experts, k, hidden});
    });
    if (!run_layer(moe, batch, d).empty()) return std::string("later");
    sum();
    bool const works =
        counts[0] == ranks && expar::gather_report(ctx, comm, batch).tokens == ranks * tokens;
    return works ? heard : "other operations do not work";
  });
  char const* const others[] = {"sum_counts", "gather_report", "the constructor"};
  CHECK(said == all(std::string("expar: rank 0 calls prepare while rank 2 calls ") + others[which] +
                    "; all ranks call the same operations in the same order"));
}

TEST_CASE("hops: what fails before the last hop has come opens no side on any rank") {
  for (int n = 1; n < 4; ++n) {  // counts, and two hops
    auto const said = over(by::hops, failing_communicator::before, [&](auto& x, auto& comm) {
      layer_data d(comm.rank());
      expar::expert_parallel moe(x, {experts, k, hidden});
      auto batch = moe.template make_batch<float>();
      if (comm.rank() == 1) comm.fail_in(n);
      std::string const heard = thrown_by([&] { moe.dispatch({}, d.rows(), d.routes(), batch); });
      if (n == 1) return heard;
      return heard + "; " + thrown_by([&] { batch.y(); });
    });
    std::string const sentence = "expar: an exception: the cable is out (rank 1)";
    INFO("collective " << n);
    CHECK(said == all(n == 1 ? sentence
                             : sentence + "; expar: y: it is not there; dispatch gives it, "
                                          "until release"));
  }
}

TEST_CASE("hops: a rank that goes away at any collective is lost to all others, in each call") {
  for (int n = 1; n < 20; ++n) {
    std::vector<int> lost(ranks, -1), later(ranks, -1);
    bool left = false;
    // What a lost rank may still read is never freed by its transport.
    std::array<std::pmr::monotonic_buffer_resource, ranks> memory;
    auto const body = [&](expar::thread_communicator& threads) {
      failing_communicator comm(threads, failing_communicator::before);
      auto* const own = &memory[static_cast<std::size_t>(comm.rank())];
      expar::hops x(comm, two_hops(), own);
      layer_data d(comm.rank());
      expar::expert_parallel moe(x, {experts, k, d.columns}, expar::ragged{},
                                 expar::weights_at_decode{}, own);
      auto batch = moe.template make_batch<float>();
      if (comm.rank() == 1) comm.leave_in(n);
      try {
        every_call(moe, batch, d, {}, [](auto call) {
          call();
          return true;
        });
      } catch (expar::lost_rank const& e) {
        if (comm.rank() == 1) throw;
        auto const me = static_cast<std::size_t>(comm.rank());
        lost[me] = e.rank();
        try {
          moe.place(moe.placement());
        } catch (expar::lost_rank const& again) {
          later[me] = again.rank();
        }
      }
    };
    INFO("collective " << n);
    try {
      expar::run_ranks(ranks, body, std::chrono::seconds(60));
    } catch (gone const&) {
      left = true;
    }
    if (!left) {
      CHECK(n > 8);
      return;
    }
    CHECK(lost == std::vector<int>{1, -1, 1});
    CHECK(later == lost);
  }
}

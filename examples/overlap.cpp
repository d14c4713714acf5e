// SPDX-License-Identifier: Apache-2.0
// Rows travel while experts run: a layer in three chunks, which prints what was on its way when.
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include <expar/comm/thread_ticket.hpp>
#include <expar/expar.hpp>
#include <expar/overlap.hpp>

namespace {

using expar::byte_counts;

constexpr int ranks = 2, experts = 12, top_k = 2, tokens = 60, hidden = 8, chunks = 3;

/// A communicator of the caller's, which notes how many bytes it has on their way from this rank.
class noting {
 public:
  explicit noting(expar::thread_ticket_communicator& comm) : comm_(comm) {}

  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, byte_counts counts,
                    byte_counts from, void* out, byte_counts out_counts, byte_counts to) {
    comm_.all_to_all_v(on, in, counts, from, out, out_counts, to);
  }

  template <class Of>
  struct ticket {
    Of of;
    std::size_t bytes, *on_their_way;
    void wait() {
      of.wait();
      *on_their_way -= std::exchange(bytes, 0);
    }
  };
  auto start_all_to_all_v(expar::host_context const& on, void const* in, byte_counts counts,
                          byte_counts from, void* out, byte_counts out_counts, byte_counts to) {
    std::size_t bytes = 0;
    for (std::size_t const n : counts) bytes += n;
    on_their_way_ += bytes;
    auto started = comm_.start_all_to_all_v(on, in, counts, from, out, out_counts, to);
    return ticket<decltype(started)>{std::move(started), bytes, &on_their_way_};
  }
  std::size_t on_their_way() const { return on_their_way_; }

 private:
  expar::thread_ticket_communicator& comm_;
  std::size_t on_their_way_ = 0;
};
static_assert(expar::starting_communicator<noting>);

bool run_by_chunks(expar::thread_communicator& threads) {
  expar::thread_ticket_communicator started(threads);
  noting comm(started);
  expar::host_context const ctx;
  std::vector<float> x(tokens * hidden), out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 11);
  expar::routes<float> routes(tokens, top_k);
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < top_k; ++j)
      routes.ids(t, j) = (t * 5 + j * 7 + comm.rank()) % experts, routes.weights(t, j) = .5f;

  expar::overlapped_layer moe(comm, {.experts = experts, .top_k = top_k, .hidden = hidden}, chunks);
  auto batch = moe.make_batch<float>();
  int chunk = 0;
  auto const run_experts = [&](auto& b, expar::slot_range slots) {
    auto const rows = b.rows(), y = b.y();
    for (int l = slots.first; l < slots.last; ++l) {  // stands for the caller's GEMMs
      auto const s = static_cast<std::size_t>(l);
      for (auto i = b.slot_offsets()[s]; i < b.slot_offsets()[s + 1]; ++i)
        for (int h = 0; h < hidden; ++h)
          y.row(i)[h] = static_cast<float>(b.expert_of(l) + 1) * rows.row(i)[h];
    }
    if (comm.rank() == 0)
      std::printf("chunk %d: slots %d .. %d run while %zu bytes are on their way\n", chunk++,
                  slots.first, slots.last - 1, comm.on_their_way());
  };
  moe.run(ctx, expar::make_view(x.data(), tokens, hidden), routes, batch, run_experts,
          expar::make_view(out.data(), tokens, hidden));

  bool good = comm.on_their_way() == 0;
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < hidden; ++h) {
      auto const i = static_cast<std::size_t>(t * hidden + h);
      float sum = 0;
      for (int j = 0; j < top_k; ++j)
        sum += .5f * (static_cast<float>(routes.ids(t, j) + 1) * x[i]);
      good = good && out[i] <= sum && out[i] >= sum;
    }
  return good;
}

}  // namespace

int main() {
  std::vector<int> good(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    good[static_cast<std::size_t>(comm.rank())] = run_by_chunks(comm);
  });
  for (int const g : good)
    if (!g) {
      std::printf("the sums are wrong\n");
      return EXIT_FAILURE;
    }
  std::printf("all sums are right\n");
}

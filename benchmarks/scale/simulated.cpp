// SPDX-License-Identifier: Apache-2.0
// One layer's exchange on the ranks of a simulated cluster, for run.py:
//   smpirun -np RANKS ... simulated CHAIN TOKENS GPUS [--zeros] [--routes FILE]
// Rank 0 prints what each operation takes on the clock of the simulator, from an instant at which
// all ranks begin it to that at which the last has finished, as one line of JSON. Rows are compared
// with what must come; with --zeros all tokens are zeros, which take no memory, and numbers of rows
// are compared. FILE gets the routes: int32 [ranks, TOKENS, top_k].

#include <mpi.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

// What the communicator calls, where SimGrid has it not or at a price. It polls, and every poll
// would be a step of the simulator: here a poll ends when something has come, and takes no time.
#define MPI_Testsome(n, requests, complete, which, statuses) \
  (*(complete) = 1, PMPI_Waitany(n, requests, which, statuses))
#define MPI_Test(request, complete, status) (*(complete) = 1, PMPI_Wait(request, status))
#define MPI_Comm_idup(comm, made, request) \
  (*(request) = MPI_REQUEST_NULL, PMPI_Comm_dup(comm, made))

#include <expar/comm/mpi.hpp>
#include <expar/exchange/hops.hpp>
#include <expar/expar.hpp>

#include "hollow.hpp"

namespace {

using expar::chain, expar::index_t, expar::sum;
using bf16 = expar::bfloat16;

constexpr int experts = 256, top_k = 8, most_nodes = 4;
constexpr index_t hidden = 7168;

struct settings {
  std::string_view way;
  index_t tokens;
  int gpus;
  bool zeros;
  char const* routes_file;
};

[[noreturn]] void stop(char const* why) {
  std::fprintf(stderr, "%s\n", why);
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

chain chain_of(settings const& s, int ranks, sum how) {
  auto const nodes = expar::topology::blocks(ranks, s.gpus);
  if (s.way == "linear") return chain::linear(ranks);
  if (s.way == "once_per_rank") return chain::once_per_rank(ranks, how);
  if (s.way == "once_per_node") return chain::once_per_node(nodes, how);
  if (s.way == "aggregated") return chain::aggregated(nodes);
  if (s.way == "gathered") return chain::gathered(nodes);
  stop("CHAIN is linear, once_per_rank, once_per_node, aggregated or gathered");
}
bool can_sum_per_hop(settings const& s) {
  return s.way.starts_with("once");
}

std::uint32_t hash(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t x = (a * 0x9e3779b97f4a7c15u + b) * 0xbf58476d1ce4e5b9u + c;
  x = (x ^ x >> 31) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(x >> 32);
}

/// Experts of this rank's tokens, on four nodes at most, as DeepSeek-V3 chooses them from logits
/// that are drawn.
std::vector<std::int32_t> draw_routes(settings const& s, int rank, int ranks) {
  int const nodes = (ranks + s.gpus - 1) / s.gpus;
  auto const router = expar::models::deepseek_v3({.experts = experts,
                                                  .top_k = top_k,
                                                  .groups = nodes,
                                                  .top_groups = std::min(nodes, most_nodes)});
  constexpr index_t block = 64;
  std::vector<float> logits(block * experts), bias(experts), weights(block * top_k);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(s.tokens * top_k));
  for (index_t first = 0; first < s.tokens; first += block) {
    index_t const n = std::min(block, s.tokens - first);
    for (std::size_t i = 0; i < static_cast<std::size_t>(n * experts); ++i)
      logits[i] = static_cast<float>(hash(static_cast<std::uint64_t>(rank),
                                          static_cast<std::uint64_t>(first), i)) *
                      0x1p-30f -
                  2;
    struct {
      expar::tensor_view<std::int32_t, 2> ids;
      expar::tensor_view<float, 2> weights;
    } out{expar::make_view(ids.data() + first * top_k, n, index_t{top_k}),
          expar::make_view(weights.data(), n, index_t{top_k})};
    expar::route(expar::host_context(), router,
                 expar::make_view(logits.data(), n, index_t{experts}),
                 expar::make_view(bias.data(), index_t{experts}), out);
  }
  return ids;
}

// Rows are small integers, what expert e makes of a row is the row times 1, 2, 4 or 8, and weights
// are 1/8: every sum is exact in bfloat16, in any order.
float element(int rank, index_t token, index_t h) {
  return static_cast<float>(hash(static_cast<std::uint64_t>(rank),
                                 static_cast<std::uint64_t>(token),
                                 static_cast<std::uint64_t>(h)) >>
                            30);
}
float factor(int expert) {
  return static_cast<float>(1 << expert % 4);
}

double operator"" _us(long double t) {
  return static_cast<double>(t) * 1e-6;
}

template <class Comm>
class layer {
 public:
  layer(Comm& comm, settings const& s, hollow_memory* hollow)
      : comm_(comm),
        s_(s),
        hollow_(hollow),
        memory_(hollow ? hollow : std::pmr::new_delete_resource()),
        ids_(draw_routes(s, comm.rank(), comm.size())),
        weights_(ids_.size(), 1.f / top_k),
        in_(rows_of_tokens()),
        out_(rows_of_tokens()) {
    tell_routes();
    if (s.zeros) return;
    for (index_t t = 0; t < s.tokens; ++t)
      for (index_t h = 0; h < hidden; ++h)
        in_.row(t)[h] = expar::narrow<bf16>(element(comm_.rank(), t, h));
  }
  ~layer() {
    for (auto& v : {in_, out_}) memory_->deallocate(v.data, token_bytes(), 4096);
  }
  layer(layer const&) = delete;

  /// An exact combine goes straight on every chain, so that large messages are spared it where
  /// there is another.
  void measure() {
    bool const both = can_sum_per_hop(s_) && !s_.zeros;
    if (both || !can_sum_per_hop(s_)) run(sum::exact, "combine", true);
    if (can_sum_per_hop(s_)) run(sum::per_hop, "combine_per_hop", !both);
    int right = right_, all = 0;
    MPI_Reduce(&right, &all, 1, MPI_INT, MPI_MIN, 0, MPI_COMM_WORLD);
    if (comm_.rank() != 0) return;
    std::printf("{%s\"rows\": \"%s\"}\n", figures_.c_str(),
                !all       ? "wrong"
                : s_.zeros ? "counted"
                           : "right");
  }

 private:
  std::size_t token_bytes() const {
    return std::max<std::size_t>(static_cast<std::size_t>(s_.tokens * hidden) * sizeof(bf16), 1);
  }
  expar::tensor_view<bf16, 2> rows_of_tokens() const {
    return expar::make_view(static_cast<bf16*>(memory_->allocate(token_bytes(), 4096)), s_.tokens,
                            hidden);
  }

  /// Where rows are compared all ranks know all routes; else how many each expert has.
  void tell_routes() {
    int const n = static_cast<int>(ids_.size());
    counts_.assign(experts, 0);
    for (auto e : ids_) ++counts_[static_cast<std::size_t>(e)];
    MPI_Allreduce(MPI_IN_PLACE, counts_.data(), experts, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    bool const all = !s_.zeros, first = comm_.rank() == 0;
    if (all || (first && s_.routes_file))
      routes_.resize(ids_.size() * static_cast<std::size_t>(comm_.size()));
    if (all)
      MPI_Allgather(ids_.data(), n, MPI_INT, routes_.data(), n, MPI_INT, MPI_COMM_WORLD);
    else if (s_.routes_file)
      MPI_Gather(ids_.data(), n, MPI_INT, routes_.data(), n, MPI_INT, 0, MPI_COMM_WORLD);
    if (!first || !s_.routes_file) return;
    std::FILE* const f = std::fopen(s_.routes_file, "wb");
    if (!f || std::fwrite(routes_.data(), sizeof(int), routes_.size(), f) != routes_.size() ||
        std::fclose(f) != 0)
      stop("FILE cannot be written");
  }

  /// Microseconds until the last rank has finished what all begin at one instant.
  template <class Operation>
  void time(char const* name, Operation operation) {
    double ready = MPI_Wtime(), begin = 0;
    MPI_Allreduce(&ready, &begin, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    begin += 100.0_us;
    timespec const rest{0, static_cast<long>((begin - MPI_Wtime()) * 1e9)};
    nanosleep(&rest, nullptr);
    operation();
    double took = MPI_Wtime() - begin, longest = 0;
    if (hollow_) hollow_->clear();
    MPI_Reduce(&took, &longest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (!name) return;
    char text[80];
    std::snprintf(text, sizeof text, "\"%s\": %.3f, ", name, longest * 1e6);
    figures_ += text;
  }

  void run(sum how, char const* combine, bool first) {
    expar::host_context const ctx;
    expar::hops x(comm_, chain_of(s_, comm_.size(), how), memory_);
    expar::expert_parallel moe(x, {.experts = experts, .top_k = top_k, .hidden = hidden});
    auto batch = moe.template make_batch<bf16>();
    struct {
      expar::tensor_view<std::int32_t, 2> ids;
      expar::tensor_view<float, 2> weights;
    } const routes{expar::make_view(ids_.data(), s_.tokens, index_t{top_k}),
                   expar::make_view(weights_.data(), s_.tokens, index_t{top_k})};
    if (first) time("prepare", [&] { moe.prepare(ctx, routes, batch); });
    time(first ? "dispatch" : nullptr, [&] { moe.dispatch(ctx, in_, routes, batch); });
    check_rows(batch);
    auto const rows = batch.rows(), y = batch.y();
    for (int l = 0; !s_.zeros && l < batch.local_slots(); ++l)
      for (index_t i = batch.slot_offsets()[static_cast<std::size_t>(l)];
           i < batch.slot_offsets()[static_cast<std::size_t>(l) + 1]; ++i)
        for (index_t h = 0; h < hidden; ++h)
          y.row(i)[h] =
              expar::narrow<bf16>(factor(batch.expert_of(l)) * expar::widen(rows.row(i)[h]));
    time(combine, [&] { moe.combine(ctx, batch, out_); });
    check_out();
  }

  /// Rows of an expert come by (rank, token).
  template <class Batch>
  void check_rows(Batch& batch) {
    for (int l = 0; l < batch.local_slots(); ++l) {
      int const e = batch.expert_of(l);
      right_ = right_ && batch.slot_counts()[l] == counts_[static_cast<std::size_t>(e)];
      if (s_.zeros || !right_) continue;
      index_t row = batch.slot_offsets()[l];
      for (std::size_t i = 0; i < routes_.size(); ++i) {
        if (routes_[i] != e) continue;
        auto const token = static_cast<index_t>(i) / top_k;
        int const rank = static_cast<int>(token / s_.tokens);
        for (index_t h = 0; h < hidden; ++h)
          right_ = right_ &&
                   expar::widen(batch.rows().row(row)[h]) == element(rank, token % s_.tokens, h);
        ++row;
      }
    }
  }
  void check_out() {
    if (s_.zeros) return;
    for (index_t t = 0; t < s_.tokens; ++t) {
      float all = 0;
      for (int j = 0; j < top_k; ++j) all += factor(ids_[static_cast<std::size_t>(t * top_k + j)]);
      for (index_t h = 0; h < hidden; ++h)
        right_ =
            right_ && expar::widen(out_.row(t)[h]) == element(comm_.rank(), t, h) * all / top_k;
    }
    for (index_t t = 0; t < s_.tokens; ++t)
      for (index_t h = 0; h < hidden; ++h) out_.row(t)[h] = expar::narrow<bf16>(-1.f);
  }

  Comm& comm_;
  settings const& s_;
  hollow_memory* hollow_;
  std::pmr::memory_resource* memory_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  expar::tensor_view<bf16, 2> in_, out_;
  std::vector<int> counts_, routes_;
  std::string figures_;
  bool right_ = true;
};

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc < 4) stop("smpirun -np RANKS ... simulated CHAIN TOKENS GPUS [--zeros] [--routes FILE]");
  settings s{argv[1], std::atol(argv[2]), std::atoi(argv[3]), false, nullptr};
  for (int i = 4; i < argc; ++i)
    if (std::string_view(argv[i]) == "--zeros")
      s.zeros = true;
    else if (std::string_view(argv[i]) == "--routes" && i + 1 < argc)
      s.routes_file = argv[++i];
    else
      stop("an argument is not known");
  {
    expar::mpi_communicator mpi(MPI_COMM_WORLD);
    if (s.zeros) {
      hollow_memory memory;
      // The largest message is that of a rank that sends all tokens of its rail to all of its node.
      index_t const rows = s.tokens * std::max<index_t>(mpi.size(), 2 * top_k);
      hollow_communicator comm(mpi, static_cast<std::size_t>(rows * (hidden * 2 + 256)));
      layer(comm, s, &memory).measure();
    } else {
      layer(mpi, s, nullptr).measure();
    }
  }
  MPI_Finalize();
}

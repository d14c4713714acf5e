// SPDX-License-Identifier: Apache-2.0
// A layer with experts on several processes, by hand and with Expar, through the memory that they
// share and over messages: what each takes, and which edges and faults each survives. compare.py
// runs it and says what came of it.
//   mpiexec -n 2 expar_by_hand [--benchmark_...]              forward and backward, rounds.hpp says
//   how mpiexec -n 2 expar_by_hand --edge NAME --way hand|expar|messages   one edge: a line for
//   each rank
// The expert e multiplies rows by e + 1, so that a rank knows what its tokens become.
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include <by_hand/layers.hpp>
#include <mpi_report.hpp>
#include <problem.hpp>
#include <rank_rounds.hpp>

namespace {

using benchmarks::kind;
using with_expar = layer_with_expar<expar::mpi_node_communicator>;
using with_messages = layer_with_expar<expar::mpi_communicator>;

constexpr layer_shape shape{8, 2, 1024};

layer_data make_data(layer_shape s, int tokens, int rank) {
  layer_data d{};
  d.tokens = tokens, d.hidden = s.hidden, d.top_k = s.top_k;
  auto const rows = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(s.hidden);
  auto const routes = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(s.top_k);
  d.x.resize(rows), d.out.resize(rows), d.d_out.resize(rows), d.d_x.resize(rows);
  d.weights.resize(routes), d.d_weights.resize(routes);
  benchmarks::numbers random;
  for (int i = 0; i < rank; ++i) random.next();
  auto const draw = [&] { return 0.5f + static_cast<float>(random.below(128)) / 128; };
  for (float& v : d.x) v = draw();
  for (float& v : d.d_out) v = draw();
  for (float& v : d.weights) v = draw();
  d.ids = benchmarks::draw_ids({tokens, s.hidden, s.experts, s.top_k}, random);
  return d;
}

void multiply(int expert, float const* in, std::ptrdiff_t first, std::ptrdiff_t last, float* out,
              int hidden) {
  for (std::ptrdiff_t i = first * hidden; i < last * hidden; ++i)
    out[i] = static_cast<float>(expert + 1) * in[i];
}

bool is_right(layer_data const& d) {
  using benchmarks::close;
  for (int t = 0; t < d.tokens; ++t) {
    auto const row = static_cast<std::size_t>(t) * static_cast<std::size_t>(d.hidden);
    auto const route = static_cast<std::size_t>(t) * static_cast<std::size_t>(d.top_k);
    double factor = 0, product = 0;
    for (std::size_t h = row; h < row + static_cast<std::size_t>(d.hidden); ++h)
      product += double{d.x[h]} * double{d.d_out[h]};
    for (std::size_t i = route; i < route + static_cast<std::size_t>(d.top_k); ++i) {
      factor += d.weights[i] * static_cast<float>(d.ids[i] + 1);  // -1: nothing
      double const expected = (d.ids[i] + 1) * product;
      if (!(std::abs(d.d_weights[i] - expected) <= 1e-4 * expected)) return false;
    }
    for (std::size_t h = row; h < row + static_cast<std::size_t>(d.hidden); ++h)
      if (!close(d.out[h], factor * d.x[h], 1e-5) || !close(d.d_x[h], factor * d.d_out[h], 1e-5))
        return false;
  }
  return true;
}
void poison(layer_data& d) {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  for (auto* v : {&d.out, &d.d_x, &d.d_weights}) std::fill(v->begin(), v->end(), nan);
}

// What each takes. Nobody works on the rows, so that their movement is all there is.

template <class Layer>
void step(Layer& layer, layer_data& d, bool moves_only) {
  auto const experts = [&](int e, float const* in, std::ptrdiff_t first, std::ptrdiff_t last,
                           float* out) {
    if (!moves_only) multiply(e, in, first, last, out, d.hidden);
  };
  layer.forward(d, experts);
  layer.backward(d, experts);
}

void layer(benchmark::State& state) {
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  layer_data d = make_data(shape, static_cast<int>(state.range(0)), comm.rank());
  layer_by_hand by_hand(MPI_COMM_WORLD, shape);
  with_expar in_memory(MPI_COMM_WORLD, shape);
  with_messages by_messages(MPI_COMM_WORLD, shape);
  int const calls = d.tokens < 100 ? 100 : 1;
  bool moves_only = false;  // but in the first round, which is checked
  benchmarks::rank_rounds<expar::mpi_communicator> rounds(comm);
  auto const add = [&](kind is, char const* name, auto& way) {
    rounds.add(
        is, name,
        [&] {
          for (int i = 0; i < calls; ++i) step(way, d, moves_only);
        },
        [&] { return is_right(d); }, [&] { poison(d); });
  };
  add(kind::ours, "expar", in_memory);
  add(kind::peer, "by_hand", by_hand);
  add(kind::peer, "messages", by_messages);
  rounds.check();
  moves_only = true;
  int disturbed = 0;
  auto timings = rounds.measure(static_cast<expar::index_t>(state.max_iterations), disturbed);
  for (auto& t : timings)
    for (double& s : t.seconds) s /= calls;
  benchmarks::report(state, timings, disturbed);
}
BENCHMARK(layer)
    ->ArgNames({"tokens"})
    ->Args({1})
    ->Args({16})
    ->Args({4096})
    ->UseManualTime()
    ->Iterations(25)
    ->Unit(benchmark::kMicrosecond);

// Which edges and faults each survives. A step that is right stands before, and two after it.

template <class Layer>
std::string attempt(Layer& layer, layer_data d, bool throws = false) {
  poison(d);
  try {
    auto const experts = [&](int e, float const* in, std::ptrdiff_t first, std::ptrdiff_t last,
                             float* out) {
      if (throws) throw std::runtime_error("an expert failed");
      multiply(e, in, first, last, out, d.hidden);
    };
    layer.forward(d, experts);
    layer.backward(d, experts);
  } catch (std::exception const& e) {
    return std::string("threw: ") + e.what();
  }
  return is_right(d) ? "right" : "wrong";
}

/// A process that is still here after so many seconds says so, and ends.
constexpr unsigned patience = 10;
void end_when_stuck() {
  std::signal(SIGALRM, [](int) {
    constexpr char words[] = "stuck\n";
    static_cast<void>(!write(STDOUT_FILENO, words, sizeof words - 1));
    _exit(9);
  });
  alarm(patience);
}

void say(int rank, char const* what, std::string const& outcome) {
  std::printf("rank %d | %s | %s\n", rank, what, outcome.c_str());
  std::fflush(stdout);
}

template <class Layer>
void try_edge(std::string const& edge, int rank, int ranks) {
  layer_shape s = shape;
  if (edge == "k_is_E") s.top_k = s.experts;
  layer_data const good = make_data(s, 64, rank);
  layer_data bad = good;
  bool throws = false;
  bool const last = rank == ranks - 1;
  if (edge == "no_tokens") {
    if (last) bad = make_data(s, 0, rank);
  } else if (edge == "id_minus_1") {
    for (std::size_t i = 0; i < bad.ids.size(); i += 3) bad.ids[i] = -1;
  } else if (edge == "id_out_of_range") {
    if (last) bad.ids[5] = s.experts;
  } else if (edge == "hot_expert") {
    for (int& id : bad.ids) id = 0;
  } else if (edge == "throws") {
    throws = last;
  } else if (edge != "other_hidden" && edge != "k_is_E") {
    throw std::invalid_argument("no such edge: " + edge);
  }
  if (edge == "other_hidden") {
    std::string outcome;
    try {
      layer_shape other = s;
      if (last) other.hidden /= 2;
      Layer layer(MPI_COMM_WORLD, other);
      outcome = attempt(layer, make_data(other, 64, rank));
    } catch (std::exception const& e) {
      outcome = std::string("threw: ") + e.what();
    }
    say(rank, "edge", outcome);
  }
  Layer layer(MPI_COMM_WORLD, s);
  say(rank, "before", attempt(layer, good));
  if (edge != "other_hidden") say(rank, "edge", attempt(layer, bad, throws));
  // A rank whose expert threw has left the step in the middle; the other is still in it.
  if (throws) say(rank, "next", attempt(layer, good));
  say(rank, "after", attempt(layer, good));
  say(rank, "later", attempt(layer, good));
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (argc == 5 && std::string(argv[1]) == "--edge") {
    end_when_stuck();
    std::string const way = argv[4];
    if (way == "hand")
      try_edge<layer_by_hand>(argv[2], rank, ranks);
    else if (way == "messages")
      try_edge<with_messages>(argv[2], rank, ranks);
    else
      try_edge<with_expar>(argv[2], rank, ranks);
  } else {
    benchmarks::run_benchmarks(rank, argc, argv);
  }
  MPI_Finalize();
}

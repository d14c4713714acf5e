// SPDX-License-Identifier: Apache-2.0
// Calls of which counts.py counts the instructions, for their number is the same on any machine:
//   expar_counts          prints their names
//   expar_counts NAME     makes one call behind one that allocates, inside counted()
// Each has the shape of a layer, small enough for a processor that is emulated.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <expar/expar.hpp>

namespace {

using expar::index_t;
constexpr index_t tokens = 64, hidden = 1024, top_k = 8;
constexpr int experts = 64;

/// What the calls read and write.
template <class T>
struct problem {
  expar::host_context ctx;
  std::vector<std::int32_t> ids;
  std::vector<float> weights, d_weights, logits;
  std::vector<T> x, y, rows, d_rows;
  expar::route_plan plan;

  problem() : ids(tokens * top_k), weights(ids.size(), .5f), d_weights(ids.size()) {
    for (index_t t = 0; t < tokens; ++t)
      for (index_t j = 0; j < top_k; ++j)
        ids[static_cast<std::size_t>(t * top_k + j)] =
            static_cast<std::int32_t>((t * 7 + j * 9) % experts);
    for (index_t i = 0; i < tokens * experts; ++i)
      logits.push_back(static_cast<float>(i * 7919 % 1009) / 256 - 2);
    x.assign(tokens * hidden, expar::narrow<T>(.5f)), y = x;
    rows.assign(tokens * top_k * hidden, expar::narrow<T>(.25f)), d_rows = rows;
    make_plan();
  }
  void make_plan() {
    expar::make_plan(ctx, expar::make_view(ids.data(), tokens, top_k), experts, expar::ragged{},
                     plan);
  }
  auto tokens_of(std::vector<T>& v) { return expar::make_view(v.data(), tokens, hidden); }
  auto rows_of(std::vector<T>& v) { return expar::make_view(v.data(), tokens * top_k, hidden); }
  auto weights_of(std::vector<float>& v) { return expar::make_view(v.data(), tokens, top_k); }
};

struct call {
  char const* name;
  void (*run)();
};

template <class T>
problem<T>& shared() {
  static problem<T> p;
  return p;
}
template <class T>
void encode() {
  auto& p = shared<T>();
  expar::encode(p.ctx, p.plan, p.tokens_of(p.x), p.rows_of(p.rows));
}
template <class T>
void encode_streaming() {
  auto& p = shared<T>();
  auto ctx = p.ctx;
  ctx.set_cache_bytes(0);
  expar::encode(ctx, p.plan, p.tokens_of(p.x), p.rows_of(p.rows));
}
template <class T>
void decode() {
  auto& p = shared<T>();
  expar::decode(p.ctx, p.plan, p.rows_of(p.rows), p.weights_of(p.weights), p.tokens_of(p.y));
}
template <class T>
void encode_backward() {
  auto& p = shared<T>();
  expar::encode_backward(p.ctx, p.plan, p.rows_of(p.rows), p.tokens_of(p.x),
                         p.weights_of(p.weights), p.tokens_of(p.y), p.weights_of(p.d_weights));
}
template <class T>
void decode_backward() {
  auto& p = shared<T>();
  expar::decode_backward(p.ctx, p.plan, p.tokens_of(p.x), p.rows_of(p.rows),
                         p.weights_of(p.weights), p.rows_of(p.d_rows), p.weights_of(p.d_weights));
}
void make_plan() {
  shared<float>().make_plan();
}
template <class Score>
void route() {
  auto& p = shared<float>();
  struct routes {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<float, 2> weights;
  };
  static std::vector<std::int32_t> ids(tokens * top_k);
  expar::router const router({experts, top_k}, Score{}, expar::score_key{});
  expar::route(p.ctx, router, expar::make_view(p.logits.data(), tokens, index_t{experts}),
               routes{expar::make_view(ids.data(), tokens, top_k), p.weights_of(p.d_weights)});
}
/// Dispatch and combine of a few tokens, on one rank.
template <index_t Few>
void layer() {
  auto& p = shared<float>();
  static expar::self_communicator comm;
  static expar::expert_parallel moe(comm, {experts, top_k, hidden});
  static expar::expert_batch<float> batch;
  struct routes {
    expar::tensor_view<std::int32_t const, 2> ids;
    expar::tensor_view<float const, 2> weights;
  };
  routes const r{expar::make_view(p.ids.data(), Few, top_k),
                 expar::make_view(p.weights.data(), Few, top_k)};
  moe.dispatch(p.ctx, expar::make_view(p.x.data(), Few, hidden), r, batch);
  batch.y();
  moe.combine(p.ctx, batch, expar::make_view(p.y.data(), Few, hidden));
}

constexpr call calls[] = {{"make_plan", make_plan},
                          {"encode float", encode<float>},
                          {"encode bfloat16", encode<expar::bfloat16>},
                          {"encode float, past the caches", encode_streaming<float>},
                          {"decode float", decode<float>},
                          {"decode bfloat16", decode<expar::bfloat16>},
                          {"decode half", decode<expar::half>},
                          {"encode_backward float", encode_backward<float>},
                          {"encode_backward bfloat16", encode_backward<expar::bfloat16>},
                          {"decode_backward float", decode_backward<float>},
                          {"decode_backward bfloat16", decode_backward<expar::bfloat16>},
                          {"route softmax", route<expar::softmax_score>},
                          {"route sigmoid", route<expar::sigmoid_score>},
                          {"dispatch and combine 1 token", layer<1>},
                          {"dispatch and combine 16 tokens", layer<16>}};

}  // namespace

extern "C" [[gnu::noinline]] void counted(void (*run)());
extern "C" void counted(void (*run)()) {
  run();
}

int main(int argc, char** argv) {
  for (call const& c : calls) {
    if (argc < 2) std::printf("%s\n", c.name);
    if (argc < 2 || std::strcmp(argv[1], c.name) != 0) continue;
    c.run();
    counted(c.run);
    return 0;
  }
  return argc < 2 ? 0 : 1;
}

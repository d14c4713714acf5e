// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>

#include "peer_rows.cuh"
#include "reference.cuh"
#include "suite.hpp"

namespace bench {
namespace {

using expar::gpu::route_plan;

/// What the operations on rows read and write: token rows x [T,H], expert rows y [N,H], and for
/// backward d_y.
struct buffers {
  array<bf16> x, y, d_y;
  array<float> weights, d_weights;
  array<std::int32_t> ids, row_of, route_of;
  route_plan plan;
};

struct fixture {
  suite& s;
  problem const& p;
  std::vector<buffers> sets;

  fixture(suite& suite_, problem const& p_, int n, bool backward) : s(suite_), p(p_) {
    auto const h = std::int64_t{p.hidden};
    for (int i = 0; i < n; ++i) {
      auto const seed = static_cast<std::uint64_t>(3 * i);
      sets.push_back({random_rows(s.stream(), p.tokens * h, seed),
                      random_rows(s.stream(), p.rows * h, seed + 1),
                      array<bf16>(backward ? p.rows * h : 0),
                      random_weights(s.stream(), p.routes(), seed + 2),
                      array<float>(backward ? p.routes() : 0), array(p.ids), array(p.row_of),
                      array(p.route_of), route_plan(s.context())});
      auto& b = sets.back();
      expar::gpu::make_plan(s.context(),
                            expar::make_view(b.ids.data(), p.tokens, expar::index_t{p.top_k}),
                            p.experts, expar::ragged{}, b.plan);
    }
  }
  buffers& at(int set) { return sets[static_cast<std::size_t>(set)]; }
  int vectors() const { return p.hidden / 8; }

  auto tokens(array<bf16> const& a) const {
    return expar::make_view(a.data(), p.tokens, expar::index_t{p.hidden});
  }
  auto rows(array<bf16> const& a) const {
    return expar::make_view(a.data(), p.rows, expar::index_t{p.hidden});
  }
  auto routes(array<float> const& a) const {
    return expar::make_view(a.data(), p.tokens, expar::index_t{p.top_k});
  }
};

vector8 const* vectors_of(array<bf16> const& a) {
  return reinterpret_cast<vector8 const*>(a.data());
}
vector8* out_vectors(array<bf16> const& a) {
  return reinterpret_cast<vector8*>(a.data());
}

void encode(suite& s, problem const& p, double bytes, double set_bytes, int sets) {
  if (!s.fits("encode/" + p.name, set_bytes * sets)) return;
  fixture f(s, p, sets, false);
  reference truth(s.stream(), p, p.row_of);
  auto const wrong = [&](int set) { return truth.encoded(f.at(set).x.data(), f.at(set).y.data()); };
  std::vector<variant> all;
  all.push_back({variant::kind::expar,
                 "expar",
                 "",
                 [&](int set) {
                   auto& b = f.at(set);
                   expar::gpu::encode(s.context(), b.plan, f.tokens(b.x), f.rows(b.y));
                 },
                 wrong,
                 {f.at(0).y}});
  all.push_back({variant::kind::peer,
                 "destination-major",
                 "a block to each row written: CUTLASS, TensorRT-LLM, FlashInfer, SGLang",
                 [&](int set) {
                   auto const& b = f.at(set);
                   auto const blocks =
                       static_cast<unsigned>(std::clamp<std::int64_t>(p.rows, 1, 65536));
                   destination_major_encode<<<blocks, row_threads, 0, s.stream()>>>(
                       vectors_of(b.x), b.route_of.data(), static_cast<int>(p.rows), p.top_k,
                       f.vectors(), out_vectors(b.y));
                 },
                 wrong,
                 {f.at(0).y}});
  all.push_back(s.out_stream(bytes, p.top_k));
  s.measure({"encode", p, bytes, set_bytes, sets, std::move(all)});
}

void decode(suite& s, problem const& p, double bytes, double set_bytes, int sets) {
  bool const parts_fit =
      s.fits("decode in two passes/" + p.name,
             set_bytes * sets + static_cast<double>(p.routes() * p.row_bytes()) * sets);
  if (!parts_fit && !s.fits("decode/" + p.name, set_bytes * sets)) return;
  fixture f(s, p, sets, false);
  reference truth(s.stream(), p, p.row_of);
  auto const wrong = [&](int set) {
    auto const& b = f.at(set);
    return truth.decoded(b.y.data(), b.weights.data(), b.x.data());
  };
  std::vector<variant> all;
  all.push_back({variant::kind::expar,
                 "expar",
                 "",
                 [&](int set) {
                   auto& b = f.at(set);
                   expar::gpu::decode(s.context(), b.plan, f.rows(b.y), f.routes(b.weights),
                                      f.tokens(b.x));
                 },
                 wrong,
                 {f.at(0).x}});
  all.push_back(
      {variant::kind::peer,
       "block per token",
       "a loop over choices: CUTLASS finalize, FlashInfer, TransformerEngine",
       [&](int set) {
         auto const& b = f.at(set);
         block_per_token_decode<<<static_cast<unsigned>(p.tokens), row_threads, 0, s.stream()>>>(
             vectors_of(b.y), b.row_of.data(), b.weights.data(), p.top_k, f.vectors(),
             out_vectors(b.x));
       },
       wrong,
       {f.at(0).x}});
  std::vector<array<bf16>> parts;
  for (int i = 0; i < sets && parts_fit; ++i) parts.emplace_back(p.routes() * p.hidden);
  if (parts_fit)
    all.push_back(
        {variant::kind::peer,
         "two passes",
         "scatter to [T,k,H], then sum: MegaBlocks, ScatterMoE, vLLM moe_sum",
         [&](int set) {
           auto const& b = f.at(set);
           auto* const to = out_vectors(parts[static_cast<std::size_t>(set)]);
           two_pass_scatter<<<static_cast<unsigned>(p.routes()), row_threads, 0, s.stream()>>>(
               vectors_of(b.y), b.row_of.data(), b.weights.data(), f.vectors(), to);
           two_pass_sum<<<static_cast<unsigned>(p.tokens), row_threads, 0, s.stream()>>>(
               to, p.top_k, f.vectors(), out_vectors(b.x));
         },
         [&](int set) {
           auto const& b = f.at(set);
           return truth.decoded(b.y.data(), b.weights.data(), b.x.data(), 0x1.01p-8);
         },
         {f.at(0).x}});
  all.push_back(s.in_stream(bytes, p.top_k));
  s.measure({"decode", p, bytes, set_bytes, sets, std::move(all)});
}

void decode_backward(suite& s, problem const& p, double bytes, double set_bytes, int sets) {
  if (!s.fits("decode_backward/" + p.name, set_bytes * sets)) return;
  fixture f(s, p, sets, true);
  reference truth(s.stream(), p, p.row_of);
  auto const wrong = [&](int set) {
    auto const& b = f.at(set);
    return truth.decoded_backward(b.x.data(), b.y.data(), b.weights.data(), b.d_y.data(),
                                  b.d_weights.data());
  };
  std::vector<variant> all;
  all.push_back({variant::kind::expar,
                 "expar",
                 "",
                 [&](int set) {
                   auto& b = f.at(set);
                   expar::gpu::decode_backward(s.context(), b.plan, f.tokens(b.x), f.rows(b.y),
                                               f.routes(b.weights), f.rows(b.d_y),
                                               f.routes(b.d_weights));
                 },
                 wrong,
                 {f.at(0).d_y, f.at(0).d_weights}});
  all.push_back({variant::kind::peer,
                 "destination-major",
                 "a block to each expert row: TransformerEngine",
                 [&](int set) {
                   auto const& b = f.at(set);
                   if (p.rows < p.routes())
                     ok(cudaMemsetAsync(b.d_weights.data(), 0, b.d_weights.bytes(), s.stream()),
                        "cudaMemsetAsync");
                   if (p.rows > 0)
                     destination_major_backward<<<static_cast<unsigned>(p.rows), row_threads, 0,
                                                  s.stream()>>>(
                         vectors_of(b.x), vectors_of(b.y), b.route_of.data(), b.weights.data(),
                         p.top_k, f.vectors(), out_vectors(b.d_y), b.d_weights.data());
                 },
                 wrong,
                 {f.at(0).d_y, f.at(0).d_weights}});
  s.measure({"decode_backward", p, bytes, set_bytes, sets, std::move(all)});
}

}  // namespace

void measure_rows(suite& s, problem const& p) {
  double const row = static_cast<double>(p.row_bytes()), routes = static_cast<double>(p.routes());
  double const moved = static_cast<double>(p.tokens_with_row + p.rows) * row;
  double const set = static_cast<double>(p.tokens + p.rows) * row + 30 * routes;
  double const backward = static_cast<double>(p.rows) * row;
  if (s.wants("encode", p))
    for (int const sets : s.sets_for(set)) encode(s, p, moved + 8 * routes, set, sets);
  if (s.wants("decode", p)) {
    // A token without a row is written all the same.
    double const written = static_cast<double>(p.tokens - p.tokens_with_row) * row;
    for (int const sets : s.sets_for(set)) decode(s, p, moved + written + 8 * routes, set, sets);
  }
  if (s.wants("decode_backward", p))
    for (int const sets : s.sets_for(set + backward))
      decode_backward(s, p, moved + backward + 12 * routes, set + backward, sets);
}

}  // namespace bench

// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/torch_layer.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <expar/expar.hpp>

#include "support/catch.hpp"

namespace {

using expar::torch::view;
using tensors = std::vector<at::Tensor>;

bool close(at::Tensor const& a, at::Tensor const& b) {
  return a.defined() && a.sizes() == b.sizes() && at::allclose(a, b, 1e-10, 1e-12);
}

constexpr int experts = 5, top_k = 2, hidden = 3;

// What all ranks hold together, and the tokens of each.
struct problem {
  explicit problem(std::vector<std::int64_t> tokens_of_rank) : tokens(std::move(tokens_of_rank)) {
    at::manual_seed(7);
    std::int64_t all = 0;
    for (auto n : tokens) all += n;
    x = at::randn({all, hidden}, at::kDouble);
    weights = at::rand({all, top_k}, at::kDouble);
    ids = at::rand({all, experts}).argsort(std::int64_t{1}).slice(1, 0, top_k).clone();
    if (all > 1) ids[1][0] = -1;  // a route that leads nowhere
    in = at::randn({experts, hidden, 4}, at::kDouble);
    back = at::randn({experts, 4, hidden}, at::kDouble);
    d_out = at::randn({all, hidden}, at::kDouble);
  }

  std::vector<std::int64_t> tokens;
  at::Tensor x, weights, ids, in, back, d_out;
};

at::Tensor expert(at::Tensor const& rows, at::Tensor const& in, at::Tensor const& back) {
  return at::matmul(at::silu(at::matmul(rows, in)), back);
}

at::Tensor trained(at::Tensor const& t) {
  return t.detach().clone().requires_grad_();
}

// Every expert on all tokens, masked: out and the gradients of x, weights, in and back.
tensors dense(problem const& p) {
  auto const x = trained(p.x), weights = trained(p.weights);
  auto const in = trained(p.in), back = trained(p.back);
  at::Tensor out = at::zeros_like(p.x);
  for (int e = 0; e < experts; ++e)
    out = out + (weights * p.ids.eq(e)).sum(1, true) * expert(x, in[e], back[e]);
  auto const d = torch::autograd::grad({out}, {x, weights, in, back}, {p.d_out});
  return {out.detach(), d[0], d[1], d[2], d[3]};
}

// The same by ranks that have some tokens and some experts each.
template <class Comm>
tensors on_rank(Comm& comm, problem const& p) {
  expar::host_context const ctx;
  std::int64_t first = 0;
  for (int r = 0; r < comm.rank(); ++r) first += p.tokens[static_cast<std::size_t>(r)];
  auto const last = first + p.tokens[static_cast<std::size_t>(comm.rank())];
  auto const part = [&](at::Tensor const& t) { return t.slice(0, first, last); };
  auto const x = trained(part(p.x)), weights = trained(part(p.weights));
  auto const in = trained(p.in), back = trained(p.back);

  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  auto const run = [&](at::Tensor const& rows, auto const& batch) {
    at::Tensor y = at::zeros_like(rows);
    auto row = batch.slot_offsets().begin();
    for (int l = 0; l < batch.local_slots(); ++l, ++row) {
      auto const mine = [&](at::Tensor const& t) { return t.slice(0, row[0], row[1]); };
      int const e = batch.expert_of(l);
      mine(y).copy_(expert(mine(rows), in[e], back[e]));
    }
    return y;
  };
  auto const out =
      expar::torch::layer<double, double>(ctx, moe, x, part(p.ids), weights, run, {in, back});
  auto const d = torch::autograd::grad({out}, {x, weights, in, back}, {part(p.d_out)});
  return {out.detach(), d[0], d[1], d[2], d[3]};
}

void check_against_dense(std::vector<std::int64_t> const& tokens_of_rank) {
  problem const p(tokens_of_rank);
  auto const wanted = dense(p);
  std::vector<tensors> of_rank(tokens_of_rank.size());
  expar::run_ranks(static_cast<int>(of_rank.size()), [&](auto& comm) {
    of_rank[static_cast<std::size_t>(comm.rank())] = on_rank(comm, p);
  });
  for (std::size_t i = 0; i < 5; ++i) {
    tensors parts;
    for (auto const& r : of_rank) parts.push_back(r[i]);
    // Tokens are side by side, and each expert's gradient is where the expert is.
    CAPTURE(i);
    CHECK(close(i < 3 ? at::cat(parts) : at::stack(parts).sum(0), wanted[i]));
  }
}

}  // namespace

TEST_CASE("a layer in autograd has the gradients of every expert on all tokens, masked") {
  check_against_dense({7});
  check_against_dense({4, 6});
  check_against_dense({0, 5, 3});
  check_against_dense({0, 0});
}

TEST_CASE("a layer in autograd trains experts whose tokens have no gradient") {
  problem const p({6});
  expar::host_context const ctx;
  expar::self_communicator const comm;
  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  auto const scale = at::full({1}, 2.0, at::kDouble).requires_grad_();
  auto const out = expar::torch::layer<double, double>(
      ctx, moe, p.x, p.ids, p.weights, [&](auto& rows, auto&) { return rows * scale; }, {scale});
  out.sum().backward();
  auto const wanted = ((p.weights * p.ids.ge(0)).sum(1, true) * p.x).sum().reshape({1});
  CHECK(close(scale.grad(), wanted));
}

TEST_CASE("a layer outside autograd keeps no graph") {
  problem const p({6});
  expar::host_context const ctx;
  expar::self_communicator const comm;
  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  at::NoGradGuard const no_graph;
  auto const x = p.x.clone().requires_grad_();
  bool rows_trained = true;
  auto const out = expar::torch::layer<double, double>(ctx, moe, x, p.ids, p.weights,
                                                       [&](auto& rows, auto&) {
                                                         rows_trained = rows.requires_grad();
                                                         return rows;
                                                       },
                                                       {});
  CHECK(!rows_trained);
  CHECK(!out.requires_grad());
  CHECK(close(out, (p.weights * p.ids.ge(0)).sum(1, true) * p.x));
}

TEST_CASE("a layer in autograd goes backward once") {
  problem const p({6});
  expar::host_context const ctx;
  expar::self_communicator const comm;
  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  auto const x = trained(p.x);
  auto const out = expar::torch::layer<double, double>(
      ctx, moe, x, p.ids, p.weights, [](auto& rows, auto&) { return 2 * rows; }, {});
  auto const loss = out.sum();
  loss.backward({}, true);
  CHECK_THROWS_WITH(loss.backward(),
                    "expar: torch::layer: its graph serves one backward pass, and this is another");
}

TEST_CASE("a layer of bfloat16 in autograd has float weights") {
  expar::host_context const ctx;
  expar::self_communicator const comm;
  expar::expert_parallel moe(comm, {2, 1, 4});
  auto const x = at::ones({3, 4}, at::kBFloat16).requires_grad_();
  auto const weights = at::full({3, 1}, 0.5f).requires_grad_();
  auto const out =
      expar::torch::layer<c10::BFloat16>(ctx, moe, x, at::zeros({3, 1}, at::kLong), weights,
                                         [](auto& rows, auto&) { return 4 * rows; }, {});
  out.sum().backward();
  CHECK(at::equal(out, at::full({3, 4}, 2, at::kBFloat16)));
  CHECK(at::equal(x.grad(), at::full({3, 4}, 2, at::kBFloat16)));
  CHECK(at::equal(weights.grad(), at::full({3, 1}, 16.0f)));
}

TEST_CASE("a router in autograd has the gradient of the same router written in libtorch") {
  expar::host_context const ctx;
  auto const logits = trained(at::randn({9, experts}, at::kDouble));
  auto const d_weights = at::randn({9, top_k}, at::kDouble);
  expar::router const router({experts, top_k}, expar::softmax_score{}, expar::score_key{},
                             expar::renormalize{});
  auto const [ids, weights] = expar::torch::route<double>(ctx, router, logits);
  auto const top = logits.softmax(1).topk(top_k);
  auto const wanted = std::get<0>(top) / std::get<0>(top).sum(1, true);
  CHECK(at::equal(ids, std::get<1>(top)));
  CHECK(!ids.requires_grad());
  CHECK(close(weights.detach(), wanted.detach()));
  CHECK(close(torch::autograd::grad({weights}, {logits}, {d_weights})[0],
              torch::autograd::grad({wanted}, {logits}, {d_weights})[0]));
}

TEST_CASE("a router in autograd takes a bias") {
  expar::host_context const ctx;
  auto const logits = at::zeros({4, experts});
  auto const bias = at::arange(experts).to(at::kFloat);
  expar::router const router({experts, top_k}, expar::sigmoid_score{}, expar::biased_key{},
                             expar::renormalize{});
  auto const ids = expar::torch::route(ctx, router, logits, view<float const, 1>(bias)).first;
  CHECK(at::equal(ids, at::tensor({4, 3}, at::kLong).expand({4, 2})));
}

// SPDX-License-Identifier: Apache-2.0
// A layer as a module of libtorch, its gradients checked against those that autograd has of every
// expert on all tokens.
#include <torch/torch.h>

#include <cstdio>
#include <vector>

#include <expar/expar.hpp>
#include <expar/interop/torch_layer.hpp>

namespace {

constexpr int tokens = 40, experts = 6, top_k = 2, hidden = 8;

template <class Layer>
struct moe_module : torch::nn::Module {
  explicit moe_module(Layer& layer) : moe(layer) {
    register_module("gate", gate);
    register_module("expert", expert);
    for (int e = 0; e < experts; ++e)
      expert->push_back(torch::nn::Sequential(torch::nn::Linear(hidden, 2 * hidden),
                                              torch::nn::SiLU(),
                                              torch::nn::Linear(2 * hidden, hidden)));
  }
  at::Tensor run(int e, at::Tensor const& rows) {
    return expert[std::size_t(e)]->template as<torch::nn::Sequential>()->forward(rows);
  }

  at::Tensor forward(at::Tensor const& x) {
    auto const [ids, weights] = expar::torch::route(ctx, router, gate->forward(x));
    auto const run_all = [this](at::Tensor const& rows, auto const& batch) {
      at::Tensor y = at::zeros_like(rows);
      auto row = batch.slot_offsets().begin();
      for (int s = 0; s < batch.local_slots(); ++s, ++row)
        y.slice(0, row[0], row[1]).copy_(run(batch.expert_of(s), rows.slice(0, row[0], row[1])));
      return y;
    };
    return expar::torch::layer<float>(ctx, moe, x, ids, weights, run_all, expert->parameters());
  }

  // By libtorch alone: each expert on all tokens, times its share of a token.
  at::Tensor dense(at::Tensor const& x) {
    auto const [weights, ids] = gate->forward(x).topk(top_k);
    at::Tensor const share = weights.softmax(1);
    at::Tensor out = at::zeros_like(x);
    for (int e = 0; e < experts; ++e) out = out + (share * ids.eq(e)).sum(1, true) * run(e, x);
    return out;
  }

  expar::host_context ctx;
  Layer& moe;
  decltype(expar::models::mixtral()) router = expar::models::mixtral({experts, top_k});
  torch::nn::Linear gate{torch::nn::LinearOptions(hidden, experts).bias(false)};
  torch::nn::ModuleList expert;
};

}  // namespace

int main() {
  torch::manual_seed(1);
  expar::self_communicator comm;
  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  moe_module module(moe);
  at::Tensor const x = torch::randn({tokens, hidden}).requires_grad_();
  at::Tensor const target = torch::randn({tokens, hidden});

  std::vector<at::Tensor> trained = module.parameters();
  trained.push_back(x);
  auto const gradients = [&](at::Tensor const& out) {
    return torch::autograd::grad({torch::mse_loss(out, target)}, trained);
  };
  at::Tensor const out = module.forward(x), wanted_out = module.dense(x);
  auto const d = gradients(out), wanted = gradients(wanted_out);
  bool same = out.allclose(wanted_out, 1e-4, 1e-6);
  for (std::size_t i = 0; i < d.size(); ++i) same = same && d[i].allclose(wanted[i], 1e-4, 1e-6);
  std::printf("a libtorch layer: %s autograd of every expert on all tokens\n",
              same ? "the same as" : "NOT");
  return same ? 0 : 1;
}

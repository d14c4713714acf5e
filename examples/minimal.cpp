// SPDX-License-Identifier: Apache-2.0
// A tensor and a communicator of one's own, and everything that the library asks of them.
#include <cstdio>
#include <cstring>
#include <vector>

#include <expar/expar.hpp>

struct matrix {
  int rows, columns;
  std::vector<float> values = std::vector<float>(std::size_t(rows * columns));
};
//! [tensor]
template <>
struct expar::tensor_traits<matrix> {
  static auto view(auto& m) { return expar::make_view(m.values.data(), m.rows, m.columns); }
};
//! [tensor]

//! [communicator]
struct lone_rank {
  int rank() const noexcept { return 0; }
  int size() const noexcept { return 1; }
  void all_to_all_v(expar::host_context const&, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts,
                    expar::byte_counts to) const {
    std::memcpy(static_cast<char*>(out) + to[0], static_cast<char const*>(in) + from[0], counts[0]);
  }
};
//! [communicator]

int main() {
  constexpr int tokens = 6, hidden = 4, experts = 3, top_k = 2;
  expar::host_context ctx;
  lone_rank comm;

  matrix x{tokens, hidden}, logits{tokens, experts}, out{tokens, hidden};
  for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] = float(i);
  for (std::size_t i = 0; i < logits.values.size(); ++i) logits.values[i] = float(i * i % 7);

  expar::router router({experts, top_k}, expar::softmax_score{}, expar::score_key{},
                       expar::renormalize{});
  expar::routes<float> routes(tokens, top_k);
  expar::route(ctx, router, logits, routes);

  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  auto batch = moe.dispatch(ctx, x, routes);
  for (int e = 0; e < batch.local_slots(); ++e) {  // expert e multiplies by e + 1
    auto const rows = batch.slot_rows(e);
    for (expar::index_t i = 0; i < rows.size(); ++i) rows.data[i] *= float(e + 1);
  }
  moe.combine(ctx, batch, batch.rows(), out);

  for (int t = 0; t < tokens; ++t)
    std::printf("token %d: experts %d and %d, %.0f becomes %.3f\n", t, routes.ids(t, 0),
                routes.ids(t, 1), double(x.values[std::size_t(t * hidden + 1)]),
                double(out.values[std::size_t(t * hidden + 1)]));
}

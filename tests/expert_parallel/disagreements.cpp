// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_parallel.hpp>

#include <stdexcept>

#include "support/layer_of_few.hpp"
#include "support/thrown_by.hpp"

using namespace expar_test;

namespace {

/// A tensor of the caller's whose view fails on one rank.
struct broken {
  bool breaks;
  expar::tensor_view<float, 2> inner;
};

}  // namespace

template <>
struct expar::tensor_traits<broken> {
  static auto view(broken const& b) {
    if (b.breaks) throw std::runtime_error("the tensor is gone");
    return b.inner;
  }
};

TEST_CASE("ranks that enter two layers of one shape in other orders all say so, and go on") {
  std::vector<std::string> const wanted(
      3,
      "expar: rank 0 calls dispatch of one object while rank 1 calls it of another; all ranks call "
      "the same operations in the same order");
  over_both(wanted, [](auto& x, auto& comm) -> std::string {
    expar::host_context const ctx;
    layer_data d(comm.rank());
    expar::expert_parallel first(x, {experts, k, hidden}), second(x, {experts, k, hidden});
    auto batch = first.template make_batch<float>();
    first.dispatch(ctx, d.rows(), d.routes(), batch);
    std::string const said = thrown_by([&] {
      if (comm.rank() == 1)
        second.dispatch(ctx, d.rows(), batch);
      else
        first.dispatch(ctx, d.rows(), batch);
    });
    for (int time = 0; time < 2; ++time)
      if (!run_layer(first, batch, d).empty() || !run_layer(second, batch, d).empty())
        return "later";
    return said;
  });
}

TEST_CASE("two types of 16 bits are two types") {
  std::vector<std::string> const wanted(3,
                                        "expar: dispatch: rows on rank 2 have another element type "
                                        "than on rank 0; all ranks must use "
                                        "the same");
  over_both(wanted, [](auto& x, auto& comm) -> std::string {
    expar::host_context const ctx;
    layer_data d(comm.rank());
    expar::expert_parallel moe(x, {experts, k, hidden});
    std::vector<expar::half> const h(tokens * hidden);
    std::vector<expar::bfloat16> const b(tokens * hidden);
    std::string const said = thrown_by([&] {
      if (comm.rank() == 2)
        moe.dispatch(ctx, make_view(b.data(), tokens, hidden), d.routes());
      else
        moe.dispatch(ctx, make_view(h.data(), tokens, hidden), d.routes());
    });
    auto batch = moe.template make_batch<float>();
    return run_layer(moe, batch, d).empty() ? said : "later";
  });
}

TEST_CASE("a tensor whose view throws on one rank fails the call on all") {
  std::vector<std::string> const wanted(3, "expar: an exception: the tensor is gone (rank 1)");
  for (int which = 0; which < 8; ++which) {
    INFO("tensor " << which);
    over_both(wanted, [which](auto& x, auto& comm) -> std::string {
      expar::host_context const ctx;
      layer_data d(comm.rank());
      expar::expert_parallel moe(x, {experts, k, hidden});
      auto batch = moe.template make_batch<float>();
      if (!run_layer(moe, batch, d).empty()) return "before";
      std::vector<float> y(static_cast<std::size_t>(batch.row_count() * hidden)), d_y(y), d_w(8);
      bool const breaks = comm.rank() == 1;
      broken in{breaks, d.rows()}, out{breaks, d.result()};
      auto const rows = [&](std::vector<float>& v) {
        return make_view(v.data(), batch.row_count(), index_t{hidden});
      };
      broken y_in{breaks, rows(y)}, y_out{breaks, rows(d_y)};
      broken w_out{breaks, make_view(d_w.data(), tokens, k)};
      auto const weights = make_view(d_w.data(), tokens, k);
      std::string const said = thrown_by([&] {
        switch (which) {
          case 0:
            return moe.dispatch(ctx, in, batch);
          case 1:
            return moe.dispatch(ctx, d.rows(), batch, y_out);
          case 2:
            return moe.combine(ctx, batch, y_in, d.result());
          case 3:
            return moe.combine(ctx, batch, out);
          case 4:
            return moe.combine_backward(ctx, batch, in, weights);
          case 5:
            return moe.combine_backward(ctx, batch, d.rows(), w_out);
          case 6:
            return moe.dispatch_backward(ctx, batch, y_in, d.result());
          default:
            return moe.dispatch(ctx, in, d.routes(), batch);
        }
      });
      return run_layer(moe, batch, d).empty() ? said : "later";
    });
  }
}

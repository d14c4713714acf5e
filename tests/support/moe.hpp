// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <expar/element.hpp>
#include <expar/expert_parallel.hpp>

#include "grid.hpp"
#include "problem.hpp"

namespace expar_test {

struct routes_of_rank {
  expar::tensor_view<std::int32_t, 2> ids;
  expar::tensor_view<float, 2> weights;
};

/// One rank's part of a problem, and the whole way of it through expert_parallel, forward and
/// backward.
template <class T, class Comm, class Layout, class Site>
class moe_run {
  static constexpr bool at_decode = std::is_same_v<Site, expar::weights_at_decode>;
  static constexpr bool at_encode = std::is_same_v<Site, expar::weights_at_encode>;
  static constexpr bool per_row = std::is_same_v<Site, expar::weights_per_row>;

 public:
  moe_run(problem const& p, int rank)
      : p_(p),
        rank_(rank),
        tokens_(static_cast<expar::index_t>(p.tokens_of(rank).size())),
        ids_(static_cast<std::size_t>(tokens_ * p.top_k)),
        weights_(tokens_, p.top_k),
        x_(tokens_, p.hidden, 3),
        d_out_(tokens_, p.hidden, 1),
        out_(tokens_, p.hidden, 2),
        d_x_(tokens_, p.hidden, 5),
        d_w_(tokens_, p.top_k, 1) {
    for (int t = 0; t < tokens_; ++t) {
      auto const& token = p.at(rank, t);
      for (int j = 0; j < p.top_k; ++j) {
        ids_[static_cast<std::size_t>(t * p.top_k + j)] = token.ids[static_cast<std::size_t>(j)];
        weights_.set(t, j, token.weights[static_cast<std::size_t>(j)]);
      }
      for (int h = 0; h < p.hidden; ++h) {
        x_.set(t, h, token.x[static_cast<std::size_t>(h)]);
        d_out_.set(t, h, token.d_out[static_cast<std::size_t>(h)]);
      }
    }
  }

  routes_of_rank routes() {
    return {expar::make_view(ids_.data(), tokens_, expar::index_t{p_.top_k}), weights_.view()};
  }

  /// Each returns what is wrong, or nothing. backward() may run much later than forward().
  template <class Moe>
  std::string forward(expar::host_context const& ctx, Moe& moe) {
    moe.dispatch(ctx, x_.view(), routes(), batch_);
    std::string const wrong = check_rows();
    y_ = grid<T>(batch_.row_count(), p_.hidden, 1);
    for_each_row([&](expar::index_t row, int expert, problem::route const* r) {
      for (int h = 0; h < p_.hidden; ++h) {
        double const w = per_row && r ? weight_in_row(row) : 1;
        // What only fills is never read: poison it.
        y_.set(row, h, r ? w * problem::slope(expert) * value(batch_.rows()(row, h)) : 1e30);
      }
    });
    moe.combine(ctx, batch_, y_.view(), out_.view());
    return wrong.empty() ? check_out() : wrong;
  }

  template <class Moe>
  std::string backward(expar::host_context const& ctx, Moe& moe) {
    grid<T> d_y(batch_.row_count(), p_.hidden, 4), d_rows(batch_.row_count(), p_.hidden, 2);
    if constexpr (at_decode)
      moe.combine_backward(ctx, batch_, d_out_.view(), y_.view(), d_y.view(), d_w_.view());
    else
      moe.combine_backward(ctx, batch_, d_out_.view(), d_y.view());
    std::string wrong;
    std::vector<expar::accumulator_t<T>> d_row_weights(
        static_cast<std::size_t>(batch_.row_count()));
    for_each_row([&](expar::index_t row, int expert, problem::route const* r) {
      double dot = 0;
      for (int h = 0; h < p_.hidden; ++h) {
        if (!r && d_y.get(row, h) != 0) wrong = "d_y is not zero in a row that only fills";
        double const w = per_row && r ? weight_in_row(row) : 1;
        d_rows.set(row, h, r ? w * problem::slope(expert) * d_y.get(row, h) : 1e30);
        dot += problem::slope(expert) * value(batch_.rows()(row, h)) * d_y.get(row, h);
      }
      d_row_weights[static_cast<std::size_t>(row)] = static_cast<expar::accumulator_t<T>>(dot);
    });
    if constexpr (at_decode)
      moe.dispatch_backward(ctx, batch_, d_rows.view(), d_x_.view());
    else if constexpr (at_encode)
      moe.dispatch_backward(ctx, batch_, d_rows.view(), x_.view(), d_x_.view(), d_w_.view());
    else
      moe.dispatch_backward(ctx, batch_, d_rows.view(), d_row_weights, d_x_.view(), d_w_.view());
    return wrong.empty() ? check_gradients() : wrong;
  }

  std::vector<double> results() const {
    std::vector<double> all;
    for (int t = 0; t < tokens_; ++t) {
      for (int h = 0; h < p_.hidden; ++h)
        all.push_back(out_.get(t, h)), all.push_back(d_x_.get(t, h));
      for (int j = 0; j < p_.top_k; ++j) all.push_back(d_w_.get(t, j));
    }
    return all;
  }
  expar::expert_batch<T, float>& batch() { return batch_; }

 private:
  static double value(T x) { return static_cast<double>(expar::widen(x)); }
  double weight_in_row(expar::index_t row) const {
    return static_cast<double>(batch_.row_weights()(row));
  }

  template <class F>
  void for_each_row(F f) {
    auto const rows = p_.rows_at(rank_);
    for (int l = 0; l < batch_.local_experts(); ++l)
      for (auto row = batch_.expert_offsets()[static_cast<std::size_t>(l)];
           row < batch_.expert_offsets()[static_cast<std::size_t>(l) + 1]; ++row) {
        auto const& r = rows[static_cast<std::size_t>(row)];
        f(row, batch_.first_expert() + l, r ? &*r : nullptr);
      }
  }

  std::string check_rows() {
    auto const rows = p_.rows_at(rank_);
    if (batch_.row_count() != static_cast<expar::index_t>(rows.size()))
      return "wrong number of rows";
    std::string wrong;
    std::vector<expar::index_t> counts(static_cast<std::size_t>(batch_.local_experts()));
    for_each_row([&](expar::index_t row, int expert, problem::route const* r) {
      counts[static_cast<std::size_t>(expert - batch_.first_expert())] += r != nullptr;
      for (int h = 0; h < p_.hidden; ++h) {
        double wanted = 0;
        if (r) {
          auto const& token = p_.at(r->rank, r->token);
          double const w = at_encode ? token.weights[static_cast<std::size_t>(r->choice)] : 1;
          wanted = w * token.x[static_cast<std::size_t>(h)];
        }
        if (value(batch_.rows()(row, h)) != wanted) wrong = "a row holds something else";
      }
      if (per_row &&
          weight_in_row(row) !=
              (r ? p_.at(r->rank, r->token).weights[static_cast<std::size_t>(r->choice)] : 0))
        wrong = "a row has another weight";
    });
    for (std::size_t l = 0; l < counts.size(); ++l)
      if (batch_.expert_counts()[l] != counts[l]) wrong = "expert_counts is wrong";
    return wrong;
  }
  std::string check_out() const {
    for (int t = 0; t < tokens_; ++t)
      for (int h = 0; h < p_.hidden; ++h)
        if (out_.get(t, h) != p_.out(rank_, t, h)) return "out differs from the reference";
    return out_.gaps_intact() ? "" : "combine wrote between the rows of out";
  }
  std::string check_gradients() const {
    for (int t = 0; t < tokens_; ++t) {
      for (int h = 0; h < p_.hidden; ++h)
        if (d_x_.get(t, h) != p_.d_x(rank_, t, h)) return "d_tokens differs from the reference";
      for (int j = 0; j < p_.top_k; ++j)
        if (d_w_.get(t, j) != p_.d_weight(rank_, t, j))
          return "d_weights differs from the reference";
    }
    if (!d_x_.gaps_intact() || !d_w_.gaps_intact()) return "backward wrote between rows";
    return "";
  }

  problem const& p_;
  int rank_;
  expar::index_t tokens_;
  std::vector<std::int32_t> ids_;
  grid<float> weights_;
  grid<T> x_, d_out_, out_, d_x_;
  grid<float> d_w_;
  grid<T> y_{0, 0};
  expar::expert_batch<T, float> batch_;
};

/// Runs f(moe, layout) with the layout of the problem and weights at the site.
template <class T, class Site, class Comm, class F>
std::string with_moe(Comm& comm, problem const& p, F f) {
  expar::expert_shape const shape{p.experts, p.top_k, p.hidden};
  if (p.capacity) {
    expar::expert_parallel moe(comm, shape, *p.capacity, Site{});
    return f(moe, *p.capacity);
  }
  expar::expert_parallel moe(comm, shape, expar::ragged{p.alignment}, Site{});
  return f(moe, expar::ragged{});
}

/// Forward and backward of a problem on one rank; what is wrong, or nothing. `results`, if given,
/// gets every number that came out.
template <class T, class Site, class Comm>
std::string check_problem(expar::host_context const& ctx, Comm& comm, problem const& p,
                          std::vector<double>* results = nullptr) {
  return with_moe<T, Site>(comm, p, [&](auto& moe, auto layout) {
    moe_run<T, Comm, decltype(layout), Site> run(p, comm.rank());
    std::string wrong = run.forward(ctx, moe);
    if (wrong.empty()) wrong = run.backward(ctx, moe);
    if (results) *results = run.results();
    return wrong;
  });
}

}  // namespace expar_test

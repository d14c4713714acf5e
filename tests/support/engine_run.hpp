// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include <expar/element.hpp>
#include <expar/expert_parallel.hpp>

#include "drawn.hpp"
#include "grid.hpp"
#include "thrown_by.hpp"

namespace expar_test {

/// Element types of rows, weights, what experts make, and ids.
template <class RowElement, class WeightElement = float, class YElement = RowElement,
          class IdElement = std::int32_t>
struct elements {
  using T = RowElement;
  using W = WeightElement;
  using Y = YElement;
  using Id = IdElement;
};

/// The placement of a problem, by its name where it has one.
inline expar::placement placement_of(drawn_problem const& d) {
  problem const& p = d.made;
  auto const with_way = [&](expar::placement where) {
    auto lost = p.lost;
    std::sort(lost.begin(), lost.end());
    for (; !lost.empty(); lost.pop_back()) where = where.without(lost.back());
    return p.choice == problem::way::nearest ? where.nearest(p.ranks_per_node) : where;
  };
  switch (d.what.placement) {
    case placed::blocks:
    case placed::fewer_experts_than_ranks:
    case placed::uneven_blocks:
      return expar::placement::blocks(p.experts, p.ranks);
    case placed::sharded:
      return expar::placement::sharded(p.experts, p.ranks, p.shards);
    case placed::whole:
      return expar::placement::whole(p.experts, p.ranks);
    default:
      break;
  }
  for (int copies = 2; copies <= 3 && p.shards == 1; ++copies) {
    problem q{};
    q.ranks = static_cast<int>(p.experts_of_rank.size());
    cut_into_blocks(q, p.experts * copies, [&](int n) { return n % p.experts; });
    if (q.experts_of_rank == p.experts_of_rank)
      return with_way(expar::placement::replicated(p.experts, q.ranks, copies));
  }
  return with_way(expar::placement::table(p.experts, p.experts_of_rank, p.shards));
}

/// Quotas of a problem, which see the counts of all ranks.
struct quotas_of {
  drawn_problem const* d;

  void operator()(expar::tensor_view<expar::index_t const, 2> counts, expar::placement const& where,
                  expar::tensor_view<expar::index_t, 2> out) const {
    answer const& wanted = d->wanted;
    for (int r = 0; r < d->made.ranks; ++r)
      for (int e = 0; e < d->made.experts; ++e)
        if (counts(r, e) !=
            wanted.routes_for[static_cast<std::size_t>(r)][static_cast<std::size_t>(e)])
          throw std::runtime_error("a quota function is told other counts");
    if (d->made.even) expar::even_quotas(counts, where, out);
    for (std::size_t s = 0; s < wanted.slots.size(); ++s) {
      if (wanted.slots[s].copy < 0) continue;
      auto const of_rank = wanted.quotas(wanted.slots[s].expert);
      for (int r = 0; r < d->made.ranks; ++r) {
        auto const n =
            of_rank[static_cast<std::size_t>(r)][static_cast<std::size_t>(wanted.slots[s].copy)];
        auto& to = out(r, static_cast<int>(s));
        if (d->made.even && wanted.slots[s].shard == 0 && to != n)
          throw std::runtime_error("even_quotas are others");
        to = n;
      }
    }
  }
};

/// One rank's part of a problem, and the whole way of it through an engine, forward and backward.
template <class Elements, class Site>
class engine_run {
  using T = typename Elements::T;
  using W = typename Elements::W;
  using Y = typename Elements::Y;
  using Id = typename Elements::Id;
  using index_t = expar::index_t;
  static constexpr bool at_decode = std::is_same_v<Site, expar::weights_at_decode>;
  static constexpr bool at_encode = std::is_same_v<Site, expar::weights_at_encode>;
  static constexpr bool per_row = std::is_same_v<Site, expar::weights_per_row>;

 public:
  engine_run(drawn_problem const& d, int rank)
      : d_(d),
        p_(d.made),
        wanted_(d.wanted),
        rank_(rank),
        how_(d.how.of(rank)),
        tokens_(static_cast<index_t>(p_.tokens_of(rank).size())),
        ids_(static_cast<std::size_t>(tokens_ * (p_.top_k + how_.gap)), 99),
        weights_(tokens_, p_.top_k, how_.gap),
        x_(tokens_, p_.hidden, how_.gap),
        d_out_(tokens_, p_.hidden_out, how_.gap),
        out_(tokens_, p_.hidden_out, how_.gap),
        d_x_(tokens_, p_.hidden, how_.gap),
        d_w_(tokens_, p_.top_k, how_.gap) {
    for (int t = 0; t < tokens_; ++t) {
      auto const& token = p_.at(rank, t);
      for (int j = 0; j < p_.top_k; ++j) {
        routes().ids(t, j) = static_cast<Id>(token.ids[static_cast<std::size_t>(j)]);
        weights_.set(t, j, token.weights[static_cast<std::size_t>(j)]);
      }
      for (int h = 0; h < p_.hidden; ++h) x_.set(t, h, token.x[static_cast<std::size_t>(h)]);
      for (int h = 0; h < p_.hidden_out; ++h)
        d_out_.set(t, h, token.d_out[static_cast<std::size_t>(h)]);
    }
  }

  /// Each returns what is wrong, or nothing. backward() may run much later than forward(), and
  /// again.
  template <class Moe>
  std::string forward(expar::host_context const& ctx, Moe& moe) {
    if (wanted_.fails) return refuse(ctx, moe);
    prepare(ctx, moe);
    wrong_ = check_routes();
    if (how_.again) {
      fill(rows(), 1e30);
      send_rows(ctx, moe);
    }
    note(check_rows());
    if (how_.own_y) {
      y_ = grid<Y>(batch_.row_count(), p_.hidden_out, how_.gap);
      run_experts(y_.view());
      moe.combine(ctx, batch_, y_.view(), out_.view());
    } else {
      run_experts(batch_.y());
      moe.combine(ctx, batch_, out_.view());
    }
    note(check_out());
    return wrong_;
  }

  template <class Moe>
  std::string backward(expar::host_context const& ctx, Moe& moe) {
    if (wanted_.fails) return "";
    wrong_.clear();
    if (how_.recomputes) {
      if (!how_.mixed || rank_ % 2 == 0) batch_.release(expar::side::rows);
      if (!how_.mixed || rank_ % 3 == 0) batch_.release(expar::side::y);
      send_rows(ctx, moe);
      note(check_rows());
    }
    double const before = how_.adds ? 1 : 50;
    fill(d_x_.view(), before), fill(d_w_.view(), before);
    if (how_.own_back) d_y_ = grid<Y>(batch_.row_count(), p_.hidden_out, how_.gap);
    combine_backward(ctx, moe);
    auto const d_y = how_.own_back ? d_y_.view() : batch_.d_y();
    note(check_d_y(d_y));
    if (how_.own_d_rows) {
      d_rows_ = grid<T>(batch_.row_count(), p_.hidden, how_.gap);
      d_row_weights_.resize(static_cast<std::size_t>(batch_.row_count()));
      run_experts_backward(d_y, d_rows_.view(), d_row_weights_.data());
    } else {
      expar::accumulator_t<T>* scalars = nullptr;
      if constexpr (per_row) scalars = batch_.d_row_weights().data;
      run_experts_backward(d_y, batch_.d_rows(), scalars);
    }
    dispatch_backward(ctx, moe);
    note(check_gradients());
    return wrong_;
  }

  expar::expert_batch<T, W, Y>& batch() { return batch_; }

 private:
  struct routes_of_rank {
    expar::tensor_view<Id, 2> ids;
    expar::tensor_view<W, 2> weights;
  };
  routes_of_rank routes() {
    return {expar::make_view(ids_.data(), tokens_, index_t{p_.top_k}, index_t{p_.top_k + how_.gap}),
            weights_.view()};
  }
  /// What is wrong first: the rank goes on, since the others do.
  void note(std::string const& what) {
    if (wrong_.empty()) wrong_ = what;
  }
  expar::tensor_view<T, 2> rows() { return how_.own_rows ? rows_.view() : batch_.rows(); }

  template <class Moe>
  void prepare(expar::host_context const& ctx, Moe& moe) {
    bool const by_quotas = p_.choice == problem::way::quotas;
    if (!how_.two_steps) {
      if (by_quotas)
        moe.dispatch(ctx, x_.view(), routes(), batch_, quotas_of{&d_});
      else
        moe.dispatch(ctx, x_.view(), routes(), batch_);
      return;
    }
    if (by_quotas)
      moe.prepare(ctx, routes(), batch_, quotas_of{&d_});
    else
      moe.prepare(ctx, routes(), batch_);
    if (how_.own_rows) rows_ = grid<T>(batch_.row_count(), p_.hidden, how_.gap);
    send_rows(ctx, moe);
  }
  template <class Moe>
  void send_rows(expar::host_context const& ctx, Moe& moe) {
    if (how_.own_rows)
      moe.dispatch(ctx, x_.view(), batch_, rows_.view());
    else
      moe.dispatch(ctx, x_.view(), batch_);
  }
  /// A budget that does not suffice: all ranks are told what would, and the batch works afterwards.
  template <class Moe>
  std::string refuse(expar::host_context const& ctx, Moe& moe) {
    auto const said = thrown_by([&] { prepare(ctx, moe); });
    if (said.find(" " + std::to_string(wanted_.needed) + " ") == std::string::npos)
      return "a budget of " + std::to_string(p_.rows) + " rows where " +
             std::to_string(wanted_.needed) + " are needed: " + said;
    expar::tensor_view<Id, 2> const ids{nullptr, {0, p_.top_k}, {p_.top_k, 1}};
    expar::tensor_view<W, 2> const w{nullptr, {0, p_.top_k}, {p_.top_k, 1}};
    moe.prepare(ctx, routes_of_rank{ids, w}, batch_);
    return batch_.row_count() == 0 ? "" : "no token, but a row";
  }

  template <class Moe>
  void combine_backward(expar::host_context const& ctx, Moe& moe) {
    if constexpr (at_decode) {
      if (how_.own_back) {
        y_ = grid<Y>(batch_.row_count(), p_.hidden_out, how_.gap);
        run_experts(y_.view());
      } else {
        run_experts(batch_.y());
      }
      into(d_w_, [&](auto d_w) {
        if (how_.own_back)
          moe.combine_backward(ctx, batch_, d_out_.view(), y_.view(), d_y_.view(), d_w);
        else
          moe.combine_backward(ctx, batch_, d_out_.view(), d_w);
      });
    } else {
      if (how_.own_back)
        moe.combine_backward(ctx, batch_, d_out_.view(), d_y_.view());
      else
        moe.combine_backward(ctx, batch_, d_out_.view());
    }
  }
  template <class Moe>
  void dispatch_backward(expar::host_context const& ctx, Moe& moe) {
    into(d_x_, [&](auto d_x) {
      if constexpr (at_decode) {
        if (how_.own_d_rows)
          moe.dispatch_backward(ctx, batch_, d_rows_.view(), d_x);
        else
          moe.dispatch_backward(ctx, batch_, d_x);
      } else if constexpr (at_encode) {
        auto const d_w = like(d_x);
        if (how_.own_d_rows)
          moe.dispatch_backward(ctx, batch_, d_rows_.view(), x_.view(), d_x, d_w);
        else
          moe.dispatch_backward(ctx, batch_, x_.view(), d_x, d_w);
      } else {
        auto const d_w = like(d_x);
        if (how_.own_d_rows)
          moe.dispatch_backward(ctx, batch_, d_rows_.view(), d_row_weights_, d_x, d_w);
        else
          moe.dispatch_backward(ctx, batch_, d_x, d_w);
      }
    });
  }
  /// f(gradient), overwritten or added to.
  template <class Grid, class F>
  void into(Grid& gradient, F f) {
    if (how_.adds)
      f(expar::add_to(gradient.view()));
    else
      f(gradient.view());
  }
  auto like(expar::tensor_view<T, 2>) { return d_w_.view(); }
  template <class Added>
  auto like(expar::add_to<Added>) {
    return expar::add_to(d_w_.view());
  }

  template <class E>
  static void fill(expar::tensor_view<E, 2> to, double value) {
    for (index_t i = 0; i < to.extents[0]; ++i)
      for (index_t h = 0; h < to.extents[1]; ++h)
        to(i, h) = expar::narrow<E>(static_cast<expar::accumulator_t<E>>(value));
  }
  template <class E>
  static double value(E x) {
    return static_cast<double>(expar::widen(x));
  }
  template <class E>
  static E rounded(double x) {
    return expar::narrow<E>(static_cast<expar::accumulator_t<E>>(x));
  }

  /// f(row, slot, route or null) for each row of this rank.
  template <class F>
  void for_each_row(F f) const {
    for (std::size_t s = 0; s < wanted_.slots.size(); ++s)
      if (wanted_.slots[s].rank == rank_)
        for (std::size_t i = 0; i < wanted_.at[s].rows.size(); ++i) {
          auto const& r = wanted_.at[s].rows[i];
          f(wanted_.at[s].begin + static_cast<index_t>(i), wanted_.slots[s], r ? &*r : nullptr);
        }
  }
  double weight_of(answer::route const& r) const { return p_.weight(r.rank, r.token, r.choice); }

  /// What only fills is never read: it is poisoned.
  void run_experts(expar::tensor_view<Y, 2> y) {
    auto const x = rows();
    for_each_row([&](index_t row, problem::slot const& s, answer::route const* r) {
      double w = r ? problem::slope(s.expert, s.shard) : 0;
      if constexpr (per_row) w *= value(batch_.row_weights()(row));
      for (int h = 0; h < p_.hidden_out; ++h)
        y(row, h) = rounded<Y>(r ? w * value(x(row, p_.column_of(h))) : 1e30);
    });
  }
  void run_experts_backward(expar::tensor_view<Y, 2> d_y, expar::tensor_view<T, 2> d_rows,
                            [[maybe_unused]] expar::accumulator_t<T>* d_row_weights) {
    auto const x = rows();
    std::vector<double> sum(static_cast<std::size_t>(p_.hidden));
    for_each_row([&](index_t row, problem::slot const& s, answer::route const* r) {
      double const slope = problem::slope(s.expert, s.shard);
      double dot = 0;
      std::fill(sum.begin(), sum.end(), 0.);
      for (int h = 0; h < p_.hidden_out; ++h) {
        sum[static_cast<std::size_t>(p_.column_of(h))] += slope * value(d_y(row, h));
        dot += slope * value(x(row, p_.column_of(h))) * value(d_y(row, h));
      }
      double w = 1;
      if constexpr (per_row) {
        w = value(batch_.row_weights()(row));
        d_row_weights[row] = static_cast<expar::accumulator_t<T>>(r ? dot : 1e30);
      }
      for (int h = 0; h < p_.hidden; ++h)
        d_rows(row, h) = rounded<T>(r ? w * sum[static_cast<std::size_t>(h)] : 1e30);
    });
  }

  std::string check_routes() {
    auto const me = static_cast<std::size_t>(rank_);
    if (batch_.row_count() != wanted_.row_count[me])
      return "row_count is " + std::to_string(batch_.row_count()) + ", not " +
             std::to_string(wanted_.row_count[me]);
    if (batch_.dropped() != wanted_.dropped[me])
      return "dropped is " + std::to_string(batch_.dropped()) + ", not " +
             std::to_string(wanted_.dropped[me]);
    if (batch_.needed_rows() != wanted_.needed)
      return "needed_rows is " + std::to_string(batch_.needed_rows()) + ", not " +
             std::to_string(wanted_.needed);
    int l = 0;
    std::size_t first = 0;
    while (first < wanted_.slots.size() && wanted_.slots[first].rank < rank_) ++first;
    if (batch_.first_slot() != static_cast<int>(first)) return "first_slot";
    for (std::size_t s = first; s < wanted_.slots.size() && wanted_.slots[s].rank == rank_;
         ++s, ++l) {
      auto const& slot = wanted_.at[s];
      auto const at = static_cast<std::size_t>(l);
      if (l >= batch_.local_slots()) return "local_slots";
      if (batch_.expert_of(l) != wanted_.slots[s].expert) return "expert_of";
      if (batch_.slot_counts()[at] != slot.count) return "slot_counts";
      if (batch_.slot_offsets()[at] != slot.begin) return "slot_offsets";
      if (batch_.slot_offsets()[at + 1] != slot.begin + std::ssize(slot.rows))
        return "the end of slot_offsets";
      for (int r = 0; r < p_.ranks; ++r) {
        auto const from = static_cast<std::size_t>(r);
        if (batch_.count_from(r, l) != slot.count_from[from]) return "count_from";
        if (batch_.first_row_from(r, l) != slot.first_from[from]) return "first_row_from";
      }
    }
    if (batch_.local_slots() != l) return "local_slots is " + std::to_string(batch_.local_slots());
    return "";
  }
  std::string check_rows() {
    auto const got = rows();
    if (got.extents[0] != batch_.row_count() || got.extents[1] != p_.hidden)
      return "rows have another shape";
    std::string wrong;
    for_each_row([&](index_t row, problem::slot const&, answer::route const* r) {
      for (int h = 0; h < p_.hidden; ++h) {
        double wanted = r ? wanted_.x(r->rank, r->token, h) : 0;
        if (r && at_encode) wanted *= weight_of(*r);
        if (value(got(row, h)) != wanted) wrong = "row " + std::to_string(row);
      }
      if constexpr (per_row)
        if (value(batch_.row_weights()(row)) != (r ? weight_of(*r) : 0))
          wrong = "the weight of row " + std::to_string(row);
    });
    if (how_.own_rows && !rows_.gaps_intact()) return "dispatch wrote between the rows";
    return wrong;
  }
  std::string check_d_y(expar::tensor_view<Y, 2> d_y) const {
    if (d_y.extents[0] != batch_.row_count() || d_y.extents[1] != p_.hidden_out)
      return "d_y has another shape";
    std::string wrong;
    for_each_row([&](index_t row, problem::slot const&, answer::route const* r) {
      for (int h = 0; h < p_.hidden_out; ++h) {
        double wanted = r ? wanted_.d_out(r->rank, r->token, h) : 0;
        if (r && at_decode) wanted *= weight_of(*r);
        if (value(d_y(row, h)) != wanted) wrong = "d_y of row " + std::to_string(row);
      }
    });
    if (how_.own_back && !d_y_.gaps_intact()) return "combine_backward wrote between the rows";
    return wrong;
  }
  std::string check_out() const {
    for (int t = 0; t < tokens_; ++t)
      for (int h = 0; h < p_.hidden_out; ++h)
        if (out_.get(t, h) != wanted_.out(rank_, t, h)) return "out of token " + std::to_string(t);
    return out_.gaps_intact() ? "" : "combine wrote between the rows of out";
  }
  std::string check_gradients() const {
    double const before = how_.adds ? 1 : 0;
    for (int t = 0; t < tokens_; ++t) {
      for (int h = 0; h < p_.hidden; ++h)
        if (d_x_.get(t, h) != before + wanted_.d_token(rank_, t, h))
          return "d_tokens of token " + std::to_string(t);
      for (int j = 0; j < p_.top_k; ++j)
        if (d_w_.get(t, j) != before + wanted_.d_weight(rank_, t, j))
          return "d_weights of token " + std::to_string(t);
    }
    return d_x_.gaps_intact() && d_w_.gaps_intact() ? "" : "backward wrote between rows";
  }

  drawn_problem const& d_;
  problem const& p_;
  answer const& wanted_;
  int rank_;
  manner how_;
  std::string wrong_;
  index_t tokens_;
  std::vector<Id> ids_;
  grid<W> weights_;
  grid<T> x_;
  grid<Y> d_out_, out_;
  grid<T> d_x_;
  grid<expar::accumulator_t<W>> d_w_;
  grid<T> rows_{0, 0}, d_rows_{0, 0};
  grid<Y> y_{0, 0}, d_y_{0, 0};
  std::vector<expar::accumulator_t<T>> d_row_weights_;
  expar::expert_batch<T, W, Y> batch_;
};

/// f(engine) for the engine of a problem on a transport.
template <class Layout, class Site, class X, class F>
std::string with_engine(X& transport, drawn_problem const& d, Layout layout, F f) {
  problem const& p = d.made;
  expar::expert_shape const shape{p.experts, p.top_k, p.hidden,
                                  p.hidden_out == p.hidden ? 0 : p.hidden_out};
  expar::expert_parallel moe(transport, shape, layout, Site{});
  moe.place(placement_of(d));
  return f(moe);
}
inline expar::ragged ragged_of(problem const& p) {
  return {p.alignment};
}
inline expar::fixed_capacity capacity_of(problem const& p) {
  return {p.factor, p.alignment, p.rows};
}
inline expar::row_budget budget_of(problem const& p) {
  return {.rows = p.rows, .alignment = p.alignment, .drops = p.drops};
}

/// Calls f(elements, site, layout) for a problem: its engine is one of nine, and Table::at<limit,
/// site> says for which elements.
template <class Table, class F>
std::string with_types(drawn_problem const& d, F f) {
  auto const with_site = [&]<int S, class Site>(Site site) {
    switch (d.made.limited) {
      case problem::limit::none:
        return f(typename Table::template at<0, S>{}, site, ragged_of(d.made));
      case problem::limit::capacity:
        return f(typename Table::template at<1, S>{}, site, capacity_of(d.made));
      default:
        return f(typename Table::template at<2, S>{}, site, budget_of(d.made));
    }
  };
  switch (d.what.site) {
    case weighed::at_decode:
      return with_site.template operator()<0>(expar::weights_at_decode{});
    case weighed::at_encode:
      return with_site.template operator()<1>(expar::weights_at_encode{});
    default:
      return with_site.template operator()<2>(expar::weights_per_row{});
  }
}

/// One of the given elements for each engine, shifted from table to table.
template <int Shift, class... Elements>
struct element_table {
  template <int L, int S>
  using at = std::tuple_element_t<static_cast<std::size_t>(L * 3 + S + Shift) % sizeof...(Elements),
                                  std::tuple<Elements...>>;
};

inline std::string described(drawn_problem const& d) {
  auto const n = [](auto x) { return std::to_string(static_cast<int>(x)); };
  return "placement " + n(d.what.placement) + ", layout " + n(d.what.layout) + ", site " +
         n(d.what.site) + ", ranks " + n(d.what.ranks) + ": ";
}

/// The problems of a group, one after another; what is wrong first, or nothing. Between the steps
/// the rank may pause().
template <class Table, class X, class Pause>
std::string check_in_turn(X& transport, problems const& all, int rank, Pause pause) {
  expar::host_context contexts[] = {expar::host_context(1), expar::host_context(2),
                                    expar::host_context(3)};
  contexts[1].set_cache_bytes(0);  // rows are written past the caches
  std::string first;
  for (auto const& d : all) {
    auto const& ctx = contexts[d->how.threads - 1];
    std::string wrong;
    pause();
    try {
      wrong = with_types<Table>(*d, [&]<class E, class Site>(E, Site, auto layout) {
        return with_engine<decltype(layout), Site>(transport, *d, layout, [&](auto& moe) {
          engine_run<E, Site> one(*d, rank);
          auto said = one.forward(ctx, moe);
          pause();
          auto const backward = one.backward(ctx, moe);
          return said.empty() ? backward : said;
        });
      });
    } catch (std::exception const& e) {
      return first.empty() ? described(*d) + "threw: " + e.what() : first;
    }
    if (first.empty() && !wrong.empty()) first = described(*d) + wrong;
  }
  return first;
}

/// Batches of one engine and many placements, alive at once: forward in order, backward in another.
template <class Table, class X>
std::string check_alive(X& transport, problems const& group, int rank) {
  expar::host_context const ctx;
  return with_types<Table>(*group[0], [&]<class E, class Site>(E, Site, auto layout) {
    return with_engine<decltype(layout), Site>(transport, *group[0], layout, [&](auto& moe) {
      std::vector<std::unique_ptr<engine_run<E, Site>>> runs;
      std::string wrong;
      auto const note = [&](std::string const& s) {
        if (wrong.empty()) wrong = s;
      };
      for (auto const& d : group) {
        runs.push_back(std::make_unique<engine_run<E, Site>>(*d, rank));
        moe.place(placement_of(*d));
        note(runs.back()->forward(ctx, moe));
      }
      for (std::size_t const i : {3u, 0u, 4u, 1u, 2u}) note(runs[i]->backward(ctx, moe));
      moe.place(placement_of(*group[2]));
      note(runs[2]->forward(ctx, moe));
      note(runs[2]->backward(ctx, moe));
      note(runs[2]->backward(ctx, moe));
      return wrong;
    });
  });
}

}  // namespace expar_test

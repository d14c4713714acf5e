// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "faults.hpp"

namespace chaos {

using expar::index_t, expar::make_view;

enum class step {
  construct,
  place,
  prepare,
  quotas,
  fused,
  rows,
  combine,
  combine_backward,
  dispatch_backward
};
constexpr char const* step_names[] = {
    "construct",       "place",   "prepare",          "prepare with quotas", "dispatch (fused)",
    "dispatch (rows)", "combine", "combine_backward", "dispatch_backward"};
constexpr int steps = 9;
constexpr char const* name_of(step s) {
  return step_names[static_cast<int>(s)];
}

/// The calls of a layer, forward and backward.
inline std::vector<step> calls_of(step begins, bool constructs) {
  std::vector<step> calls{step::place, begins};
  if (constructs) calls.insert(calls.begin(), step::construct);
  if (begins != step::fused) calls.push_back(step::rows);
  calls.insert(calls.end(), {step::combine, step::combine_backward, step::dispatch_backward});
  return calls;
}

/// A number for each of what it is made of.
inline std::uint64_t hash(std::initializer_list<std::uint64_t> of) {
  std::uint64_t h = 0;
  for (std::uint64_t const n : of) {
    h = (h ^ n) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  return h * 0xbf58476d1ce4e5b9u >> 16;
}

/// What all layers of a group have, of which every rank knows all data.
struct problem {
  std::uint64_t seed;
  int ranks, experts;
  index_t hidden, hidden_out;
  expar::chain way;  // of hops

  static constexpr int k = 2;
  double weight(int choice) const { return choice + 1; }
};

/// A batch on its way, on one rank.
struct passage {
  int object, batch;
  std::uint64_t stamp;  // of no other
  index_t many = 0;     // tokens, instead of a few, of rank `of`
  int of = -1;

  bool own = false;  // whether the caller brings tensors instead of the sides
  std::vector<std::int32_t> ids{};
  std::vector<double> weights{}, x{}, out{}, d_out{}, d_weights{}, d_tokens{};
  std::vector<double> rows{}, y{}, d_y{}, d_rows{};
  struct source {
    int rank, expert;
    index_t token;
  };
  std::vector<source> from{};  // of each row

  index_t tokens(problem const& p, int rank) const {
    return rank == of ? many : static_cast<index_t>(hash({p.seed, stamp, of_rank(rank)}) % 5);
  }
  /// -1 at times, and else never the same for two choices.
  int expert(problem const& p, int rank, index_t token, int choice) const {
    auto const h = hash({p.seed, stamp, of_rank(rank), static_cast<std::uint64_t>(token)});
    auto const experts = static_cast<std::uint64_t>(p.experts);
    std::uint64_t const first = h % experts, other = (first + 1 + (h >> 16) % (experts - 1));
    if ((h >> (32 + choice)) % 8 == 0) return -1;
    return static_cast<int>(choice == 0 ? first : other % experts);
  }
  int choice(problem const& p, int rank, index_t token, int e) const {
    for (int j = 0; j < p.k; ++j)
      if (expert(p, rank, token, j) == e) return j;
    return -1;
  }
  /// A row that tells where it is from, and what it is.
  double value(int rank, index_t token, index_t column, int what) const {
    double const first[] = {rank + 0., static_cast<double>(token), static_cast<double>(stamp)};
    return column < 3 ? first[column] : static_cast<double>(what + column);
  }
  static std::uint64_t of_rank(int rank) { return static_cast<std::uint64_t>(rank) + 77; }
};
constexpr int as_token = 0, as_gradient = 100, as_expert = 200;  // + e

struct wrong_row : std::logic_error {
  using std::logic_error::logic_error;
};

/// The objects of one rank, and what it does with them. `X`: a transport on communicators `C`.
/// `Site`: weights at decode or per row.
template <class X, class C, class Layout, class Site>
class layers {
  using moe = expar::expert_parallel<X, Layout, Site>;
  using batch = expar::expert_batch<double, double>;
  struct object {
    std::optional<X> own;
    std::optional<moe> layer;
    batch batches[2];
  };

 public:
  layers(problem const& p, C& comm, trap& on_rank, bool shared)
      : p_(p), comm_(comm), trap_(on_rank), memory_(on_rank), shared_(shared) {}

  /// One call, and what is around it; `wrong`: by which argument.
  void run(passage& w, step s, int wrong = 0) {
    object& o = objects_[w.object];
    batch none(&memory_);
    batch& b = wrong == 3 && s >= step::rows ? none : o.batches[w.batch];
    if (s == step::construct) construct(w.object, wrong);
    if (s == step::place) o.layer->place(placement(w.stamp + (wrong != 0), wrong));
    if (s == step::prepare) o.layer->prepare(ctx_, routes(w, wrong), b);
    if (s == step::quotas) o.layer->prepare(ctx_, routes(w, wrong), b, quotas(wrong));
    if (s == step::fused || s == step::rows) dispatch(w, b, wrong, s == step::fused);
    if (s == step::combine) combine(w, b, wrong);
    if (s == step::combine_backward) combine_backward(w, b, wrong);
    if (s == step::dispatch_backward) dispatch_backward(w, b, wrong);
  }

  /// How many wrong calls there are of a step.
  static int wrongs(step s) {
    return s == step::construct ? 1 + by_chain : s == step::place ? 2 : s == step::quotas ? 4 : 3;
  }
  void construct(int i, int wrong = 0) {
    object& o = objects_[i];
    forget(i);
    if (i != 1 || !shared_) make_transport(o.own, wrong == 2);
    for (batch& b : o.batches) b = batch(&memory_);
    o.layer.emplace(i == 1 && shared_ ? *objects_[0].own : *o.own,
                    expar::expert_shape{p_.experts, p_.k, p_.hidden, p_.hidden_out + (wrong == 1)},
                    layout(), Site{}, &memory_);
  }
  void forget(int i) {
    object& o = objects_[i];
    for (batch& b : o.batches) b = batch(&memory_);
    o.layer.reset(), o.own.reset();
  }
  void sum_counts(index_t n) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(n), 1);
    expar::sum_counts(ctx_, comm_, make_view(values.data(), n));
  }
  void gather_report() { expar::gather_report(ctx_, comm_, objects_[0].batches[0].plan()); }

 private:
  void make_transport(std::optional<X>& x, [[maybe_unused]] bool other_way) {
    if constexpr (by_chain)
      x.emplace(comm_, other_way ? expar::chain::linear(p_.ranks) : p_.way, &memory_);
    else
      x.emplace(comm_, &memory_);
  }
  static Layout layout() {
    if constexpr (by_choice)
      return {.factor = 0};
    else
      return {};
  }
  expar::placement placement(std::uint64_t stamp, int wrong) const {
    if (wrong == 2) return expar::placement::blocks(p_.experts + 1, p_.ranks);
    int const kind = static_cast<int>(stamp % 3);
    if (kind == 0) return expar::placement::blocks(p_.experts, p_.ranks);
    if (kind == 1) return expar::placement::replicated(p_.experts, p_.ranks, 2);
    std::vector<std::vector<int>> table(static_cast<std::size_t>(p_.ranks));
    for (int e = 0; e < p_.experts; ++e)
      table[static_cast<std::size_t>(e * 5 + 1) % table.size()].push_back(e);
    return expar::placement::table(p_.experts, table);
  }

  template <class T>
  auto matrix(std::vector<T>& v, index_t rows, index_t columns) {
    return tensor<T, 2>{&trap_, make_view(v.data(), rows, columns)};
  }
  struct route_list {
    tensor<std::int32_t, 2> ids;
    tensor<double, 2> weights;
  };
  route_list routes(passage& w, int wrong) {
    index_t const n = w.tokens(p_, comm_.rank()), k = p_.k;
    w.ids.clear(), w.weights.clear();
    for (index_t t = 0; t < n; ++t)
      for (int j = 0; j < k; ++j) {
        w.ids.push_back(w.expert(p_, comm_.rank(), t, j));
        w.weights.push_back(p_.weight(j));
      }
    if (wrong == 1) w.ids.resize(w.ids.size() + 1 + static_cast<std::size_t>(n));
    if (wrong == 2) w.weights.resize(w.weights.size() + 2);
    if (wrong == 3 && n > 0) w.ids[0] = p_.experts;
    return {matrix(w.ids, n, k + (wrong == 1 || (wrong == 3 && n == 0))),
            matrix(w.weights, n + (wrong == 2), k)};
  }
  auto quotas(int wrong) const {
    return [wrong](auto counts, auto const& place, auto out) {
      expar::even_quotas(counts, place, out);
      if (wrong == 4) out.row(0)[0] = -1;
    };
  }

  void dispatch(passage& w, batch& b, int wrong, bool fused) {
    index_t const n = w.tokens(p_, comm_.rank());
    w.own = !fused && !per_row && hash({w.stamp, p_.seed, passage::of_rank(comm_.rank())}) % 2 == 0;
    w.x.assign(size(n + 1, p_.hidden), 0);
    for (index_t t = 0; t < n; ++t)
      for (index_t c = 0; c < p_.hidden; ++c)
        w.x[size(t, p_.hidden, c)] = w.value(comm_.rank(), t, c, as_token);
    auto const x = matrix(w.x, n + (wrong == 1), p_.hidden + (!fused && wrong == 2));
    if (fused)
      layer(w).dispatch(ctx_, x, routes(w, wrong == 1 ? 0 : wrong), b);
    else if (w.own)
      own_side(w.rows, b, p_.hidden),
          layer(w).dispatch(ctx_, x, b, matrix(w.rows, b.row_count(), p_.hidden));
    else
      layer(w).dispatch(ctx_, x, b);
    check_rows(w, b);
  }
  void check_rows(passage& w, batch& b) {
    trap_.disarm();  // the operation is over
    auto const rows = w.own ? make_view(w.rows.data(), b.row_count(), p_.hidden) : b.rows();
    auto const y = w.own ? own_side(w.y, b, p_.hidden_out) : b.y();
    w.from.assign(size(b.row_count(), 1), {-1, 0, 0});
    for (int l = 0; l < b.local_slots(); ++l)
      for (int r = 0; r < p_.ranks; ++r) {
        index_t last = -1;
        for (index_t i = b.first_row_from(r, l); i < b.first_row_from(r, l) + b.count_from(r, l);
             ++i) {
          int const e = b.expert_of(l);
          auto const t = static_cast<index_t>(rows(i, 1));
          int const j = t < w.tokens(p_, r) ? w.choice(p_, r, t, e) : -1;
          index_t const place = by_choice ? j * w.tokens(p_, r) + t : t;
          if (j < 0 || place <= last)
            throw wrong_row("rows: a token that is not sent here, or at a wrong place");
          last = place, w.from[size(i, 1)] = {r, e, t};
          check("rows", rows, i, [&](index_t c) { return w.value(r, t, c, as_token); });
          double const weight = row_weight(b, i);
          if (per_row && !(weight == p_.weight(j))) throw wrong_row("row_weights: another one");
          for (index_t c = 0; c < p_.hidden_out; ++c)
            y(i, c) = weight * w.value(r, t, c, as_expert + e);
        }
      }
  }
  void combine(passage& w, batch& b, int wrong) {
    index_t const n = w.tokens(p_, comm_.rank());
    w.out.assign(size(n + 1, p_.hidden_out), -1);
    auto const out = matrix(w.out, n + (wrong == 1), p_.hidden_out);
    if (wrong == 2 && !w.own) b.release(expar::side::y);
    if (w.own)
      layer(w).combine(ctx_, b, matrix(w.y, b.row_count() + (wrong == 2), p_.hidden_out), out);
    else
      layer(w).combine(ctx_, b, out);
    check_sums("out", w, out.inner, true);
  }
  void combine_backward(passage& w, batch& b, int wrong) {
    index_t const n = w.tokens(p_, comm_.rank());
    w.d_out.assign(size(n + 1, p_.hidden_out), 0), w.d_weights.assign(size(n + 1, p_.k), -1);
    for (index_t t = 0; t < n; ++t)
      for (index_t c = 0; c < p_.hidden_out; ++c)
        w.d_out[size(t, p_.hidden_out, c)] = w.value(comm_.rank(), t, c, as_gradient);
    auto const d_out = matrix(w.d_out, n + (wrong == 1), p_.hidden_out - (per_row && wrong == 2));
    auto const d_weights = matrix(w.d_weights, n, p_.k);
    if (wrong == 2 && !w.own) b.release(expar::side::y);
    if constexpr (per_row)
      layer(w).combine_backward(ctx_, b, d_out);
    else if (w.own)
      own_side(w.d_y, b, p_.hidden_out),
          layer(w).combine_backward(ctx_, b, d_out, matrix(w.y, b.row_count(), p_.hidden_out),
                                    matrix(w.d_y, b.row_count() + (wrong == 2), p_.hidden_out),
                                    d_weights);
    else
      layer(w).combine_backward(ctx_, b, d_out, d_weights);
    trap_.disarm();  // the operation is over
    auto const d_y = w.own ? make_view(w.d_y.data(), b.row_count(), p_.hidden_out) : b.d_y();
    auto const d_rows = w.own ? own_side(w.d_rows, b, p_.hidden) : b.d_rows();
    for (index_t i = 0; i < b.row_count(); ++i) {
      auto const [r, e, t] = w.from[size(i, 1)];
      if (r < 0) continue;
      double const weight = per_row ? 1 : p_.weight(w.choice(p_, r, t, e));
      check("d_y", d_y, i,
            [&, r = r, t = t](index_t c) { return weight * w.value(r, t, c, as_gradient); });
      for (index_t c = 0; c < p_.hidden; ++c) d_rows(i, c) = w.value(r, t, c, as_expert + e);
      if constexpr (per_row) b.d_row_weights()(i) = dot(w, r, t, e);
    }
    if constexpr (!per_row) check_d_weights(w, d_weights.inner);
  }
  void dispatch_backward(passage& w, batch& b, int wrong) {
    index_t const n = w.tokens(p_, comm_.rank());
    w.d_tokens.assign(size(n + 1, p_.hidden), -1);
    auto const d_tokens = matrix(w.d_tokens, n + (wrong == 1), p_.hidden);
    if (wrong == 2 && !w.own) b.release(expar::side::d_rows);
    if constexpr (per_row) {
      w.d_weights.assign(size(n + 1, p_.k), -1);
      auto const d_weights = matrix(w.d_weights, n, p_.k);
      layer(w).dispatch_backward(ctx_, b, d_tokens, d_weights);
      check_d_weights(w, d_weights.inner);
    } else if (w.own)
      layer(w).dispatch_backward(ctx_, b, matrix(w.d_rows, b.row_count() + (wrong == 2), p_.hidden),
                                 d_tokens);
    else
      layer(w).dispatch_backward(ctx_, b, d_tokens);
    check_sums("d_tokens", w, d_tokens.inner, false);
  }

  static double row_weight([[maybe_unused]] batch const& b, [[maybe_unused]] index_t i) {
    if constexpr (per_row)
      return b.row_weights()(i);
    else
      return 1;
  }
  /// The gradient of the weight of a route.
  double dot(passage const& w, int rank, index_t token, int expert) const {
    double sum = 0;
    for (index_t c = 0; c < p_.hidden_out; ++c)
      sum += w.value(rank, token, c, as_expert + expert) * w.value(rank, token, c, as_gradient);
    return sum;
  }
  void check_d_weights(passage const& w, expar::tensor_view<double, 2> const& d) const {
    for (index_t t = 0; t < d.extents[0]; ++t)
      check("d_weights", d, t, [&](index_t j) {
        int const e = w.expert(p_, comm_.rank(), t, static_cast<int>(j));
        return e < 0 ? 0 : dot(w, comm_.rank(), t, e);
      });
  }
  /// What experts made of each token, which sums to that.
  void check_sums(char const* name, passage const& w, expar::tensor_view<double, 2> const& sums,
                  bool weighted) const {
    for (index_t t = 0; t < sums.extents[0]; ++t)
      check(name, sums, t, [&](index_t c) {
        double sum = 0;
        for (int j = 0; j < p_.k; ++j)
          if (int const e = w.expert(p_, comm_.rank(), t, j); e >= 0)
            sum += (weighted ? p_.weight(j) : 1) * w.value(comm_.rank(), t, c, as_expert + e);
        return sum;
      });
  }
  template <class Value>
  static void check(char const* name, expar::tensor_view<double, 2> const& a, index_t i,
                    Value value) {
    for (index_t c = 0; c < a.extents[1]; ++c)
      if (double const wanted = value(c); !(a(i, c) == wanted))  // NaN is wrong
        throw wrong_row(std::string(name) + "(" + std::to_string(i) + ", " + std::to_string(c) +
                        ") is " + std::to_string(a(i, c)) + ", not " + std::to_string(wanted));
  }
  auto own_side(std::vector<double>& v, batch const& b, index_t columns) const {
    v.assign(size(b.row_count() + 1, columns), -1);
    return make_view(v.data(), b.row_count(), columns);
  }
  static constexpr bool per_row = std::is_same_v<Site, expar::weights_per_row>;
  static constexpr bool by_chain = std::is_same_v<X, expar::hops<C>>;
  static constexpr bool by_choice = std::is_same_v<Layout, expar::fixed_capacity>;
  moe& layer(passage const& w) { return *objects_[w.object].layer; }
  static std::size_t size(index_t rows, index_t columns, index_t more = 0) {
    return static_cast<std::size_t>(rows * columns + more);
  }

  problem p_;
  C& comm_;
  trap& trap_;
  resource memory_;
  bool shared_;
  pool pool_{&trap_};
  expar::host_context ctx_{pool_, &memory_};
  object objects_[3]{{{}, {}, {batch(&memory_), batch(&memory_)}},
                     {{}, {}, {batch(&memory_), batch(&memory_)}},
                     {{}, {}, {batch(&memory_), batch(&memory_)}}};
};

}  // namespace chaos

// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/expar.hpp>
#include <expar/router/research/attention_logits.hpp>
#include <expar/router/research/balanced_assignment.hpp>
#include <expar/router/research/dense_to_sparse.hpp>
#include <expar/router/research/diverse_loss.hpp>
#include <expar/router/research/expert_choice_loss.hpp>
#include <expar/router/research/lambda_control.hpp>
#include <expar/router/research/orthogonal_loss.hpp>
#include <expar/router/research/soft_moe.hpp>

#include "support/catch.hpp"
#include "support/thrown_by.hpp"

using expar::index_t;
using expar::make_view;
using expar::only;

namespace {

constexpr int tokens = 4, experts = 8, k = 2, columns = 4, rows = tokens * k, devices = 2;
constexpr double qnan = std::numeric_limits<double>::quiet_NaN(),
                 inf = std::numeric_limits<double>::infinity();
constexpr auto most = std::numeric_limits<index_t>::max();
expar::host_context const ctx;
expar::self_communicator self;

/// What the calls are given, all of it valid by itself. None of it may change.
struct memory {
  float logits[tokens * experts], d_logits[tokens * experts], bias[experts], weights[rows],
      d_weights[rows], x[tokens * columns], out[tokens * columns], y[rows * columns],
      d_y[rows * columns], of_rows[rows], uniform[rows];
  double sums[experts], d_sums[experts];
  std::int64_t offsets[tokens + 1], lengths[tokens], device_counts[devices];
  std::int32_t ids[rows], kept[rows], counts[experts], device_of[experts],
      histogram[experts * experts], row_of[rows];
  std::int8_t narrow[rows];
  std::uint8_t valid[tokens], record[rows], bytes[64];

  memory() {
    std::memset(static_cast<void*>(this), 0, sizeof *this);
    for (int i = 0; i < rows; ++i) ids[i] = kept[i] = i, weights[i] = .5f;
    for (int t = 0; t <= tokens; ++t) offsets[t] = k * t;
    for (int e = 0; e < experts; ++e) device_of[e] = e / (experts / devices);
    for (int t = 0; t < tokens; ++t) valid[t] = 1;
  }
} m;

auto logits = make_view(m.logits, tokens, experts),
     d_logits = make_view(m.d_logits, tokens, experts);
auto weights = make_view(m.weights, tokens, k), d_weights = make_view(m.d_weights, tokens, k);
auto ids = make_view(m.ids, tokens, k), kept = make_view(m.kept, tokens, k);
auto x = make_view(m.x, tokens, columns), out = make_view(m.out, tokens, columns),
     y = make_view(m.y, rows, columns), d_y = make_view(m.d_y, rows, columns);
auto bias = make_view(m.bias, experts);
auto counts = make_view(m.counts, experts), device_of = make_view(m.device_of, experts);
auto sums = make_view(m.sums, experts), d_sums = make_view(m.d_sums, experts);
auto record = make_view(m.record, tokens, k);
auto offsets = make_view(m.offsets, tokens + 1),
     device_counts = make_view(m.device_counts, devices);
auto variable_ids = make_view(m.ids, rows);
auto histogram = make_view(m.histogram, experts, experts);

template <class Id = std::int32_t>
struct some_routes {
  expar::tensor_view<Id, 2> ids;
  expar::tensor_view<float, 2> weights;
};
template <class T>
auto typed(void* at, index_t n, index_t width) {
  return make_view(static_cast<T*>(at), n, width);
}
some_routes<> const routes{kept, d_weights};
struct runs {
  expar::tensor_view<std::int64_t, 1> offsets;
  expar::tensor_view<std::int32_t, 1> ids;
  expar::tensor_view<float, 1> weights;
} const variable{offsets, variable_ids, make_view(m.weights, rows)};

expar::router const softmax({experts, k}, expar::softmax_score{});
auto limited(int groups, int top_groups) {
  return expar::models::deepseek_v3({experts, k, groups, top_groups, 2.5});
}
template <class... Steps>
auto with(expar::router_shape shape, Steps... steps) {
  return expar::router(shape, steps...);
}
template <class Router>
void route(Router const& router) {
  expar::route(ctx, router, logits, routes);
}
expar::route_plan const& plan() {
  static auto const made = expar::make_plan(ctx, ids, experts);
  return made;
}
constexpr expar::expert_shape shape{.experts = experts, .top_k = k, .hidden = columns};
using engine = expar::expert_parallel<expar::self_communicator>;
/// An engine, and a batch that has rows.
struct layer {
  engine moe{self, shape};
  expar::expert_batch<float> batch;
  layer() { moe.dispatch(ctx, x, some_routes<>{ids, weights}, batch); }
};

/// An engine of one rank of several, over one transport, and a batch that has rows and y.
template <class X, class Layout>
struct layer_of_rank {
  X& transport;
  int rank;
  expar::expert_parallel<X, Layout> moe;
  expar::expert_batch<float> batch;

  layer_of_rank(X& by, int of, Layout layout) : transport(by), rank(of), moe(by, shape, layout) {
    fill();
  }
  void fill() {
    moe.dispatch(ctx, x, some_routes<>{ids, weights}, batch);
    auto const made = batch.y();
    for (index_t i = 0; i < made.size(); ++i) made.data[i] = 1;
  }
  /// Whether the sum over two routes of weight one half is what each of them brings.
  bool works() {
    fill();
    std::vector<float> home(std::size_t{tokens * columns});
    moe.combine(ctx, batch, make_view(home.data(), tokens, columns));
    return home == std::vector<float>(home.size(), 1);
  }
};
/// Throws what call(layer) throws on every rank of `n`, over messages and over windows, if that is
/// one sentence and the layer works behind it.
template <class Call, class Layout = expar::ragged>
void on_ranks(int n, Call call, Layout layout = {}) {
  std::mutex one_at_a_time;
  std::set<std::string> sentences;
  expar::run_ranks(n, [&](auto& c) {
    auto const with = [&](auto by) {
      layer_of_rank l(by, c.rank(), layout);
      auto const said = expar_test::thrown_by([&] { call(l); });
      bool const works = l.works();
      std::lock_guard const lock(one_at_a_time);
      sentences.insert(works ? said : said + " AND THEN IT DOES NOT WORK");
    };
    with(expar::messages(c));
    with(expar::windows(c));
  });
  std::string all;
  for (auto const& s : sentences) all += s + (sentences.size() > 1 ? " OR " : "");
  throw expar::error(all);
}

struct wrong_call {
  std::function<void()> call;
  char const* sentence;
};

std::vector<wrong_call> const of_routers{
    {[] {
       expar::add_learned_noise const noise{logits, qnan, expar::normals{}};
       route(with({experts, k}, noise, expar::softmax_score{}));
     },
     "expar: route: floor of the noise is nan; it is finite"},
    {[] { expar::route(ctx, softmax, make_view(m.logits, tokens, 5), routes); },
     "expar: route: logits has extent 5 in dimension 1, but the router's number of experts is 8"},
    {[] { expar::route(ctx, softmax, make_view(m.logits, -1, experts), routes); },
     "expar: route: logits has extent -1 in dimension 0; an extent is at least 0"},
    {[] { expar::route(ctx, softmax, typed<float>(nullptr, tokens, experts), routes); },
     "expar: route: logits has 32 elements but its data is null"},
    {[] { expar::route(ctx, softmax, typed<float>(m.bytes + 2, 1, experts), routes); },
     "expar: route: logits begins at an address that is 2 modulo 4; its elements are aligned to 4 "
     "bytes"},
    {[] {
       expar::tensor_view<float, 2> const columns_first{m.logits, {tokens, experts}, {1, tokens}};
       expar::route(ctx, softmax, columns_first, routes);
     },
     "expar: route: logits has stride 4 in its last dimension; it must be contiguous there (stride "
     "1)"},
    {[] { expar::route(ctx, softmax, make_view(m.logits, most, most), routes); },
     "expar: route: logits has extent 9223372036854775807 in dimension 1, and more than "
     "9223372036854775807 elements"},
    {[] { expar::route(ctx, softmax, make_view(m.logits, 2, experts, most / 2), routes); },
     "expar: route: logits has stride 4611686018427387903 in dimension 0, and reaches over more "
     "than 9223372036854775807 bytes"},
    {[] {
       expar::route(ctx, softmax, logits, some_routes<>{make_view(m.kept, 3, k), d_weights});
     },
     "expar: route: ids has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] {
       expar::route(ctx, softmax, logits, some_routes<>{make_view(m.kept, tokens, 1), d_weights});
     },
     "expar: route: ids has extent 1 in dimension 1, but top_k is 2"},
    {[] {
       expar::route(ctx, softmax, logits, some_routes<>{kept, make_view(m.d_weights, tokens, 1)});
     },
     "expar: route: weights has extent 1 in dimension 1, but top_k is 2"},
    {[] {
       expar::route(ctx, softmax, logits,
                    some_routes<>{make_view(m.kept, tokens, k, 1), d_weights});
     },
     "expar: route: ids has rows of 2 elements only 1 elements apart; rows that are written must "
     "not overlap"},
    {[] {
       auto const many = with({200, k}, expar::softmax_score{});
       expar::route(
           ctx, many, make_view(m.logits, 0, 200),
           some_routes<std::int8_t>{make_view(m.narrow, 0, k), make_view(m.d_weights, 0, k)});
     },
     "expar: route: ids of 8 bits cannot name 200 experts"},
    {[] {
       expar::route(ctx, softmax, logits,
                    some_routes<>{typed<std::int32_t>(m.logits, tokens, k), d_weights});
     },
     "expar: route: ids overlaps logits in memory; the operation cannot work in place"},
    {[] {
       expar::route(ctx, softmax, logits,
                    some_routes<>{typed<std::int32_t>(m.d_weights, tokens, k), d_weights});
     },
     "expar: route: weights overlaps ids in memory; the operation cannot work in place"},
    {[] {
       expar::route(ctx, limited(4, 2), logits, bias,
                    some_routes<>{kept, make_view(m.bias, tokens, k)});
     },
     "expar: route: weights overlaps bias in memory; the operation cannot work in place"},
    {[] { expar::route(ctx, limited(4, 2), logits, make_view(m.bias, 7), routes); },
     "expar: route: bias has extent 7 in dimension 0, but the router's number of experts is 8"},
    {[] {
       route(with({experts, 0}, expar::softmax_score{}));
     },
     "expar: route: top_k is 0; it is at least 1"},
    {[] {
       route(with({experts, 9}, expar::softmax_score{}));
     },
     "expar: route: top_k is 9, but there are only 8 experts"},
    {[] {
       route(with({-1, k}, expar::softmax_score{}));
     },
     "expar: route: logits has extent 8 in dimension 1, but the router's number of experts is -1"},
    {[] { expar::route(ctx, limited(3, 1), logits, bias, routes); },
     "expar: route: groups is 3; it divides the 8 experts"},
    {[] { expar::route(ctx, limited(4, 5), logits, bias, routes); },
     "expar: route: top_groups is 5; it is at least 1 and at most the 4 groups"},
    {[] {
       route(with({experts, k}, expar::softmax_score{}, expar::score_key{},
                  expar::group_limited{4, 1, 3}));
     },
     "expar: route: best_of is 3; it is at least 1 and at most the 2 experts of a group"},
    {[] {
       route(with({experts, k}, expar::sigmoid_score{}, expar::renormalize{qnan}));
     },
     "expar: route: epsilon is nan; it is at least 0 and finite"},
    {[] {
       route(with({experts, k}, expar::softmax_score{}, expar::scale{qnan}));
     },
     "expar: route: scale is nan; it is finite"},
    {[] {
       route(with({experts, k}, expar::softmax_score{}, expar::offset{inf}));
     },
     "expar: route: offset is inf; it is finite"},
    {[] {
       route(with({experts, k}, expar::soft_cap{-1}, expar::softmax_score{}));
     },
     "expar: route: cap is -1; it is at least 0 (no cap) and finite"},
    {[] {
       route(with({experts, k}, expar::temperature{0}, expar::softmax_score{}));
     },
     "expar: route: temperature is 0; it is above 0 and finite"},
    {[] {
       route(with({experts, k}, expar::expert_range{3, 9}, expar::softmax_score{}));
     },
     "expar: route: experts 3 to 9 are no range of the 8 experts"},
    {[] {
       auto const chosen = expar::given_ids{make_view(m.kept, tokens, 1)};
       route(with({experts, k}, expar::softmax_score{}, chosen));
     },
     "expar: route: given ids has extent 1 in dimension 1, but top_k is 2"},
    {[] {
       std::int32_t const of_all[] = {-2, 0};
       auto const chosen = expar::given_ids{make_view(of_all, tokens, k, 0)};
       route(with({experts, k}, expar::softmax_score{}, chosen));
     },
     "expar: route: given ids(0, 0) is -2; an expert id is -1 (no expert) or 0 to 7"},
    {[] {
       expar::gumbels const numbers{expar::random_stream{.seed = 1, .step = -1}};
       route(with({experts, k}, expar::add_noise{1, numbers}, expar::softmax_score{}));
     },
     "expar: route: step is -1; it is 0 to 4294967295"},
    {[] {
       expar::normals const numbers{expar::random_stream{.layer = 65536}};
       route(with({experts, k}, expar::add_noise{1, numbers}, expar::softmax_score{}));
     },
     "expar: route: layer is 65536; it is 0 to 65535"},
    {[] {
       expar::draw_numbers(ctx, expar::uniforms{expar::random_stream{.first_token = most}}, out);
     },
     "expar: draw_numbers: first_token is 9223372036854775807; with 4 tokens it is 0 to "
     "1099511627772"},
    {[] {
       expar::route_backward(ctx, softmax, logits, some_routes<>{ids, weights},
                             make_view(m.weights, tokens, 1), d_logits);
     },
     "expar: route_backward: d_weights has extent 1 in dimension 1, but top_k is 2"},
    {[] {
       expar::route_backward(ctx, softmax, logits, some_routes<>{ids, weights}, d_weights,
                             typed<float>(m.ids, 1, experts));
     },
     "expar: route_backward: d_logits has extent 1 in dimension 0, but the number of tokens is 4"},
    {[] {
       auto const one = make_view(m.logits, 1, experts);
       expar::route_backward(ctx, softmax, one,
                             some_routes<>{make_view(m.ids, 1, k), make_view(m.weights, 1, k)},
                             make_view(m.d_weights, 1, k), typed<float>(m.ids, 1, experts));
     },
     "expar: route_backward: d_logits overlaps ids in memory; the operation cannot work in place"},
    {[] {
       auto const one = make_view(m.logits, 1, experts);
       expar::route_backward(ctx, softmax, one,
                             some_routes<>{make_view(m.ids, 1, k), make_view(m.weights, 1, k)},
                             make_view(m.d_weights, 1, k), make_view(m.d_weights, 1, experts));
     },
     "expar: route_backward: d_logits overlaps d_weights in memory; the operation cannot work in "
     "place"},
    {[] {
       auto const at = make_view(m.logits, tokens, experts);
       expar::route_backward(ctx, softmax, at, some_routes<>{ids, weights}, d_weights,
                             expar::add_to(at));
     },
     "expar: route_backward: d_logits overlaps logits in memory; the operation cannot work in "
     "place"},
    {[] {
       std::int64_t const far[] = {0, std::int64_t{1} << 32};
       some_routes<std::int64_t const> const bad{make_view(far, 1, k), make_view(m.weights, 1, k)};
       expar::route_backward(ctx, softmax, make_view(m.logits, 1, experts), bad,
                             make_view(m.d_weights, 1, k), make_view(m.d_logits, 1, experts));
     },
     "expar: route_backward: ids(0, 1) is 4294967296; an expert id is -1 (no expert) or 0 to "
     "2147483646"},
    {[] { expar::transform_logits(ctx, expar::temperature{qnan}, logits, d_logits); },
     "expar: transform_logits: temperature is nan; it is above 0 and finite"},
    {[] {
       expar::transform_logits_backward(ctx, expar::soft_cap{1}, logits,
                                        make_view(m.x, tokens, columns), d_logits);
     },
     "expar: transform_logits_backward: d_out has extent 4 in dimension 1, but the number of "
     "experts is 8"},
    {[] { expar::normalize_rows(ctx, expar::unit_rms{qnan}, x, out); },
     "expar: normalize_rows: epsilon is nan; it is at least 0"},
    {[] {
       expar::attention_logits(ctx, logits, logits, make_view(m.logits, 3, experts), d_logits);
     },
     "expar: attention_logits: v has extent 3 in dimension 0, but the number of tokens in q is 4"},
    {[] { expar::jitter(ctx, x, qnan, expar::random_stream{}, out); },
     "expar: jitter: eps is nan; it is 0 to 1"},
    {[] { expar::input_dropout(ctx, x, 1, expar::random_stream{}, out); },
     "expar: input_dropout: rate is 1; it is at least 0 and below 1"},
    {[] { expar::sinkhorn(ctx, logits, {.tolerance = qnan}, d_logits); },
     "expar: sinkhorn: tolerance is nan; it is at least 0"},
    {[] { expar::soft_moe_weights(ctx, logits, d_logits, d_logits); },
     "expar: soft_moe_weights: combine overlaps dispatch in memory; the operation cannot work in "
     "place"},
    {[] {
       expar::balanced_assignment(ctx, make_view(m.logits, 3, 2), {}, make_view(m.kept, 3, 1));
     },
     "expar: balanced_assignment: scores has 3 tokens, which is no multiple of its 2 experts"},
    {[] {
       expar::expert_choice const choice{experts, 0, expar::expert_choice::softmax::over_experts,
                                         true};
       expar::choose_tokens(ctx, choice, logits, routes);
     },
     "expar: choose_tokens: capacity is 0; it is at least 1"},
};

std::vector<std::int32_t> const minus_one(experts* experts, -1);
auto const negative = make_view(minus_one.data(), experts);
auto const negatives = make_view(minus_one.data(), 1, experts);

std::vector<wrong_call> const of_losses{
    {[] { expar::load_balance_loss(ctx, logits, negative, {.choices = k}); },
     "expar: load_balance_loss: counts(0) is -1; a count is at least 0"},
    {[] {
       expar::sequence_balance_loss(ctx, expar::softmax_score{}, expar::even_sequences{1}, logits,
                                    negatives, make_view(m.lengths, 1), {.choices = k});
     },
     "expar: sequence_balance_loss: counts(0, 0) is -1; a count is at least 0"},
    {[] {
       expar::device_balance_loss_backward(ctx, expar::softmax_score{}, logits, device_of,
                                           make_view(minus_one.data(), devices), {.choices = k},
                                           d_logits);
     },
     "expar: device_balance_loss_backward: device_counts(0) is -1; a count is at least 0"},
    {[] {
       auto const histogram_of_none = make_view(minus_one.data(), experts, experts);
       expar::histogram_bias(ctx, histogram_of_none, k, {-1, 1}, bias);
     },
     "expar: histogram_bias: histogram(0, 0) is -1; a count is at least 0"},
    {[] {
       float const odd[] = {0, static_cast<float>(qnan)};
       expar::score_bins(ctx, make_view(odd, 2));
     },
     "expar: score_bins: bias(1) is nan; it is finite"},
    {[] { expar::count_choices(ctx, ids, 3, counts); },
     "expar: count_choices: choices is 3; it is at least 1 and at most the 2 choices per token"},
    {[] { expar::count_choices(ctx, ids, k, make_view(m.counts, 4)); },
     "expar: count_choices: ids(2, 0) is 4; an expert id is -1 (no expert) or 0 to 3"},
    {[] { expar::count_choices(ctx, only(make_view(m.valid, 3), ids), k, counts); },
     "expar: count_choices: valid has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] {
       std::int32_t const none = -1;
       expar::tensor_view<std::int32_t const, 2> const many{&none, {index_t{1} << 31, 1}, {0, 0}};
       expar::count_choices(ctx, many, 1, counts);
     },
     "expar: count_choices: a count may become 2147483648, more than an integer of 4 bytes holds"},
    {[] { expar::count_choices(ctx, make_view(m.offsets, tokens), variable_ids, counts); },
     "expar: count_choices: offsets(3) is 6; offsets ascend from 0 to the number of routes, 8"},
    {[] {
       expar::count_sequence_choices(ctx, expar::even_sequences{3}, ids, k,
                                     make_view(m.histogram, 3, experts));
     },
     "expar: count_sequence_choices: sequences is 3; it is at least 1 and divides the 4 tokens"},
    {[] {
       expar::count_sequence_tokens(ctx, expar::even_sequences{2}, -5, make_view(m.lengths, 2));
     },
     "expar: count_sequence_tokens: tokens is -5; it is at least 0"},
    {[] { expar::count_device_tokens(ctx, ids, make_view(m.device_of, 7), device_counts); },
     "expar: count_device_tokens: ids(3, 1) is 7; an expert id is -1 (no expert) or 0 to 6"},
    {[] { expar::count_device_routes(ctx, counts, device_of, make_view(m.device_counts, 1)); },
     "expar: count_device_routes: device_of(4) is 1; devices are 0 to 0"},
    {[] { expar::count_above(ctx, logits, qnan); },
     "expar: count_above: threshold is nan; it is a number"},
    {[] { expar::load_balance_loss(ctx, logits, counts, {}); },
     "expar: load_balance_loss: choices is 0; options.choices must be given, and is at least 1"},
    {[] {
       expar::load_balance_loss_backward(ctx, logits, counts, {.choices = k, .tokens = -1},
                                         d_logits);
     },
     "expar: load_balance_loss_backward: tokens is -1; it is at least 0"},
    {[] {
       expar::load_balance_loss(ctx, expar::sigmoid_score{}, logits, make_view(m.counts, 3),
                                {.choices = k});
     },
     "expar: load_balance_loss: counts has extent 3 in dimension 0, but the number of experts is "
     "8"},
    {[] {
       expar::sequence_balance_loss(ctx, expar::softmax_score{}, expar::even_sequences{2}, logits,
                                    make_view(m.histogram, 2, experts), make_view(m.lengths, 3),
                                    {.choices = k});
     },
     "expar: sequence_balance_loss: lengths has extent 3 in dimension 0, but the number of "
     "sequences is 2"},
    {[] {
       expar::device_balance_loss(ctx, expar::softmax_score{}, logits, make_view(m.ids, experts),
                                  device_counts, {.choices = k});
     },
     "expar: device_balance_loss: device_of(2) is 2; devices are 0 to 1"},
    {[] { expar::z_loss(ctx, logits, {.tokens = -2}); },
     "expar: z_loss: tokens is -2; it is at least 0"},
    {[] { expar::z_loss_backward(ctx, logits, {}, make_view(m.d_logits, 3, experts)); },
     "expar: z_loss_backward: d_logits has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] { expar::entropy_loss(ctx, only(make_view(m.valid, 5), logits), {}); },
     "expar: entropy_loss: valid has extent 5 in dimension 0, but the number of tokens is 4"},
    {[] {
       expar::expert_choice_loss_backward(ctx, logits, {}, make_view(m.d_logits, tokens, 3, 8));
     },
     "expar: expert_choice_loss_backward: d_logits has extent 3 in dimension 1, but the number of "
     "experts is 8"},
    {[] { expar::orthogonal_loss(ctx, logits, {.epsilon = qnan}); },
     "expar: orthogonal_loss: epsilon is nan; it is greater than 0"},
    {[] { expar::orthogonal_loss(ctx, logits, {.groups = 3}); },
     "expar: orthogonal_loss: groups is 3; it is at least 1 and divides the 4 experts"},
    {[] { expar::diverse_loss(ctx, logits, make_view(m.valid, 3), {}); },
     "expar: diverse_loss: there has extent 3 in dimension 0, but the number of experts is 4"},
    {[] { expar::cv_squared(ctx, sums, {.ddof = 2, .epsilon = 0}); },
     "expar: cv_squared: ddof is 2; options.ddof must be given, and is 0 or 1"},
    {[] { expar::cv_squared_backward(ctx, sums, {.ddof = 1, .epsilon = qnan}, d_sums); },
     "expar: cv_squared_backward: epsilon is nan; options.epsilon must be given, and is at least "
     "0"},
    {[] { expar::score_importance(ctx, expar::softmax_score{}, logits, make_view(m.sums, 7)); },
     "expar: score_importance: sums has extent 7 in dimension 0, but the number of experts is 8"},
    {[] { expar::weight_importance(ctx, ids, make_view(m.weights, tokens, 1), sums); },
     "expar: weight_importance: weights has extent 1 in dimension 1, but the number of choices is "
     "2"},
    {[] { expar::smooth_load(ctx, logits, logits, 0, {.top_k = k}, sums); },
     "expar: smooth_load: sigma is 0; it is greater than 0 and finite"},
    {[] { expar::smooth_load(ctx, logits, logits, 1, {.top_k = 9}, sums); },
     "expar: smooth_load: top_k is 9; it is at least 1 and at most the 8 experts"},
    {[] { expar::update_bias(ctx, counts, {}, make_view(m.bias, 3)); },
     "expar: update_bias: bias has extent 3 in dimension 0, but the number of experts is 8"},
    {[] { expar::update_bias(ctx, counts, {.rate = qnan}, bias); },
     "expar: update_bias: rate is nan; it is finite"},
    {[] { expar::update_bias(ctx, negative, {}, bias); },
     "expar: update_bias: counts(0) is -1; counts are at least 0 and add up to at most "
     "9223372036854775807"},
    {[] { expar::quantile_bias(ctx, logits, bias, experts, make_view(m.of_rows, experts)); },
     "expar: quantile_bias: top_k is 8; it is at least 1 and less than the 8 experts"},
    {[] { expar::blend_bias(ctx, sums, 1, qnan, bias); },
     "expar: blend_bias: keep is nan; it is from 0 to 1"},
    {[] {
       expar::add_quantile_histogram(ctx, expar::sigmoid_score{}, logits, bias, k, {1, -1},
                                     histogram);
     },
     "expar: add_quantile_histogram: the bins reach from 1 to -1; their range is finite and not "
     "empty"},
    {[] {
       expar::histogram_bias(ctx, histogram, 0, {-1, 1}, bias);
     },
     "expar: histogram_bias: top_k is 0; it is at least 1 and at most the 8 experts"},
    {[] { expar::score_bins(ctx, make_view(m.bias, 0)); },
     "expar: score_bins: bias has no experts; at least 1 is needed"},
    {[] { expar::route_sparsity(ctx, counts, 0); },
     "expar: route_sparsity: tokens is 0; it is at least 1"},
    {[] { expar::route_sparsity(ctx, negative, 1); },
     "expar: route_sparsity: counts(0) is -1; counts are at least 0 and add up to at most "
     "9223372036854775807"},
    {[] {
       (void)expar::lambda_control{experts, k, qnan}.next(1, 1);
     },
     "expar: lambda_control: factor is nan; it is greater than 1"},
    {[] { expar::choice_totals(-1); }, "expar: choice_totals: experts is -1; it is at least 0"},
    {[] { expar::choice_totals(experts).add(ctx, counts, -1); },
     "expar: choice_totals: tokens is -1; it is at least 0"},
    {[] { (void)expar::dense_to_sparse_k(1, most, 1); },
     "expar: dense_to_sparse_k: above is 9223372036854775807 for 1 tokens; their mean is at most "
     "2147483647"},
};

std::vector<wrong_call> const of_plans{
    {[] { expar::route_plan().lay_out(ctx, 1); }, "expar: plan: experts is 0; place routes first"},
    {[] { expar::make_plan(ctx, ids, 0); }, "expar: plan: experts is 0; at least 1 is needed"},
    {[] { expar::make_plan(ctx, ids, 7); },
     "expar: plan: ids(3, 1) is 7; an expert id is -1 (no expert) or 0 to 6"},
    {[] {
       std::int64_t const two[] = {-2};
       expar::make_plan(ctx, make_view(two, 1, 1), experts);
     },
     "expar: plan: ids(0, 0) is -2; an expert id is -1 (no expert) or 0 to 7"},
    {[] { expar::make_plan(ctx, ids, experts, expar::ragged{0}); },
     "expar: plan: alignment is 0; it is at least 1"},
    {[] { expar::make_plan(ctx, ids, experts, expar::fixed_capacity{qnan}); },
     "expar: plan: capacity factor is nan; it lies between -1000000 and 1000000"},
    {[] { expar::make_plan(ctx, ids, experts, expar::fixed_capacity{.rows = -2}); },
     "expar: plan: capacity rows is -2; it is at least 0, or -1 for the factor, and at most "
     "2147483647"},
    {[] {
       std::vector<std::int32_t> const none(1 << 20, -1);
       expar::make_plan(ctx, make_view(none.data(), 1, 1 << 20), 1 << 23,
                        expar::fixed_capacity{524288});
     },
     "expar: plan: 8388608 experts of 549755813888 rows each are more than memory can hold"},
    {[] { expar::route_plan().row(0, 0); },
     "expar: route_plan: route (0, 0) is none of the 0 x 0 routes of the plan"},
    {[] { plan().kept(-1); }, "expar: route_plan: expert is -1; the plan has 8 experts"},
    {[] {
       auto p = expar::make_plan(ctx, ids, experts);
       p.lay_out(expar::ragged{-3});
     },
     "expar: plan: alignment is -3; it is at least 1"},
    {[] { expar::drop_to_capacity(ctx, ids, experts, -1, expar::by_choice{}, kept, counts); },
     "expar: drop_to_capacity: capacity is -1; it is at least 0"},
    {[] {
       expar::drop_to_capacity(ctx, ids, experts, 1, expar::by_value{make_view(m.weights, 3, k)},
                               kept, counts);
     },
     "expar: drop_to_capacity: values has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] {
       expar::drop_to_capacity(ctx, ids, experts, 1, expar::by_token{}, make_view(m.ids + 1, 3, k),
                               counts);
     },
     "expar: drop_to_capacity: kept has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] {
       expar::drop_to_capacity(ctx, make_view(m.ids, 3, k), experts, 1, expar::by_token{},
                               make_view(m.ids + 1, 3, k), counts);
     },
     "expar: drop_to_capacity: kept overlaps ids in memory; it is that very tensor, or apart from "
     "it"},
    {[] { expar::take_first_free(ctx, ids, -8, 1, kept); },
     "expar: take_first_free: experts is -8; at least 1 is needed"},
    {[] {
       std::int32_t const zeros[k] = {};
       float const ones[k] = {1, 1};
       std::vector<std::int32_t> none(rows, -1);
       expar::reroute_dropped(ctx, make_view(zeros, tokens, k, 0), experts, 1,
                              make_view(ones, tokens, k, 0), make_view(none.data(), tokens, k));
     },
     "expar: reroute_dropped: uniform(0, 0) is 1; it is at least 0 and less than 1"},
    {[] { expar::keep_choice(ctx, ids, weights, k, expar::kept_above{.5}, kept); },
     "expar: keep_choice: choice is 2; a token has choices 0 to 1"},
    {[] { expar::keep_choice(ctx, ids, weights, 1, expar::kept_above{qnan}, kept); },
     "expar: keep_choice: threshold is nan; it is a number"},
    {[] {
       expar::keep_choice(ctx, ids, weights, 1,
                          expar::kept_at_random{qnan, make_view(m.uniform, tokens)}, kept);
     },
     "expar: keep_choice: divisor is nan; it is greater than 0"},
    {[] { expar::renormalize_kept(ctx, ids, weights, expar::renormalize{-1}, d_weights); },
     "expar: renormalize_kept: epsilon is -1; it is at least 0 and finite"},
    {[] {
       expar::renormalize_kept_backward(ctx, ids, weights, expar::renormalize{},
                                        make_view(m.uniform, 3, k), d_weights);
     },
     "expar: renormalize_kept_backward: d_out has extent 3 in dimension 0, but the number of "
     "tokens is 4"},
    {[] { expar::encode(ctx, plan(), make_view(m.x, 3, columns), y); },
     "expar: encode: tokens has extent 3 in dimension 0, but the number of tokens in the plan is "
     "4"},
    {[] { expar::encode(ctx, plan(), x, make_view(m.y, rows, 3, 4)); },
     "expar: encode: rows has extent 3 in dimension 1, but the row size on the other side is 4"},
    {[] { expar::encode(ctx, plan(), x, make_view(m.y, tokens, k), y); },
     "expar: encode: rows overlaps weights in memory; the operation cannot work in place"},
    {[] { expar::encode(ctx, plan(), x, weights, y, make_view(m.y, rows)); },
     "expar: encode: row_weights overlaps rows in memory; the operation cannot work in place"},
    {[] { expar::encode_backward(ctx, plan(), y, x, weights, out, make_view(m.out, tokens, k)); },
     "expar: encode_backward: d_weights overlaps d_tokens in memory; the operation cannot work in "
     "place"},
    {[] { expar::decode(ctx, plan(), make_view(m.y, 7, columns), out); },
     "expar: decode: rows has extent 7 in dimension 0, but the number of rows in the plan is 8"},
    {[] { expar::decode(ctx, plan(), y, make_view(m.out, tokens, k), out); },
     "expar: decode: out overlaps weights in memory; the operation cannot work in place"},
    {[] { expar::decode_backward(ctx, plan(), x, y, weights, d_y, make_view(m.d_y, tokens, k)); },
     "expar: decode_backward: d_weights overlaps d_rows in memory; the operation cannot work in "
     "place"},
    {[] { expar::encode_weights(ctx, plan(), weights, make_view(m.weights, rows)); },
     "expar: encode_weights: out overlaps weights in memory; the operation cannot work in place"},
    {[] { expar::encode_weights_backward(ctx, plan(), make_view(m.of_rows, 5), d_weights); },
     "expar: encode_weights_backward: d_out has extent 5 in dimension 0, but the number of rows in "
     "the plan is 8"},
    {[] { expar::row_tokens(ctx, plan(), make_view(m.row_of, rows), make_view(m.row_of, rows)); },
     "expar: row_tokens: choices overlaps tokens in memory; the operation cannot work in place"},
    {[] {
       expar::encode_quantized(ctx, plan(), x, typed<expar::float8_e4m3>(m.bytes, rows, columns),
                               make_view(m.of_rows, rows, 2));
     },
     "expar: encode_quantized: scales has extent 2 in dimension 1, but the number of blocks of 128 "
     "columns in a row is 1"},
    {[] {
       (void)expar::block_placement{experts, 2}.owner(-9);
     },
     "expar: block_placement: expert is -9; there are 8 experts on 2 ranks"},
    {[] {
       (void)expar::block_placement{experts, 2}.count(2);
     },
     "expar: block_placement: rank is 2; there are 8 experts on 2 ranks"},
    {[] { (void)expar::capacity_of({}, -6, experts, k, 5); },
     "expar: capacity_of: tokens is -6, top_k 2 and most 5; none is negative"},
    {[] { (void)expar::capacities::megatron(tokens, 0, k, 1); },
     "expar: capacities::megatron: experts is 0; it lies between 1 and 2147483647"},
    {[] { (void)expar::capacities::deepspeed(tokens, experts, k, qnan); },
     "expar: capacities::deepspeed: factor is nan; it lies between 0 and 1000000"},
    {[] {
       (void)expar::capacities::vmoe(tokens, experts, k, 1, expar::capacities::rounding::up, 0);
     },
     "expar: capacities::vmoe: multiple is 0; it lies between 1 and 2147483647"},
    {[] { (void)expar::capacities::clamped(1, -1); },
     "expar: capacities::clamped: tokens is -1; it lies between 0 and 4398046511104"},
};

std::vector<wrong_call> const of_routes{
    {[] { expar::routes<float>(-1, k); }, "expar: routes: tokens is -1; it is at least 0"},
    {[] { expar::routes<float>(most, k); },
     "expar: routes: 9223372036854775807 tokens of 2 choices are more than memory can hold"},
    {[] { expar::variable_routes<float>().resize(-1, 0); },
     "expar: variable_routes: tokens is -1; it is at least 0"},
    {[] { expar::variable_routes<float>().resize(0, -1); },
     "expar: variable_routes: count is -1; it is at least 0"},
    {[] {
       expar::variable_routes<float> to;
       expar::to_variable(ctx, some_routes<>{make_view(m.ids, -1, k), make_view(m.weights, -1, k)},
                          to);
     },
     "expar: to_variable: ids has extent -1 in dimension 0; an extent is at least 0"},
    {[] {
       expar::to_fixed(
           ctx, variable,
           some_routes<>{make_view(m.kept, tokens, 1), make_view(m.d_weights, tokens, 1)});
     },
     "expar: to_fixed: token 0 has 2 routes, but only 1 fit"},
    {[] {
       std::int64_t const late[] = {1, 2};
       struct {
         expar::tensor_view<std::int64_t const, 1> offsets;
         expar::tensor_view<std::int32_t, 1> ids;
         expar::tensor_view<float, 1> weights;
       } const from{make_view(late, 2), make_view(m.ids, 2), make_view(m.weights, 2)};
       expar::to_fixed(ctx, from,
                       some_routes<>{make_view(m.kept, 1, k), make_view(m.d_weights, 1, k)});
     },
     "expar: to_fixed: offsets(0) is 1; the first offset is 0"},
    {[] {
       expar::to_fixed(ctx, variable, some_routes<>{kept, typed<float>(m.kept, tokens, k)});
     },
     "expar: to_fixed: weights overlaps ids in memory; the operation cannot work in place"},
    {[] {
       expar::variable_routes<float> to;
       expar::route_variable(ctx, softmax, make_view(m.logits, tokens, 3), to);
     },
     "expar: route_variable: logits has extent 3 in dimension 1, but the router's number of "
     "experts is 8"},
    {[] {
       expar::route_variable_backward(ctx, softmax, logits, variable, make_view(m.uniform, 3),
                                      d_logits);
     },
     "expar: route_variable_backward: d_weights has extent 3 in dimension 0, but the number of "
     "routes is 8"},
    {[] {
       expar::variable_routes<float> to;
       expar::routes_of_tokens(ctx, some_routes<>{ids, weights}, -1, to);
     },
     "expar: routes_of_tokens: tokens is -1; it is at least 0"},
    {[] {
       expar::variable_routes<float> to;
       expar::routes_of_tokens(ctx, some_routes<>{ids, weights}, 5, to);
     },
     "expar: routes_of_tokens: ids(2, 1) is 5; a token id is -1 (no token) or 0 to 4"},
    {[] {
       expar::gates_of_experts(ctx, some_routes<>{ids, weights}, variable,
                               make_view(m.uniform, rows), make_view(m.d_weights, 3, k));
     },
     "expar: gates_of_experts: d_gates has extent 3 in dimension 0, but the number of experts in "
     "ids is 4"},
    {[] {
       expar::append_shared(
           ctx, expar::shared_experts{experts, 1, expar::shared_experts::weight::one, qnan},
           some_routes<>{ids, weights}, routes);
     },
     "expar: append_shared: scale is nan; weights are divided by it"},
    {[] {
       expar::append_shared(ctx, expar::shared_experts{experts, -1}, some_routes<>{ids, weights},
                            routes);
     },
     "expar: append_shared: count is -1; it is at least 0, and the last id a 32-bit number"},
    {[] { (void)expar::record_bytes(-1, 8); },
     "expar: record_bytes: experts is -1 and top_k is 8; they are at least 1 and at least 0"},
    {[] { expar::record_ids(ctx, ids, 0, record); },
     "expar: record_ids: experts is 0; it is at least 1"},
    {[] { expar::record_ids(ctx, ids, experts, record); },
     "expar: record_ids: record has extent 2 in dimension 1, but the number of bytes for a token "
     "is 1"},
    {[] {
       std::uint8_t const fifteens = 0xff;
       expar::replay_ids(ctx, make_view(&fifteens, tokens, 1, 0), experts, kept);
     },
     "expar: replay_ids: choice 0 of token 0 is recorded as 15; it is at most the number of "
     "experts, 8"},
};

using expar::placement;
auto const eight_on_two = placement::blocks(experts, 2);
std::vector<wrong_call> const of_placements{
    {[] { (void)placement::blocks(0, 2); }, "expar: placement: experts is 0; at least 1 is needed"},
    {[] { (void)placement::whole(experts, 0); },
     "expar: placement: ranks is 0; at least 1 is needed"},
    {[] { (void)placement::replicated(experts, 2, 0); },
     "expar: placement: copies is 0; at least 1 is needed"},
    {[] { (void)placement::replicated(experts, 2, INT32_MAX); },
     "expar: placement: 8 experts have 17179869176 slots; at most 2147483647 are possible"},
    {[] { (void)placement::sharded(experts, 2, -1); },
     "expar: placement: shards is -1; at least 1 is needed"},
    {[] {
       (void)placement::table(3, {{0}, {1}});
     },
     "expar: placement: expert 2 has no slot; it needs one"},
    {[] {
       (void)placement::table(2, {{0, 1}, {5}});
     },
     "expar: placement: slot 2 holds expert 5; there are 2 experts"},
    {[] {
       (void)placement::table(2, {{0, 1}, {0}}, 2);
     },
     "expar: placement: expert 1 has 1 slots; with shards it has a multiple of 2"},
    {[] { (void)eight_on_two.nearest(0); },
     "expar: placement: ranks_per_node is 0; it is at least 1"},
    {[] { (void)eight_on_two.without(-1); },
     "expar: placement: rank is -1; it lies between 0 and 1"},
    {[] { (void)eight_on_two.without(0).without(0); },
     "expar: placement: ranks is 1; without one, none is left"},
    {[] { (void)eight_on_two.without(1).slot(7, 0); },
     "expar: placement: expert 7 has no copy; its ranks are lost"},
    {[] { (void)eight_on_two.first(3); }, "expar: placement: rank is 3; it lies between 0 and 2"},
    {[] { (void)eight_on_two.count(2); }, "expar: placement: rank is 2; it lies between 0 and 1"},
    {[] { (void)eight_on_two.rank_of(8); }, "expar: placement: slot is 8; it lies between 0 and 7"},
    {[] { (void)eight_on_two.expert_of(-1); },
     "expar: placement: slot is -1; it lies between 0 and 7"},
    {[] { (void)eight_on_two.copies(8); },
     "expar: placement: expert is 8; it lies between 0 and 7"},
    {[] { (void)eight_on_two.slot(0, 1); }, "expar: placement: copy is 1; it lies between 0 and 0"},
    {[] { (void)eight_on_two.slot(0, 0, -1); },
     "expar: placement: shard is -1; it lies between 0 and 0"},
    {[] { expar::local_routes(ctx, eight_on_two, 2, ids, kept); },
     "expar: local_routes: rank is 2; there are 2 ranks"},
    {[] {
       std::int32_t const bad[] = {0, 1, 2, 8};
       expar::local_routes(ctx, eight_on_two, 0, make_view(bad, 2, k), make_view(m.kept, 2, k));
     },
     "expar: local_routes: ids(1, 1) is 8; an expert id is -1 (no expert) or 0 to 7"},
    {[] { expar::local_routes(ctx, eight_on_two, 0, ids, make_view(m.kept, 3, k)); },
     "expar: local_routes: out has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] { expar::local_routes(ctx, placement::sharded(experts, 2, 3), 0, ids, kept); },
     "expar: local_routes: out has extent 2 in dimension 1, but top_k times the shards of the "
     "placement is 6"},
    {[] {
       expar::local_routes(ctx, placement::blocks(400, 2), 0, ids, make_view(m.narrow, tokens, k));
     },
     "expar: local_routes: out of 8 bits cannot name 200 experts"},
};

/// Passes quotas that give `first` routes of each rank to the first copy of each expert.
template <class Layer>
void prepare_with_quotas(Layer& l, index_t first, index_t second) {
  l.moe.place(placement::replicated(experts, l.moe.placement().ranks(), 2));
  l.moe.prepare(ctx, some_routes<>{ids, weights}, l.batch,
                [&](auto, placement const& p, auto split) {
                  for (int r = 0; r < p.ranks(); ++r)
                    for (int e = 0; e < experts; ++e) {
                      split.row(r)[p.slot(e, 0)] = first;
                      split.row(r)[p.slot(e, 1)] = second;
                    }
                });
}
/// What all ranks throw alike, whichever of them is wrong.
std::vector<wrong_call> const of_ranks{
    {[] { on_ranks(2, [](auto& l) { l.moe.place(placement::blocks(experts, 3)); }); },
     "expar: place: the placement is of 8 experts on 3 ranks, not of 8 on 2 (rank 0)"},
    {[] {
       on_ranks(3, [](auto& l) {
         l.moe.place(l.rank == 2 ? placement::sharded(experts, 3, 2) : l.moe.placement());
       });
     },
     "expar: place: rank 2 passes another placement than rank 0; all ranks pass the same"},
    {[] {
       on_ranks(2, [](auto& l) {
         if (l.rank == 0)
           l.moe.combine(ctx, l.batch, out);
         else
           l.moe.dispatch(ctx, x, l.batch);
       });
     },
     "expar: rank 0 calls combine for its batch 1 while rank 1 calls dispatch for its batch 1; all "
     "ranks call the same operations in the same order"},
    {[] {
       on_ranks(2, [](auto& l) {
         (void)expar::expert_parallel(l.transport, shape, expar::row_budget{l.rank});
       });
     },
     "expar: expert_parallel: budget rows is 0 on rank 0 but 1 on rank 1; all ranks must pass the "
     "same"},
    {[] {
       on_ranks(2, [](auto& l) {
         expar::expert_parallel(l.transport, {experts, k, columns, 4 + l.rank});
       });
     },
     "expar: expert_parallel: hidden_out is 4 on rank 0 but 5 on rank 1; all ranks must pass the "
     "same"},
    {[] {
       on_ranks(3, [](auto& l) {
         expar::expert_parallel moe(l.transport, shape, expar::row_budget{.rows = 8});
         moe.dispatch(ctx, x, some_routes<>{ids, weights}, l.batch);
       });
     },
     "expar: dispatch: rank 0 would get 9 rows; the budget has 8"},
    {[] { on_ranks(2, [](auto& l) { prepare_with_quotas(l, 2, 0); }); },
     "expar: prepare: the quotas give 2 routes of rank 0 to copy 0 of expert 0; there are 1 left "
     "(rank 0)"},
    {[] { on_ranks(1, [](auto& l) { prepare_with_quotas(l, 0, -1); }); },
     "expar: prepare: the quotas give -1 routes of rank 0 to copy 1 of expert 0; there are 1 left"},
    {[] { on_ranks(3, [](auto& l) { prepare_with_quotas(l, 0, l.rank == 0 ? 1 : 0); }); },
     "expar: prepare: the quotas leave out 1 of the 1 routes of rank 0 for expert 0 (rank 1)"},
    {[] { on_ranks(3, [](auto& l) { prepare_with_quotas(l, l.rank == 2, l.rank != 2); }); },
     "expar: prepare: the quotas of rank 2 give other numbers than those of rank 0; all ranks "
     "compute the same"},
    {[] {
       on_ranks(2, [](auto& l) {
         l.moe.prepare(ctx, some_routes<>{ids, weights}, l.batch,
                       [](auto, auto&, auto) { throw std::runtime_error("no balance today"); });
       });
     },
     "expar: an exception: no balance today (rank 0)"},
    {[] {
       on_ranks(2, [](auto& l) {
         if (l.rank == 0)
           l.moe.prepare(ctx, some_routes<>{ids, weights}, l.batch);
         else
           l.moe.prepare(ctx, some_routes<>{ids, weights}, l.batch, expar::even_quotas);
       });
     },
     "expar: rank 0 calls prepare while rank 1 calls prepare with quotas; all ranks call the same "
     "operations in the same order"},
    {[] {
       on_ranks(2, [](auto& l) {
         if (l.rank == 1) l.batch.release(expar::side::y);
         l.moe.combine(ctx, l.batch, out);
       });
     },
     "expar: combine: the batch has no y; fill batch.y() before, or pass one (rank 1)"},
    {[] {
       on_ranks(3, [](auto& l) {
         std::vector<float> all(99 * columns);
         index_t const n = l.batch.row_count() + (l.rank == 1);
         l.moe.dispatch(ctx, x, l.batch, make_view(all.data(), n, columns));
       });
     },
     "expar: dispatch: rows has extent 10 in dimension 0, but the number of rows in the batch is 9 "
     "(rank 1)"},
    {[] {
       on_ranks(2, [](auto& l) {
         expar::expert_batch<float> other;
         l.moe.combine(ctx, l.rank == 0 ? l.batch : other, out);
       });
     },
     "expar: combine: the batch has no routes; dispatch or prepare it first (rank 1)"},
    {[] {
       expar::run_ranks(1, [](auto& c) {
         expar::expert_parallel moe(c, shape);
         auto batch = moe.dispatch(ctx, x, some_routes<>{ids, weights});
         batch.release(expar::side::y);
         (void)batch.y();
       });
     },
     "expar: y: it is not there; dispatch gives it, until release"},
    {[] {
       expar::run_ranks(1, [](auto& c) {
         expar::expert_parallel moe(c, shape);
         (void)moe.dispatch(ctx, x, some_routes<>{ids, weights}).d_rows();
       });
     },
     "expar: d_rows: it is not there; combine_backward gives it, until release"},
};

std::vector<wrong_call> const of_exchanges{
    {[] { expar::host_context(0); }, "expar: host_context: threads is 0; at least 1 is needed"},
    {[] { expar::host_context(1, nullptr); },
     "expar: host_context: memory is null; a resource is needed"},
    {[] { expar::run_ranks(0, [](auto&) {}); },
     "expar: run_ranks: ranks is 0; at least 1 is needed"},
    {[] {
       expar::run_ranks(2, [](auto& c) {
         if (c.rank() == 0) c.barrier(ctx);
       });
     },
     "expar: barrier: rank 1 has left and will not come"},
    {[] { expar::run_ranks(1, [](auto& c) { (void)c.allocate_window(SIZE_MAX); }); },
     "expar: allocate_window: rank 0 has no memory for 18446744073709551615 bytes"},
    {[] {
       engine(self, {0, 1, 1});
     },
     "expar: expert_parallel: experts is 0; at least 1 is needed"},
    {[] {
       engine(self, {experts, 9, 1});
     },
     "expar: expert_parallel: top_k is 9; it lies between 1 and the 8 experts"},
    {[] {
       engine(self, {experts, k, 0});
     },
     "expar: expert_parallel: hidden is 0; at least 1 is needed"},
    {[] {
       engine(self, {experts, k, most});
     },
     "expar: expert_parallel: hidden is 9223372036854775807; at most 281474976710656 is possible"},
    {[] { engine(self, shape, expar::ragged{-1}); },
     "expar: expert_parallel: alignment is -1; it is at least 1"},
    {[] { expar::expert_parallel(self, shape, expar::fixed_capacity{1e9}); },
     "expar: expert_parallel: capacity factor is 1000000000; it lies between -1000000 and 1000000"},
    {[] {
       engine(self, {experts, k, columns, -1});
     },
     "expar: expert_parallel: hidden_out is -1; it lies between 0, for hidden, and "
     "281474976710656"},
    {[] { expar::expert_parallel(self, shape, expar::row_budget{-5}); },
     "expar: expert_parallel: the budget has -5 rows; it is at least 0"},
    {[] {
       layer().moe.dispatch(ctx, x, some_routes<>{ids, make_view(m.weights, 3, k)});
     },
     "expar: dispatch: weights has extent 3 in dimension 0, but the number of tokens is 4"},
    {[] {
       layer().moe.dispatch(ctx, make_view(m.x, tokens, 3, 4), some_routes<>{ids, weights});
     },
     "expar: dispatch: tokens has extent 3 in dimension 1, but hidden is 4"},
    {[] {
       layer().moe.dispatch(ctx, x, some_routes<>{make_view(m.ids, tokens, 1), weights});
     },
     "expar: dispatch: ids has extent 1 in dimension 1, but top_k is 2"},
    {[] {
       layer l;
       expar::expert_batch<float> batch;
       l.moe.prepare(ctx, some_routes<>{ids, weights}, batch);
       l.moe.combine(ctx, batch, y, out);
     },
     "expar: combine: the batch has no rows; dispatch tokens first"},
    {[] {
       layer l;
       expar::expert_batch<float> batch;
       l.moe.combine(ctx, batch, y, out);
     },
     "expar: combine: the batch has no routes; dispatch or prepare it first"},
    {[] {
       layer l;
       l.moe.combine(ctx, l.batch, make_view(m.y, 7, columns), out);
     },
     "expar: combine: y has extent 7 in dimension 0, but the number of rows in the batch is 8"},
    {[] {
       layer l;
       l.moe.combine(ctx, l.batch, y, make_view(m.y, tokens, columns));
     },
     "expar: combine: out overlaps y in memory; the operation cannot work in place"},
    {[] {
       layer l;
       l.moe.combine_backward(ctx, l.batch, x, y, d_y, make_view(m.d_y, tokens, k));
     },
     "expar: combine_backward: d_weights overlaps d_y in memory; the operation cannot work in "
     "place"},
    {[] {
       layer l;
       l.moe.dispatch_backward(ctx, l.batch, y, make_view(m.out, 3, columns));
     },
     "expar: dispatch_backward: d_tokens has extent 3 in dimension 0, but the number of tokens in "
     "the batch is 4"},
    {[] {
       layer l;
       engine other(self, {experts, k, 3});
       other.combine(ctx, l.batch, y, out);
     },
     "expar: combine: the batch was made for hidden 4, not 3"},
    {[] {
       layer l;
       expar::expert_parallel other(self, shape, expar::fixed_capacity{});
       other.combine(ctx, l.batch, y, out);
     },
     "expar: combine: the batch was made for a ragged layout, not for fixed_capacity"},
    {[] {
       layer l;
       engine other(self, shape);
       other.combine(ctx, l.batch, y, out);
     },
     "expar: combine: the batch was prepared by another object"},
    {[] {
       on_ranks(2, [](auto& l) {
         expar::expert_parallel other(l.transport, shape, expar::ragged{},
                                      expar::weights_at_encode{});
         other.combine(ctx, l.batch, out);
       });
     },
     "expar: combine: the batch was prepared by another object (rank 0)"},
    {[] {
       layer l;
       l.moe.dispatch(ctx, x, l.batch, make_view(m.y, 7, columns));
     },
     "expar: dispatch: rows has extent 7 in dimension 0, but the number of rows in the batch is 8"},
    {[] {
       layer l;
       l.moe.dispatch(ctx, x, l.batch, make_view(m.y, rows, 3));
     },
     "expar: dispatch: rows has extent 3 in dimension 1, but hidden is 4"},
    {[] {
       layer l;
       l.moe.combine_backward(ctx, l.batch, x, y, make_view(m.d_y, 7, columns), d_weights);
     },
     "expar: combine_backward: d_y has extent 7 in dimension 0, but the number of rows in the "
     "batch "
     "is 8"},
    {[] {
       layer l;
       l.moe.dispatch_backward(ctx, l.batch, make_view(m.y, 7, columns), out);
     },
     "expar: dispatch_backward: d_rows has extent 7 in dimension 0, but the number of rows in the "
     "batch is 8"},
    {[] {
       layer l;
       engine wide(self, {experts, k, columns, 6});
       wide.dispatch(ctx, x, some_routes<>{ids, weights}, l.batch);
       wide.combine(ctx, l.batch, y, out);
     },
     "expar: combine: y has extent 4 in dimension 1, but hidden_out is 6"},
    {[] {
       layer l;
       l.moe.combine(ctx, l.batch, out);
     },
     "expar: combine: the batch has no y; fill batch.y() before, or pass one"},
    {[] {
       layer l;
       static_cast<void>(l.batch.y());
       l.batch.release(expar::side::y);
       l.moe.combine_backward(ctx, l.batch, x, d_weights);
     },
     "expar: combine_backward: the batch has no y; fill batch.y() before, or pass one"},
    {[] {
       layer l;
       l.moe.dispatch_backward(ctx, l.batch, out);
     },
     "expar: dispatch_backward: the batch has no d_rows; fill batch.d_rows() before, or pass one"},
    {[] {
       expar::expert_parallel moe(self, shape, expar::ragged{}, expar::weights_per_row{});
       expar::expert_batch<float> batch;
       moe.dispatch(ctx, x, some_routes<>{ids, weights}, batch);
       moe.dispatch_backward(ctx, batch, y, make_view(m.of_rows, 7), out, d_weights);
     },
     "expar: dispatch_backward: d_row_weights has extent 7 in dimension 0, but the number of rows "
     "in the batch is 8"},
    {[] {
       expar::expert_parallel moe(self, shape, expar::ragged{}, expar::weights_per_row{});
       expar::expert_batch<float> batch;
       moe.dispatch(ctx, x, some_routes<>{ids, weights}, batch);
       expar::tensor_view<float, 1> const apart{m.logits, {rows}, {2}};
       moe.dispatch_backward(ctx, batch, y, apart, out, d_weights);
     },
     "expar: dispatch_backward: d_row_weights has stride 2; it must be contiguous"},
    {[] { expar::expert_parallel(self, shape).place(expar::placement::blocks(3, 2)); },
     "expar: place: the placement is of 3 experts on 2 ranks, not of 8 on 1"},
    {[] { expar::expert_batch<float> const empty(nullptr); },
     "expar: memory is null; a resource is needed"},
    {[] {
       expar::self_communicator c;
       std::size_t const none = 0, four = 4;
       char from[4], to[4];
       expar::byte_counts const of_none{&none, 1};
       c.all_to_all_v(ctx, from, {&four, 1}, of_none, to, of_none, of_none);
     },
     "expar: all_to_all_v: rank 0 sends 4 bytes to itself but expects 0"},
    {[] {
       expar::run_ranks(2, [](auto& c) {
         if (c.rank() == 0)
           c.barrier(ctx);
         else
           (void)c.allocate_window(8);
       });
     },
     "expar: rank 0 calls barrier while rank 1 calls allocate_window; all ranks call the same "
     "operations in the same order"},
    {[] {
       layer l;
       auto const moved = std::move(l.moe);
       l.moe.combine(ctx, l.batch, y, out);
     },
     "expar: expert_parallel: the object was moved from"},
    {[] { (void)layer().batch.slot_rows(99); },
     "expar: slot_rows: local_slot is 99; the batch has 8 local slots"},
    {[] { (void)layer().batch.count_from(1, 0); },
     "expar: count_from: rank is 1; there are 1 ranks"},
    {[] { (void)expar::expert_batch<float>().first_slot(); },
     "expar: first_slot: the batch has no routes; dispatch or prepare it first"},
    {[] { (void)expar::expert_batch<float>().first_row_from(0, 0); },
     "expar: first_row_from: local_slot is 0; the batch has 0 local slots"},
    {[] { (void)expar::expert_batch<float>().placement(); },
     "expar: placement: the batch has no routes; dispatch or prepare it first"},
    {[] { (void)layer().batch.expert_of(8); },
     "expar: expert_of: local_slot is 8; the batch has 8 local slots"},
    {[] {
       layer l;
       l.batch.release(expar::side::rows);
       (void)l.batch.slot_rows(0);
     },
     "expar: slot_rows: the batch has no rows; dispatch tokens first"},
    {[] {
       expar::run_ranks(2, [](auto& c) {
         std::vector<std::int32_t> values{INT32_MAX - 1};
         expar::sum_counts(ctx, c, values);
       });
     },
     "expar: sum_counts: values(0) of ranks 0 to 1 add up to what an integer of 4 bytes cannot "
     "hold"},
    {[] {
       expar::run_ranks(2, [](auto& c) {
         std::vector<std::int64_t> values(c.rank() == 0 ? 1 : 2);
         expar::sum_counts(ctx, c, values);
       });
     },
     "expar: sum_counts: rank 0 has 1 values but rank 1 has 2; all ranks must pass as many"},
    {[] { expar::gather_report(ctx, self, plan(), make_view(m.counts, 3)); },
     "expar: gather_report: dropped has extent 3 in dimension 0, but experts is 8"},
    {[] { expar::gather_report(ctx, self, plan(), negative); },
     "expar: gather_report: dropped(0) is -1; counts are at least 0 and add up to at most "
     "9223372036854775807"},
    {[] {
       expar::routing_report r;
       r.traffic = {1};
       (void)expar::traffic_matrix(r);
     },
     "expar: traffic_matrix: traffic has 1 numbers; there are 0 x 0 ranks"},
    {[] {
       (void)expar::load_bars(std::vector<index_t>{1, 2}, -1);
     },
     "expar: load_bars: width is -1; it is at least 0"},
    {[] {
       (void)expar::load_bars(std::vector<index_t>{1, -2});
     },
     "expar: load_bars: a count is -2; it is at least 0"},
};

std::vector<wrong_call> all() {
  std::vector<wrong_call> calls;
  for (auto const* area :
       {&of_routers, &of_losses, &of_plans, &of_routes, &of_placements, &of_exchanges, &of_ranks})
    calls.insert(calls.end(), area->begin(), area->end());
  return calls;
}

}  // namespace

TEST_CASE("wrong calls give a sentence each, and change nothing") {
  auto const calls = all();
  CHECK(calls.size() >= 81);
  std::set<std::string> sentences;
  memory const before;
  for (auto const& [call, sentence] : calls) {
    CHECK(expar_test::thrown_by(call) == sentence);
    CHECK(sentences.insert(sentence).second);
    CHECK(std::memcmp(static_cast<void const*>(&m), &before, sizeof m) == 0);
  }
}

TEST_CASE("ranks that call different operations all throw one sentence") {
  auto const call = [](auto& moe, auto& batch, int which, float* memory) {
    auto const home = make_view(memory, tokens, columns), gradients = make_view(memory, tokens, k);
    some_routes<> const to{ids, weights};
    expar::expert_batch<float> other;
    if (which == 0) moe.prepare(ctx, to, other);
    if (which == 1) moe.prepare(ctx, to, other, expar::even_quotas);
    if (which == 2) moe.dispatch(ctx, x, batch);
    if (which == 3) moe.combine(ctx, batch, home);
    if (which == 4) moe.combine_backward(ctx, batch, x, gradients);
    if (which == 5) moe.dispatch_backward(ctx, batch, home);
    if (which == 6) moe.place(moe.placement());
  };
  constexpr int operations = 7;
  for (bool const by_window : {false, true})
    for (int i = 0; i < operations * operations; ++i) {
      int const mine[] = {i / operations, i % operations};
      std::string said[2];
      expar::run_ranks(2, [&](auto& c) {
        float memory[tokens * columns] = {};
        auto const with = [&](auto by) {
          expar::expert_parallel moe(by, shape);
          auto batch = moe.template make_batch<float>();
          // Once in order, so that nothing but the order is wrong.
          moe.dispatch(ctx, x, some_routes<>{ids, weights}, batch);
          std::memset(batch.y().data, 0, std::size_t(batch.y().size()) * sizeof(float));
          for (int const which : {3, 4}) call(moe, batch, which, memory);
          std::memset(batch.d_rows().data, 0, std::size_t(batch.d_rows().size()) * sizeof(float));
          call(moe, batch, 5, memory);
          said[c.rank()] = expar_test::thrown_by([&] { call(moe, batch, mine[c.rank()], memory); });
        };
        if (by_window)
          with(expar::windows(c));
        else
          with(expar::messages(c));
      });
      CAPTURE(by_window, mine[0], mine[1]);
      CHECK(said[0] == said[1]);
      CHECK((said[0] == "nothing was thrown") == (mine[0] == mine[1]));
    }
}

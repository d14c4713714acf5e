// SPDX-License-Identifier: Apache-2.0
// What the row movers cost on one rank beside their limits (limits/rows.hpp) and what others do
// instead (peers/rows.hpp); rounds.hpp says how they are timed and what the counters are.
#include <sys/mman.h>

#include <batch.hpp>
#include <rounds.hpp>

namespace {

using namespace benchmarks;
using limits::streaming, limits::temporal;

template <class T>
using order = typename batch<T>::order;

template <class T>
void encode(benchmark::State& state) {
  batch<T> b(shape_of(state), static_cast<int>(state.range(4)));
  comparison c(state, [&] { b.rows.poison(); });
  auto const limit = [&](char const* name, auto push) {
    c.limit(
        name,
        [&b, push] {
          b.each_token([&](index_t first, index_t last) {
            push(b.x.data(), b.rows.data(), b.extent(), first, last);
          });
        },
        [&b] { return b.rows_are_tokens(order<T>::route); });
  };
  auto const right = [&b] { return b.rows_are_tokens(order<T>::plan); };
  c.ours([&] { expar::encode(b.ctx, b.plan, b.view(b.x), b.view(b.rows)); }, right);
  limit("memcpy", limits::push_by_memcpy<T>);
  limit("streaming", limits::push<streaming, T>);
  limit("streaming_rows", limits::push_by_rows<streaming, T>);
  c.peer(
      "index_select", [&] { peers::index_select(b.ctx, b.routing(), b.x.data(), b.rows.data()); },
      right);
  c.peer(
      "choices", [&] { peers::add_choices_to_rows(b.ctx, b.routing(), b.x.data(), b.rows.data()); },
      right);
  c.run();
}

/// The sum over rows, weighted or not; `weights` are what the limit multiplies by.
template <class T, class Ours>
void compare_sums(benchmark::State& state, batch<T>& b, float const* weights, bool weighted,
                  Ours ours) {
  int const k = shape_of(state).top_k;
  comparison c(state, [&] { b.out.poison(); });
  auto const limit = [&](char const* name, auto gather) {
    c.limit(
        name,
        [&b, gather, weights] {
          b.each_token([&](index_t first, index_t last) {
            gather(b.rows.data(), weights, b.out.data(), b.extent(), first, last);
          });
        },
        [&b, weighted] { return b.out_is_sum(order<T>::route, weighted); });
  };
  auto const right = [&b, weighted](int times) {
    return [&b, weighted, times] { return b.out_is_sum(order<T>::plan, weighted, times); };
  };
  c.ours(ours, right(1));
  limit("plain", limits::gather_plain<T>);
  limit("temporal", limits::gather<temporal, T>);
  limit("streaming", limits::gather<streaming, T>);
  float const* const of_peers = weighted ? weights : nullptr;
  c.peer(
      "index_add",
      [&] { peers::index_add(b.ctx, b.routing(), b.rows.data(), of_peers, b.out.data()); },
      right(k));
  c.peer(
      "choices",
      [&] {
        peers::add_choices_to_tokens(b.ctx, b.routing(), b.rows.data(), of_peers, b.out.data());
      },
      right(k));
  c.run();
}

template <class T>
void decode(benchmark::State& state) {
  batch<T> b(shape_of(state), static_cast<int>(state.range(4)));
  compare_sums(state, b, b.weights.data(), true, [&] {
    expar::decode(b.ctx, b.plan, b.view(b.rows), b.view_of_routes(b.weights), b.view(b.out));
  });
}

template <class T>
void encode_backward(benchmark::State& state) {
  batch<T> b(shape_of(state), static_cast<int>(state.range(4)));
  std::vector<float> const ones(size_of(b.weights.size()), 1.0f);
  compare_sums(state, b, ones.data(), false,
               [&] { expar::encode_backward(b.ctx, b.plan, b.view(b.rows), b.view(b.out)); });
}

template <class T>
void decode_backward(benchmark::State& state) {
  batch<T> b(shape_of(state), static_cast<int>(state.range(4)));
  b.goes_backward();
  array<T> const fetched(b.rows.size());
  limits::gather_gradients<T> const g{b.x.data(), b.rows.data(), b.weights.data(), b.d_rows.data(),
                                      b.d_weights.data()};
  comparison c(state, [&] { b.d_rows.poison(), b.d_weights.poison(); });
  auto const limit = [&](char const* name, auto backward) {
    c.limit(
        name,
        [&b, g, backward] {
          b.each_token([&](index_t first, index_t last) { backward(g, b.extent(), first, last); });
        },
        [&b] { return b.gradients_are_right(order<T>::route); });
  };
  auto const right = [&b] { return b.gradients_are_right(order<T>::plan); };
  c.ours(
      [&] {
        expar::decode_backward(b.ctx, b.plan, b.view(b.x), b.view(b.rows),
                               b.view_of_routes(b.weights), b.view(b.d_rows),
                               b.view_of_routes(b.d_weights));
      },
      right);
  limit("plain", limits::gather_backward_plain<T>);
  limit("temporal", limits::gather_backward<temporal, T>);
  limit("streaming", limits::gather_backward<streaming, T>);
  c.peer(
      "autograd",
      [&] {
        peers::autograd_of_index_add(b.ctx, b.routing(), b.x.data(), b.rows.data(),
                                     b.weights.data(), fetched.data(), b.d_rows.data(),
                                     b.d_weights.data());
      },
      right);
  c.run();
}

/// Rows whose pages the kernel has yet to give.
template <class T>
class fresh_rows {
 public:
  explicit fresh_rows(index_t n) : bytes_(size_of(n) * sizeof(T)) {}
  ~fresh_rows() { give_back(); }
  void renew() {
    give_back();
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
  }
  T* data() const { return static_cast<T*>(data_); }

 private:
  void give_back() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// encode() into rows that were just allocated: what a framework pays that keeps no workspace.
template <class T>
void encode_first_call(benchmark::State& state) {
  shape const s = shape_of(state);
  batch<T> b(s, static_cast<int>(state.range(4)));
  fresh_rows<T> fresh(b.rows.size());
  index_t const n = b.rows.size();
  auto const is_as = [&](order<T> by) {
    return [&, by] {
      std::memcpy(b.rows.data(), fresh.data(), size_of(n) * sizeof(T));
      return b.rows_are_tokens(by);
    };
  };
  comparison c(state);
  c.ours(
      [&] {
        expar::encode(b.ctx, b.plan, b.view(b.x),
                      expar::make_view(fresh.data(), n / s.hidden, index_t{s.hidden}));
      },
      is_as(order<T>::plan));
  auto const limit = [&](char const* name, auto push) {
    c.limit(
        name,
        [&b, &fresh, push] {
          b.each_token([&](index_t first, index_t last) {
            push(b.x.data(), fresh.data(), b.extent(), first, last);
          });
        },
        is_as(order<T>::route));
  };
  limit("memcpy", limits::push_by_memcpy<T>);
  limit("streaming_rows", limits::push_by_rows<streaming, T>);
  c.peer(
      "index_select", [&] { peers::index_select(b.ctx, b.routing(), b.x.data(), fresh.data()); },
      is_as(order<T>::plan));
  c.run([&] { fresh.renew(); });
}
void largest_but_one(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "hidden", "experts", "top_k", "threads"});
  shape const s = shapes[1];
  for (int const threads : {1, 2}) b->Args({s.tokens, s.hidden, s.experts, s.top_k, threads});
  b->UseManualTime()->Iterations(9)->Unit(benchmark::kMicrosecond);
}

using expar::bfloat16;
BENCHMARK_TEMPLATE(encode, float)->Apply(all_shapes);
BENCHMARK_TEMPLATE(encode, bfloat16)->Apply(all_shapes);
BENCHMARK_TEMPLATE(decode, float)->Apply(all_shapes);
BENCHMARK_TEMPLATE(decode, bfloat16)->Apply(all_shapes);
BENCHMARK_TEMPLATE(encode_backward, float)->Apply(all_shapes);
BENCHMARK_TEMPLATE(encode_backward, bfloat16)->Apply(all_shapes);
BENCHMARK_TEMPLATE(decode_backward, float)->Apply(all_shapes);
BENCHMARK_TEMPLATE(decode_backward, bfloat16)->Apply(all_shapes);
BENCHMARK_TEMPLATE(encode_first_call, float)->Apply(largest_but_one);

}  // namespace

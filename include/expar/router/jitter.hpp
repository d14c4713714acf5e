// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/context.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/random.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// The upper bits of a word as a number in [0, 1).
template <class A>
EXPAR_HD A uniform_of_word(std::uint32_t word) {
  return sizeof(A) == 4 ? multiply(static_cast<A>(word >> 8), A(0x1p-24))
                        : multiply(static_cast<A>(word), A(0x1p-32));
}

// What becomes of an input x, given the random word of its token and column: word column mod 4 of
// those that the stream has for column / 4.

struct jittered {
  static constexpr random_purpose purpose = random_purpose::input_jitter;
  double eps;

  template <class A>
  EXPAR_HD A of(A x, std::uint32_t word) const {
    return multiply(x, around_one(eps, uniform_of_word<A>(word)));
  }
};
struct dropped_out {
  static constexpr random_purpose purpose = random_purpose::input_dropout;
  double rate;

  template <class A>
  EXPAR_HD A of(A x, std::uint32_t word) const {
    bool const keeps = uniform_of_word<double>(word) >= rate;
    return zero_unless(keeps, multiply(x, static_cast<A>(1 / (1 - rate))));
  }
};

struct input_names {
  char const *operation, *in, *out, *other;
};

template <class Change, class T, class U>
void change_inputs(host_context const& ctx, input_names const& name, Change change,
                   random_stream const& stream, tensor_view<T, 2> const& x,
                   tensor_view<U, 2> const& out) {
  static_assert(element<std::remove_cv_t<T>> && element<U>,
                "expar: inputs are of an element type; specialize expar::element_traits for it");
  using A = accumulator_t<T>;
  check_view(name.in, x);
  check_output(name.out, out);
  index_t const tokens = x.extents[0], columns = x.extents[1];
  check_extent(name.out, out, 0, tokens, "the number of tokens");
  check_extent(name.out, out, 1, columns, "the number of columns");
  bool const in_place = std::is_same_v<std::remove_cv_t<T>, U> &&
                        static_cast<void const*>(x.data) == out.data &&
                        x.strides[0] == out.strides[0];
  if (!in_place) check_apart(name.out, out, name.other, x);
  stream.check(name.operation, tokens);
  ctx.for_each_chunk(tokens, 4096 / (columns + 1) + 1, [&](int, index_t first, index_t last) {
    for (index_t t = first; t < last; ++t) {
      T const* const from = x.row(t);
      U* const to = out.row(t);
      for (index_t c = 0; c < columns; c += 4) {
        random_words const words = stream.words(t, c / 4, Change::purpose);
        for (index_t i = 0; i < 4 && c + i < columns; ++i)
          to[c + i] = narrow<U>(static_cast<accumulator_t<U>>(
              change.of(static_cast<A>(widen(from[c + i])), words.at[i])));
      }
    }
  });
}

struct jitter_base {
 protected:
  template <class X, class Out>
  static void run(host_context const& ctx, input_names const& name, X const& x, double eps,
                  random_stream const& stream, Out&& out) {
    expects(eps >= 0 && eps <= 1, name.operation, ": eps is ", eps, "; it is 0 to 1");
    change_inputs(ctx, name, jittered{eps}, stream, as_view<2>(ctx, x), as_output<2>(ctx, out));
  }
};
struct dropout_base {
 protected:
  template <class X, class Out>
  static void run(host_context const& ctx, input_names const& name, X const& x, double rate,
                  random_stream const& stream, Out&& out) {
    expects(rate >= 0 && rate < 1, name.operation, ": rate is ", rate,
            "; it is at least 0 and below 1");
    change_inputs(ctx, name, dropped_out{rate}, stream, as_view<2>(ctx, x), as_output<2>(ctx, out));
  }
};

}  // namespace detail

/// Router inputs x [T, H] times U(1 - eps, 1 + eps), a number for each token and column, to out
/// [T, H], which may be x: before the router alone (Switch, MegaBlocks), or, in place, before the
/// experts too (Mixtral of Hugging Face). Element types are free. Throws where shapes do not fit,
/// out overlaps x without being it, or eps or a bound of random_stream is exceeded.
inline constexpr struct jitter_fn : private detail::jitter_base {
  template <class X, class Out>
  void operator()(host_context const& ctx, X const& x, double eps, random_stream const& stream,
                  Out&& out) const {
    run(ctx, {"jitter", "jitter: x", "jitter: out", "x"}, x, eps, stream, out);
  }
} jitter{};

/// The adjoint: the gradient d_out of jitter()'s out, times the same numbers, to d_x.
inline constexpr struct jitter_backward_fn : private detail::jitter_base {
  template <class DOut, class DX>
  void operator()(host_context const& ctx, DOut const& d_out, double eps,
                  random_stream const& stream, DX&& d_x) const {
    run(ctx, {"jitter_backward", "jitter_backward: d_out", "jitter_backward: d_x", "d_out"}, d_out,
        eps, stream, d_x);
  }
} jitter_backward{};

/// Router inputs x [T, H] to out [T, H], which may be x: each is 0 with probability `rate`, and
/// else divided by 1 - rate (Mesh TensorFlow's input_dropout). Otherwise as jitter().
inline constexpr struct input_dropout_fn : private detail::dropout_base {
  template <class X, class Out>
  void operator()(host_context const& ctx, X const& x, double rate, random_stream const& stream,
                  Out&& out) const {
    run(ctx, {"input_dropout", "input_dropout: x", "input_dropout: out", "x"}, x, rate, stream,
        out);
  }
} input_dropout{};

/// The adjoint: the gradient d_out of input_dropout()'s out, to d_x, by the same choice.
inline constexpr struct input_dropout_backward_fn : private detail::dropout_base {
  template <class DOut, class DX>
  void operator()(host_context const& ctx, DOut const& d_out, double rate,
                  random_stream const& stream, DX&& d_x) const {
    run(ctx,
        {"input_dropout_backward", "input_dropout_backward: d_out", "input_dropout_backward: d_x",
         "d_out"},
        d_out, rate, stream, d_x);
  }
} input_dropout_backward{};

}  // namespace v0
}  // namespace expar

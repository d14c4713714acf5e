// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/random.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// Uniform numbers in [0, 1) of a token: 24 bits of a word, or for double 32. Four columns share a
/// draw of the stream, and columns are asked for in order.
struct words_of_token {
  random_stream stream;
  random_purpose purpose;
  index_t token;
  random_words words{};

  template <class A>
  A of(index_t column) {
    if (column % 4 == 0) words = stream.words(token, column / 4, purpose);
    std::uint32_t const word = words.at[column % 4];
    return sizeof(A) == 4 ? multiply(static_cast<A>(word >> 8), A(0x1p-24))
                          : multiply(static_cast<A>(word), A(0x1p-32));
  }
};
struct word_numbers {
  random_stream stream;
  random_purpose purpose;

  words_of_token at(index_t token) const { return {stream, purpose, token}; }
  void validate(char const* what, index_t /*columns*/, index_t tokens) const {
    stream.validate(what, tokens);
  }
};

template <class Numbers>
Numbers const& numbers_for(random_purpose, Numbers const& numbers) {
  return numbers;
}
inline word_numbers numbers_for(random_purpose purpose, random_stream const& stream) {
  return {stream, purpose};
}

// What becomes of an input x, given the numbers of its token.

struct jittered {
  static constexpr random_purpose purpose = random_purpose::input_jitter;
  double eps;

  template <class A, class Numbers>
  A of(A x, Numbers& numbers, index_t column) const {
    return multiply(x, around_one(eps, numbers.template of<A>(column)));
  }
  void validate(char const* what) const {
    expects(eps >= 0 && eps <= 1, what, ": eps is ", eps, "; it is 0 to 1");
  }
};
struct dropped_out {
  static constexpr random_purpose purpose = random_purpose::input_dropout;
  double rate;

  template <class A, class Numbers>
  A of(A x, Numbers& numbers, index_t column) const {
    // In double, so that inputs of all types are dropped alike.
    bool const keeps = numbers.template of<double>(column) >= rate;
    return zero_unless(keeps, multiply(x, static_cast<A>(1 / (1 - rate))));
  }
  void validate(char const* what) const {
    expects(rate >= 0 && rate < 1, what, ": rate is ", rate, "; it is at least 0 and below 1");
  }
};

/// What an operation and its tensors are called.
struct input_names {
  char const *operation, *in, *out;
};

template <class Change, class Numbers, class X, class Out>
void change_inputs(host_context const& ctx, input_names const& name, Change change,
                   Numbers const& numbers, X const& in, Out&& result) {
  arguments a(ctx, name.operation);
  auto const x = a.read(name.in, in);
  index_t const tokens = x.extents[0], columns = x.extents[1];
  numbers.validate(a, columns, tokens);
  auto const out = a.gradient(name.out, result,
                              {{tokens, "the number of tokens"},
                               {columns, "the number of columns"},
                               may_be(name.in),
                               may_be("given numbers")});
  using A = accumulator_t<element_of<decltype(x)>>;
  ctx.for_each_chunk(tokens, 4096 / (columns + 1) + 1, [&](int, index_t first, index_t last) {
    for (index_t t = first; t < last; ++t) {
      auto* const from = x.row(t);
      auto* const to = out.row(t);
      auto of_token = numbers.at(t);
      for (index_t c = 0; c < columns; ++c)
        out.put(to[c], change.of(static_cast<A>(widen(from[c])), of_token, c));
    }
  });
}

/// An operation, or its adjoint, that changes inputs by an amount and numbers.
template <class Change>
struct input_change {
 protected:
  template <class X, class Numbers, class Out>
  static void run(host_context const& ctx, input_names const& name, X const& x, double amount,
                  Numbers const& numbers, Out&& out) {
    Change const change{amount};
    change.validate(name.operation);
    change_inputs(ctx, name, change, numbers_for(Change::purpose, numbers), x, out);
  }
};

}  // namespace detail

struct jitter_fn : private detail::input_change<detail::jittered> {
  template <class X, class Numbers, class Out>
  void operator()(host_context const& ctx, X const& x, double eps, Numbers const& numbers,
                  Out&& out) const {
    run(ctx, {"jitter", "x", "out"}, x, eps, numbers, out);
  }
};
/// `jitter(ctx, x, eps, numbers, out)`: router inputs x [T, H] times U(1 - eps, 1 + eps), a number
/// for each token and column, to out [T, H]: before the router alone (Switch, MegaBlocks), or, in
/// place, before the experts too (Mixtral of Hugging Face).
///   numbers: a random_stream; or a source of uniform numbers in [0, 1), uniforms or given_numbers
///            [T, H]. A stream has other numbers than the uniforms of it, for a quarter of the work
///   x, out: any element types. out may be x, and the numbers that are given, and is otherwise
///           apart from them
/// Throws where shapes do not fit, or eps or a bound of random_stream is exceeded; then nothing is
/// written.
inline constexpr jitter_fn jitter{};

struct jitter_backward_fn : private detail::input_change<detail::jittered> {
  template <class DOut, class Numbers, class DX>
  void operator()(host_context const& ctx, DOut const& d_out, double eps, Numbers const& numbers,
                  DX&& d_x) const {
    run(ctx, {"jitter_backward", "d_out", "d_x"}, d_out, eps, numbers, d_x);
  }
};
/// `jitter_backward(ctx, d_out, eps, numbers, d_x)`, the adjoint: the gradient d_out of jitter()'s
/// out, times the same numbers, to d_x.
inline constexpr jitter_backward_fn jitter_backward{};

struct input_dropout_fn : private detail::input_change<detail::dropped_out> {
  template <class X, class Numbers, class Out>
  void operator()(host_context const& ctx, X const& x, double rate, Numbers const& numbers,
                  Out&& out) const {
    run(ctx, {"input_dropout", "x", "out"}, x, rate, numbers, out);
  }
};
/// `input_dropout(ctx, x, rate, numbers, out)`: router inputs x [T, H] to out [T, H]; each is 0
/// with probability `rate`, and else divided by 1 - rate (Mesh TensorFlow's input_dropout).
/// Otherwise as jitter().
inline constexpr input_dropout_fn input_dropout{};

struct input_dropout_backward_fn : private detail::input_change<detail::dropped_out> {
  template <class DOut, class Numbers, class DX>
  void operator()(host_context const& ctx, DOut const& d_out, double rate, Numbers const& numbers,
                  DX&& d_x) const {
    run(ctx, {"input_dropout_backward", "d_out", "d_x"}, d_out, rate, numbers, d_x);
  }
};
/// `input_dropout_backward(ctx, d_out, rate, numbers, d_x)`, the adjoint: the gradient d_out of
/// input_dropout()'s out, to d_x, by the same choice.
inline constexpr input_dropout_backward_fn input_dropout_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END

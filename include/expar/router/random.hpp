// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/math.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

struct random_words {
  std::uint32_t at[4];
};

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
EXPAR_HD constexpr random_words philox(random_words counter, std::uint64_t key) {
  auto low = static_cast<std::uint32_t>(key), high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const a = std::uint64_t{0xD2511F53} * counter.at[0];
    std::uint64_t const b = std::uint64_t{0xCD9E8D57} * counter.at[2];
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ counter.at[1] ^ low,
                static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ counter.at[3] ^ high,
                static_cast<std::uint32_t>(a)}};
    low += 0x9E3779B9, high += 0xBB67AE85;
  }
  return counter;
}

/// -log(u) of u = (2 n + 1) / 2^53, where n is the upper 52 bits. 1 - u is as exact as u is, so
/// that in float, too, the result keeps its last places where it is small.
template <class A>
EXPAR_HD A exponential_of_bits(std::uint64_t bits) {
  auto const u = static_cast<std::int64_t>((bits >> 12) * 2 + 1);
  if (u < std::int64_t{3} << 51) return -logarithm(multiply(static_cast<A>(u), A(0x1p-53)));
  return -log_near_one(multiply(static_cast<A>(u - (std::int64_t{1} << 53)), A(0x1p-53)));
}

}  // namespace detail

/// What a random number is for. Numbers for different purposes are independent. A purpose is any
/// number of the underlying type; those from 128 on are never used by this library.
enum class random_purpose : std::uint8_t {
  uniform_noise = 0,
  normal_noise = 1,
  gumbel_noise = 2,
  input_jitter = 3,
  input_dropout = 4,
  drop_order = 5,
  second_expert = 6,
};

/// 128 random bits, as a number of one distribution: float or double of the same bits, which differ
/// by rounding alone. All functions of one draw depend on each other.
struct random_draw {
  std::uint64_t first, second;

  /// A multiple of 2^-24 (2^-53 for double) in [0, 1).
  template <class A>
  EXPAR_HD A uniform() const {
    return detail::multiply(static_cast<A>(multiple<A>()), unit<A>);
  }
  /// The same in (0, 1]: uniform() and one multiple more.
  template <class A>
  EXPAR_HD A positive_uniform() const {
    return detail::multiply(static_cast<A>(multiple<A>() + 1), unit<A>);
  }
  /// Of the exponential distribution with mean 1; above 0 and at most 37.
  template <class A>
  EXPAR_HD A exponential() const {
    return detail::exponential_of_bits<A>(first);
  }
  /// Of Gumbel(0, 1), -log(-log(u)); finite.
  template <class A>
  EXPAR_HD A gumbel() const {
    return -detail::logarithm(exponential<A>());
  }
  /// Of the standard normal distribution (Box and Muller), at most 8.6 in size.
  template <class A>
  EXPAR_HD A normal() const {
    A const turns = random_draw{second, first}.uniform<A>();
    A const radius = detail::square_root(detail::multiply(A(2), exponential<A>()));
    return detail::multiply(radius, detail::cosine_of_turns(turns));
  }

 private:
  template <class A>
  static constexpr A unit = sizeof(A) == 4 ? A(0x1p-24) : A(0x1p-53);

  template <class A>
  EXPAR_HD constexpr std::int64_t multiple() const {
    return static_cast<std::int64_t>(first >> (sizeof(A) == 4 ? 40 : 11));
  }
};

/// Random numbers without a state: the one for a token, a column (an expert) and a purpose is a
/// function of them and of what is here, so that neither the number of threads or ranks nor the
/// order of calls shows. Host and device give the same bits.
///   seed         one per training run, say
///   step, layer  what makes numbers of other calls differ: 0 to 2^32 - 1, and 0 to 2^16 - 1
///   first_token  the number, among the tokens of all ranks, of the token that is 0 here. Numbers
///                of tokens are below 2^40, of columns below 2^32
/// Where a number exceeds its bound, another stream's numbers come again.
struct random_stream {
  std::uint64_t seed = 0;
  std::int64_t step = 0;
  int layer = 0;
  index_t first_token = 0;

  EXPAR_HD constexpr random_draw at(index_t token, index_t column, random_purpose purpose) const {
    detail::random_words const w = words(token, column, purpose);
    return {std::uint64_t{w.at[0]} << 32 | w.at[1], std::uint64_t{w.at[2]} << 32 | w.at[3]};
  }
  /// The bits of at().
  EXPAR_HD constexpr detail::random_words words(index_t token, index_t column,
                                                random_purpose purpose) const {
    auto const t = static_cast<std::uint64_t>(first_token + token);
    return detail::philox({{static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(column),
                            static_cast<std::uint32_t>(step),
                            static_cast<std::uint32_t>(layer & 0xffff) << 16 |
                                static_cast<std::uint32_t>(purpose) << 8 |
                                static_cast<std::uint32_t>(t >> 32 & 0xff)}},
                          seed);
  }
  /// Throws where the numbers of `tokens` tokens exceed a bound.
  void validate(char const* what, index_t tokens) const {
    constexpr std::int64_t steps = std::int64_t{1} << 32, most = std::int64_t{1} << 40;
    detail::expects(step >= 0 && step < steps, what, ": step is ", step, "; it is 0 to ",
                    steps - 1);
    detail::expects(layer >= 0 && layer < 65536, what, ": layer is ", layer, "; it is 0 to 65535");
    detail::expects(first_token >= 0 && first_token <= most - tokens, what, ": first_token is ",
                    first_token, "; with ", tokens, " tokens it is 0 to ", most - tokens);
  }
};

namespace detail {

struct uniform_distribution {
  static constexpr random_purpose purpose = random_purpose::uniform_noise;
  template <class A>
  EXPAR_HD static A of(random_draw d) {
    return d.uniform<A>();
  }
};
struct normal_distribution {
  static constexpr random_purpose purpose = random_purpose::normal_noise;
  template <class A>
  EXPAR_HD static A of(random_draw d) {
    return d.normal<A>();
  }
};
struct gumbel_distribution {
  static constexpr random_purpose purpose = random_purpose::gumbel_noise;
  template <class A>
  EXPAR_HD static A of(random_draw d) {
    return d.gumbel<A>();
  }
};

template <class Distribution>
struct numbers_of_token {
  random_stream stream;
  random_purpose purpose;
  index_t token;

  template <class A>
  EXPAR_HD A of(index_t column) const {
    return Distribution::template of<A>(stream.at(token, column, purpose));
  }
};
template <class T>
struct numbers_of_row {
  T const* row;

  template <class A>
  EXPAR_HD A of(index_t column) const {
    return static_cast<A>(widen(row[column]));
  }
};

/// 1 - eps + 2 eps u: of U(1 - eps, 1 + eps).
template <class A>
EXPAR_HD A around_one(double eps, A u) {
  return add(static_cast<A>(1 - eps), multiply(static_cast<A>(2 * eps), u));
}

}  // namespace detail

// Where a policy has its numbers from, one for each token and expert, as
// `source.at(token).of<A>(expert)`: drawn, or given.

/// Numbers of one distribution, as the stream has them for a purpose. Two policies of a router that
/// draw from the same distribution and stream need different purposes.
template <class Distribution>
struct random_numbers {
  random_stream stream;
  random_purpose purpose = Distribution::purpose;

  EXPAR_HD constexpr detail::numbers_of_token<Distribution> at(index_t token) const {
    return {stream, purpose, token};
  }
  void validate(char const* what, index_t /*experts*/, index_t tokens) const {
    stream.validate(what, tokens);
  }
};
/// Uniform in [0, 1); standard normal; Gumbel(0, 1).
using uniforms = random_numbers<detail::uniform_distribution>;
using normals = random_numbers<detail::normal_distribution>;
using gumbels = random_numbers<detail::gumbel_distribution>;

/// Numbers [T, experts] that the caller has; the rows may lie on top of each other.
template <class T>
struct given_numbers {
  tensor_view<T const, 2> numbers;

  EXPAR_HD constexpr detail::numbers_of_row<T> at(index_t token) const {
    return {numbers.row(token)};
  }
  void validate(detail::argument_table& a, index_t columns, index_t tokens) const {
    a.reads("given numbers", numbers,
            {{tokens, "the number of tokens"}, {columns, "what a token needs"}});
  }
};
template <class T>
given_numbers(tensor_view<T, 2>) -> given_numbers<std::remove_const_t<T>>;

}  // namespace expar::inline v0
EXPAR_IEEE_END

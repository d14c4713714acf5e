// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdio>
#include <exception>

#include <expar/config.hpp>

namespace expar::inline v0 {

/// A wrong value, or a rank or transport that failed. The sentence names the operation, the
/// argument, its value and the bound. What a collective operation throws on one rank, it throws on
/// every rank. It needs no memory; a sentence of more than `room - 1` characters is cut.
class error : public std::exception {
 public:
  static constexpr std::size_t room = 512;

  explicit error(char const* sentence) {
    std::size_t n = 0;
    for (; sentence[n] != '\0' && n + 1 < room; ++n) text_[n] = sentence[n];
    text_[n] = '\0';
  }
  /// Of a std::string, or anything else with c_str().
  template <class String>
  requires requires(String const& s) { s.c_str(); }
  explicit error(String const& sentence) : error(sentence.c_str()) {}

  char const* what() const noexcept override { return text_; }

 private:
  char text_[room];
};

/// Ranks that came, and want different things: other sizes, or another operation. Nothing of the
/// call is pending, and the next one works.
class disagreement : public error {
 public:
  using error::error;
};

/// A rank that did not come within the deadline. What it was waited for on stays dead: every later
/// call there throws the same sentence at once.
class lost_rank : public error {
 public:
  template <class Sentence>
  lost_rank(int rank, Sentence const& sentence) : error(sentence), rank_(rank) {}

  /// The one that did not come; of several, each survivor may name another.
  int rank() const noexcept { return rank_; }

 private:
  int rank_;
};

namespace detail {

/// Texts and numbers side by side, as far as an error has room for them.
class sentence {
 public:
  template <class... Parts>
  explicit sentence(Parts const&... parts) {
    (put(parts), ...);
  }
  char const* c_str() const { return text_; }

 private:
  void put(char const* part) {
    for (; *part != '\0' && length_ + 1 < error::room; ++part) text_[length_++] = *part;
  }
  template <class String>
  requires requires(String const& s) { s.c_str(); }
  void put(String const& part) { put(part.c_str()); }
  template <std::signed_integral Integer>
  void put(Integer n) {
    put_number("%lld", static_cast<long long>(n));
  }
  template <std::unsigned_integral Integer>
  void put(Integer n) {
    put_number("%llu", static_cast<unsigned long long>(n));
  }
  void put(double x) { put_number("%.15g", x); }
  template <class Number>
  void put_number(char const* format, Number n) {
    char text[32];
    std::snprintf(text, sizeof text, format, n);
    put(text);
  }

  char text_[error::room]{};
  std::size_t length_ = 0;
};

template <class Error = error, class... Parts>
[[noreturn, gnu::cold]] void fail(Parts const&... parts) {
  throw Error(sentence("expar: ", parts...));
}

/// Throws the sentence made of `parts` unless `holds`.
template <class Error = error, class... Parts>
constexpr void expects(bool holds, Parts const&... parts) {
  if (!holds) [[unlikely]]
    fail<Error>(parts...);
}

}  // namespace detail
}  // namespace expar::inline v0

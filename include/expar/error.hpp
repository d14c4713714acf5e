// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <initializer_list>

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
  requires requires(String const& s) {
    { s.c_str() } -> std::convertible_to<char const*>;
  }
  explicit error(String const& sentence) : error(sentence.c_str()) {}

  char const* what() const noexcept override { return text_; }

 private:
  char text_[room];
};

namespace detail {

/// A part of a sentence: text, which outlives it, or a number.
class part {
 public:
  part(char const* text) : kind_(text_kind), text_(text) {}
  template <class String>
  requires requires(String const& s) {
    { s.c_str() } -> std::convertible_to<char const*>;
  }
  part(String const& s) : part(s.c_str()) {}
  template <std::signed_integral Integer>
  part(Integer n) : kind_(integer_kind), integer_(n) {}
  template <std::unsigned_integral Integer>
  part(Integer n) : kind_(natural_kind), natural_(n) {}
  part(double x) : kind_(real_kind), real_(x) {}

  /// Appends it to text of `length` characters, as far as there is room, and gives the new length.
  std::size_t append(char* text, std::size_t length) const {
    char number[32];
    char const* from = number;
    switch (kind_) {
      case text_kind:
        from = text_;
        break;
      case integer_kind:
        std::snprintf(number, sizeof number, "%lld", integer_);
        break;
      case natural_kind:
        std::snprintf(number, sizeof number, "%llu", natural_);
        break;
      case real_kind:
        std::snprintf(number, sizeof number, "%.15g", real_);
        break;
    }
    for (; *from != '\0' && length + 1 < error::room; ++from) text[length++] = *from;
    return length;
  }

 private:
  enum { text_kind, integer_kind, natural_kind, real_kind } kind_;
  union {
    char const* text_;
    long long integer_;
    unsigned long long natural_;
    double real_;
  };
};

/// Parts side by side.
class sentence {
 public:
  sentence(std::initializer_list<part> parts) {
    std::size_t length = 0;
    for (part const& p : parts) length = p.append(text_, length);
  }
  char const* c_str() const { return text_; }

 private:
  char text_[error::room]{};
};

[[noreturn, gnu::cold]] inline void throw_sentence(std::initializer_list<part> parts) {
  throw error(sentence(parts));
}

template <class... Parts>
[[noreturn, gnu::cold]] void fail(Parts const&... parts) {
  throw_sentence({"expar: ", parts...});
}

/// Throws the sentence made of `parts` unless `holds`.
template <class... Parts>
constexpr void expects(bool holds, Parts const&... parts) {
  if (!holds) [[unlikely]]
    fail(parts...);
}

}  // namespace detail
}  // namespace expar::inline v0

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <initializer_list>

namespace expar::inline v0 {

/// A wrong value, or a rank or transport that failed. The sentence names the operation, the
/// argument, its value and the bound. What a collective operation throws on one rank, it throws on
/// every rank. It needs no memory; a sentence of more than `room - 1` characters is cut.
class error : public std::exception {
 public:
  static constexpr std::size_t room = 512;

  explicit error(char const* sentence) { std::snprintf(text_, room, "%s", sentence); }
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
  template <std::signed_integral I>
  part(I n) : kind_(integer_kind), integer_(n) {}
  template <std::unsigned_integral I>
  part(I n) : kind_(natural_kind), natural_(n) {}
  part(double x) : kind_(real_kind), real_(x) {}

  /// Writes at most `room` characters, the last one 0, and gives how many there would have been.
  int print(char* to, std::size_t room) const {
    switch (kind_) {
      case text_kind:
        return std::snprintf(to, room, "%s", text_);
      case integer_kind:
        return std::snprintf(to, room, "%lld", integer_);
      case natural_kind:
        return std::snprintf(to, room, "%llu", natural_);
      default:
        return std::snprintf(to, room, "%.15g", real_);
    }
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
    for (part const& p : parts) {
      auto const length = static_cast<std::size_t>(p.print(text_ + length_, error::room - length_));
      length_ = length < error::room - length_ ? length_ + length : error::room - 1;
    }
  }
  char const* c_str() const { return text_; }

 private:
  char text_[error::room]{};
  std::size_t length_ = 0;
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

/// "operation: argument", with which sentences begin.
class argument {
 public:
  argument(char const* operation, char const* name) {
    std::snprintf(text_, sizeof text_, "%s: %s", operation, name);
  }
  operator char const*() const { return text_; }
  char const* c_str() const { return text_; }

 private:
  char text_[96];
};

}  // namespace detail
}  // namespace expar::inline v0

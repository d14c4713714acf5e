// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace expar::inline v0 {

/// A wrong value, or a rank or transport that failed. The sentence names the operation, the
/// argument, its value and the bound. What a collective operation throws on one rank, it throws on
/// every rank.
class error : public std::runtime_error {
 public:
  explicit error(std::string const& sentence) : std::runtime_error(sentence) {}
};

namespace detail {

inline void append(std::string& to, char const* part) {
  to += part;
}
inline void append(std::string& to, std::string const& part) {
  to += part;
}
template <std::integral I>
void append(std::string& to, I part) {
  to += std::to_string(part);
}
inline void append(std::string& to, double part) {
  char text[32];
  std::snprintf(text, sizeof text, "%.15g", part);
  to += text;
}

template <class... Parts>
std::string sentence(Parts const&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

template <class... Parts>
[[noreturn]] void fail(Parts const&... parts) {
  throw error(sentence("expar: ", parts...));
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

 private:
  char text_[96];
};

}  // namespace detail
}  // namespace expar::inline v0

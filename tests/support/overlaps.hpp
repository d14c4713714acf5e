// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <expar/error.hpp>

#include "support/catch.hpp"

// Law: what an operation writes shares no byte with any other argument, unless the documentation
// allows it; then it is that very tensor. Checked for every pair of arguments.
namespace overlap_test {

enum class access { read, written };

struct argument {
  char const* name;  // as sentences call it
  access how;
  std::size_t bytes;
};

/// One call of an operation on memory that stands where the test says.
struct operation {
  char const* name;
  std::vector<argument> arguments;
  std::vector<std::pair<int, int>> may_be;                   // pairs that may be the same tensor
  std::function<void(std::vector<std::byte*> const&)> call;  // an address for each argument
  std::function<void(std::vector<std::byte*> const&)> fill = {};  // other than zeros
};

template <class T>
T* as(std::byte* at) {
  return reinterpret_cast<T*>(at);
}

class pairs {
 public:
  explicit pairs(operation const& op) : op_(op), memory_(4096 * (op.arguments.size() + 1)) {
    auto const first = reinterpret_cast<std::uintptr_t>(memory_.data());
    auto* at = memory_.data() + (64 - first % 64) % 64;
    for (auto const& a : op.arguments) {
      REQUIRE(a.bytes % 8 == 0);
      REQUIRE(a.bytes >= 16);
      REQUIRE(a.bytes <= 2048);
      apart_.push_back(at + 1024);
      at += 4096;
    }
  }

  void check() {
    CAPTURE(op_.name);
    CHECK(thrown(apart_) == "nothing was thrown");
    check_pairs(true);
  }
  /// What must throw, alone: an operation of a device would go through to memory of the host.
  void check_refusals() {
    CAPTURE(op_.name);
    check_pairs(false);
  }

 private:
  void check_pairs(bool with_allowed) {
    int const n = static_cast<int>(apart_.size());
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j)
        if (i != j && (is_written(i) || is_written(j))) {
          auto const bytes = op_.arguments[static_cast<std::size_t>(i)].bytes;
          if (with_allowed || !allowed(i, j)) check_pair(i, j, 0);
          check_pair(i, j, bytes - 8);  // the last of i, the first of j
        }
  }
  void check_pair(int i, int j, std::size_t shift) {
    auto at = apart_;
    auto const x = static_cast<std::size_t>(i), y = static_cast<std::size_t>(j);
    at[y] = at[x] + shift;
    char const *const one = op_.arguments[x].name, *const other = op_.arguments[y].name;
    CAPTURE(one, other, shift);
    std::string const sentence = thrown(at);
    if (shift == 0 && allowed(i, j)) {
      CHECK(sentence == "nothing was thrown");
      return;
    }
    std::string const begin = "expar: " + std::string(op_.name) + ": ";
    bool const names_both = sentence == begin + one + " overlaps " + other + ends(i, j) ||
                            sentence == begin + other + " overlaps " + one + ends(i, j);
    if (!names_both) FAIL_CHECK("the sentence is: " << sentence);
    CHECK(memory_ == before_);
  }
  std::string ends(int i, int j) const {
    return allowed(i, j) ? " in memory; it is that very tensor, or apart from it"
                         : " in memory; the operation cannot work in place";
  }
  std::string thrown(std::vector<std::byte*> const& at) {
    std::memset(memory_.data(), 0, memory_.size());
    if (op_.fill) op_.fill(at);
    before_ = memory_;
    try {
      op_.call(at);
    } catch (expar::error const& e) {
      return e.what();
    }
    return "nothing was thrown";
  }
  bool is_written(int i) const {
    return op_.arguments[static_cast<std::size_t>(i)].how == access::written;
  }
  bool allowed(int i, int j) const {
    for (auto [a, b] : op_.may_be)
      if ((a == i && b == j) || (a == j && b == i)) return true;
    return false;
  }

  operation const& op_;
  std::vector<std::byte> memory_, before_;
  std::vector<std::byte*> apart_;
};

inline void check_all(std::vector<operation> const& operations) {
  for (operation const& op : operations) pairs(op).check();
}
inline void check_all_refusals(std::vector<operation> const& operations) {
  for (operation const& op : operations) pairs(op).check_refusals();
}

}  // namespace overlap_test

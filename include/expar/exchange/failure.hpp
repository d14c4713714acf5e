// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <exception>

#include <expar/error.hpp>

namespace expar::inline v0::detail {

/// What went wrong on this rank, or nothing. It needs no memory, so that the lack of memory can be
/// told as well.
struct failure {
  static constexpr std::size_t room = error::room;
  char text[room];  // up to its end; what follows is never read
  bool failed = false;

  failure() { text[0] = '\0'; }
  explicit operator bool() const { return failed; }
};

template <class Local>
failure failure_of(Local local) {
  failure f;
  auto const say = [&f](char const* before, char const* text) {
    f.failed = true;
    std::snprintf(f.text, sizeof f.text, "%s%s", before, text);
  };
  try {
    local();
  } catch (error const& e) {
    say("", e.what());
  } catch (std::exception const& e) {
    say("expar: an exception: ", e.what());
  } catch (...) {
    say("expar: an exception that is no std::exception", "");
  }
  return f;
}
/// Of the exception that is being handled.
inline failure current_failure() {
  return failure_of([] { throw; });
}

}  // namespace expar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <expar/error.hpp>

namespace expar_test {

/// The sentence of the expar::error that f() throws.
template <class F>
std::string thrown_by(F f) {
  try {
    f();
  } catch (expar::error const& e) {
    return e.what();
  }
  return "nothing was thrown";
}

}  // namespace expar_test

// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/failure.hpp>

#include <new>
#include <stdexcept>
#include <string>

#include "../support/catch.hpp"

using expar::detail::current_failure;
using expar::detail::failure;
using expar::detail::failure_of;

TEST_CASE("a failure has the sentence of what was thrown, whatever that was") {
  failure const none = failure_of([] {});
  CHECK_FALSE(none);
  CHECK(std::string(none.text).empty());

  failure const ours = failure_of([] { throw expar::error("expar: combine: no"); });
  CHECK(ours);
  CHECK(std::string(ours.text) == "expar: combine: no");
  CHECK(std::string(failure_of([] { throw std::runtime_error("out of paper"); }).text) ==
        "expar: an exception: out of paper");
  CHECK(std::string(failure_of([] { throw std::bad_alloc(); }).text) ==
        "expar: an exception: std::bad_alloc");
  CHECK(std::string(failure_of([] { throw 5; }).text) ==
        "expar: an exception that is no std::exception");
}

TEST_CASE("a failure cuts a sentence that is too long, and one without a sentence is a failure") {
  failure const longer = failure_of([] { throw std::runtime_error(std::string(600, 'x')); });
  CHECK(std::string(longer.text) ==
        ("expar: an exception: " + std::string(600, 'x')).substr(0, failure::room - 1));
  failure const silent = failure_of([] { throw expar::error(""); });
  CHECK(silent);
  CHECK(std::string(silent.text).empty());
}

TEST_CASE("a failure is made of the exception that is being handled") {
  try {
    throw std::runtime_error("out of paper");
  } catch (...) {
    CHECK(std::string(current_failure().text) == "expar: an exception: out of paper");
  }
}

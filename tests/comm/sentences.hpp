// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <exception>
#include <string>
#include <vector>

#include <expar/comm/thread.hpp>

namespace expar_test {

using expar::host_context;
using expar::run_ranks;
using expar::thread_communicator;
using namespace std::chrono_literals;

/// What f() throws, behind its kind: "lost 2: expar: ...", "disagreement: expar: ...", or the
/// sentence alone of any other exception; empty where it throws none.
template <class F>
std::string sentence_of(F f) {
  try {
    f();
  } catch (expar::lost_rank const& e) {
    return "lost " + std::to_string(e.rank()) + ": " + e.what();
  } catch (expar::disagreement const& e) {
    return std::string("disagreement: ") + e.what();
  } catch (std::exception const& e) {
    return e.what();
  }
  return "";
}

/// sentence_of(f(comm)) of each of several ranks, which themselves end well.
template <class F>
std::vector<std::string> sentences(int ranks, F f,
                                   std::chrono::milliseconds deadline = std::chrono::minutes(1)) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  auto const body = [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(comm.rank())] = sentence_of([&] { f(comm); });
  };
  expar::run_ranks(ranks, body, deadline);
  return said;
}

}  // namespace expar_test

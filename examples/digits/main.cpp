// SPDX-License-Identifier: Apache-2.0

// Trains a mixture of experts on handwritten digits; the ranks are threads of this process.
#include <cstdio>
#include <exception>

#include <expar/comm/thread.hpp>

#include "demo.hpp"

int main(int count, char** words) try {
  auto const options = digits::parse_options(count, words, true);
  if (options.help) {
    std::fputs(digits::help_text("expar_demo", true).c_str(), stdout);
    return 0;
  }
  expar::run_ranks(options.ranks, [&](expar::thread_communicator& comm) {
    digits::run_demo(comm, options, "threads");
  });
} catch (digits::bad_usage const& e) {
  std::fprintf(stderr, "expar_demo: %s; --help tells what there is\n", e.what());
  return 2;
} catch (std::exception const& e) {
  std::fprintf(stderr, "expar_demo: %s\n", e.what());
  return 1;
}

// SPDX-License-Identifier: Apache-2.0

// Trains a mixture of experts on handwritten digits; the ranks are threads of this process, or
// share one CUDA device.
#include <cstdio>
#include <exception>

#include <expar/comm/thread.hpp>

#include "demo.hpp"
#include "device.hpp"

namespace {

#if defined(DIGITS_WITH_CUDA)
void run_on_device(digits::options const& o) {
  digits::device_network net(o.ranks, static_cast<std::uint64_t>(o.seed));
  digits::run_demo(net, o, net.name());
}
#else
void run_on_device(digits::options const&) {
  throw digits::bad_usage(
      "this program was built without a CUDA compiler, so there is no --device cuda");
}
#endif

}  // namespace

int main(int count, char** words) try {
  auto const options = digits::parse_options(count, words, true);
  if (options.help) {
    std::fputs(digits::help_text("expar_demo", true).c_str(), stdout);
    return 0;
  }
  if (options.device == "cuda") {
    run_on_device(options);
    return 0;
  }
  auto const place = digits::placement_of(options, options.ranks);
  auto const fault = digits::fault_of(options, options.ranks);
  struct left {};
  expar::run_ranks(options.ranks, [&](expar::thread_communicator& comm) {
    digits::network net(comm, static_cast<std::uint64_t>(options.seed), place);
    try {
      digits::run_demo(net, options, "threads", fault, [] { throw left(); });
    } catch (left const&) {  // the rank that is killed: its thread ends
    }
  });
} catch (digits::bad_usage const& e) {
  std::fprintf(stderr, "expar_demo: %s; --help tells what there is\n", e.what());
  return 2;
} catch (std::exception const& e) {
  std::fprintf(stderr, "expar_demo: %s\n", e.what());
  return 1;
}

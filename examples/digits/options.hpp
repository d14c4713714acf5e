// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace digits {

struct options {
  int ranks = 4;
  int seed = 1;
  int epochs = 100;
  std::string report = "expar_demo_report.html";
  std::string device = "cpu";
  bool help = false;
};

/// The command line makes no sense.
struct bad_usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline int parse_number(std::string const& name, std::string const& text, int least) {
  char* end = nullptr;
  errno = 0;
  long const n = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || n < least || n > INT_MAX)
    throw bad_usage(name + " is '" + text + "'; it is a whole number of at least " +
                    std::to_string(least));
  return static_cast<int>(n);
}

/// Reads the command line; `with_ranks`: whether there is a --ranks. Throws bad_usage.
inline options parse_options(int count, char const* const* words, bool with_ranks) {
  options o;
  for (int i = 1; i < count; ++i) {
    std::string const name = words[i];
    if (name == "--help" || name == "-h") {
      o.help = true;
      continue;
    }
    bool const known = name == "--seed" || name == "--epochs" || name == "--report" ||
                       (with_ranks && (name == "--ranks" || name == "--device"));
    if (!known) throw bad_usage("there is no option " + name);
    if (++i == count) throw bad_usage(name + " needs a value");
    if (name == "--ranks") o.ranks = parse_number(name, words[i], 1);
    if (name == "--seed") o.seed = parse_number(name, words[i], 0);
    if (name == "--epochs") o.epochs = parse_number(name, words[i], 1);
    if (name == "--report") o.report = words[i];
    if (name == "--device") o.device = words[i];
    if (o.device != "cpu" && o.device != "cuda")
      throw bad_usage("--device is '" + o.device + "'; it is cpu or cuda");
  }
  return o;
}

inline std::string help_text(std::string const& program, bool with_ranks) {
  return "usage: " + program +
         " [options]\n"
         "Trains a mixture of 8 experts, spread over ranks, to read handwritten digits.\n" +
         (with_ranks
              ? "  --ranks N     ranks (default 4)\n"
                "  --device NAME cpu: a thread for each rank (default); cuda: all ranks share "
                "one device\n"
              : "") +
         "  --seed N      what the initial weights and the order of the images come from (default "
         "1)\n"
         "  --epochs N    passes over the 1500 training images (default 100)\n"
         "  --report FILE where the report goes, an HTML page (default expar_demo_report.html)\n"
         "  --help        this text\n";
}

}  // namespace digits

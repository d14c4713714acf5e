// SPDX-License-Identifier: Apache-2.0
// What figures depend on, into the context of each report.
#include <benchmark/benchmark.h>

#include <fstream>
#include <string>

#include <limits/lines.hpp>

namespace {

/// The value of the first line that begins with `key`, or the first line.
std::string line_of(char const* path, std::string const& key = "") {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key)) return key.empty() ? line : line.substr(line.find(':') + 2);
  return "unknown";
}

[[maybe_unused]] bool const added = [] {
  benchmark::AddCustomContext("processor", line_of("/proc/cpuinfo", "model name"));
  benchmark::AddCustomContext("compiler", __VERSION__);
  benchmark::AddCustomContext("instructions", limits::instructions);
  benchmark::AddCustomContext("huge_pages", line_of("/sys/kernel/mm/transparent_hugepage/enabled"));
  return true;
}();

}  // namespace

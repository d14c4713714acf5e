// SPDX-License-Identifier: Apache-2.0
// Benchmarks that all processes run at once, of which one reports.
#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

namespace benchmarks {

struct no_report : benchmark::BenchmarkReporter {
  bool ReportContext(Context const&) override { return true; }
  void ReportRuns(std::vector<Run> const&) override {}
};

/// Rank 0 writes what the arguments ask for; the others run in silence, and open no file.
inline void run_benchmarks(int rank, int argc, char** argv) {
  std::vector<char*> arguments;
  for (int i = 0; i < argc; ++i)
    if (rank == 0 || !std::string(argv[i]).starts_with("--benchmark_out"))
      arguments.push_back(argv[i]);
  arguments.push_back(nullptr);
  int count = static_cast<int>(arguments.size()) - 1;
  benchmark::Initialize(&count, arguments.data());
  no_report none;
  if (rank == 0)
    benchmark::RunSpecifiedBenchmarks();
  else
    benchmark::RunSpecifiedBenchmarks(&none);
}

}  // namespace benchmarks

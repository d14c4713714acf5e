// SPDX-License-Identifier: Apache-2.0
// What the device path costs, as a share of limits that are measured in the same run and beside the
// algorithms of others. See usage below; predictions.md says what is expected.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "report.hpp"

namespace {

constexpr char usage[] =
    "expar_gpu_benchmarks [--filter TEXT] [--json FILE] [--quick] [--check]\n"
    "  --filter TEXT  only operation/configuration/ids whose name has TEXT, as in "
    "encode/gpt-oss/zipf\n"
    "  --json FILE    writes all figures, anew after every block; benchmarks/plot.py draws them\n"
    "  --quick        deepseek-v3 and decode-128 with uniform ids, fewer repetitions\n"
    "  --check        compares every variant with references on small shapes, and times nothing;\n"
    "                 exits with 77 where there is no device\n";

/// Figures need graphs; a device that is interpreted has none.
bool can_time(cudaStream_t s) {
  cudaGraph_t graph = nullptr;
  bool const can = cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess &&
                   cudaStreamEndCapture(s, &graph) == cudaSuccess;
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());
  return can;
}

void all_operations(bench::suite& s, bench::config const& c, bench::spread ids) {
  bench::problem const p(c, ids);
  for (auto const measure : {bench::measure_plan, bench::measure_rows, bench::measure_quantized,
                             bench::measure_gate, bench::measure_dense})
    try {
      measure(s, p);
    } catch (std::exception const& e) {  // the next may do; but not on a device that is lost
      s.fail(p.name + ", " + bench::name_of(ids) + ": " + e.what());
      bench::ok(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
}

void print_notes(bench::suite const& s) {
  for (auto const& n : s.notes()) std::printf("note: %s\n", n.c_str());
}

int check(bench::suite s) {
  for (auto const& c : bench::tiny_configs())
    for (auto const ids : bench::spreads) all_operations(s, c, ids);
  print_notes(s);
  std::printf("expar gpu benchmarks: %d variants checked, %d wrong; nothing was timed\n",
              s.checked(), s.failed());
  return s.failed() == 0 && s.checked() > 0 ? 0 : 1;
}

int run(bench::options const& o) {
  int devices = 0;
  cudaError_t const code = cudaGetDeviceCount(&devices);
  if (devices == 0) {
    std::printf("expar gpu benchmarks: no device (%s); %s\n", cudaGetErrorString(code),
                o.check ? "nothing was checked" : "no figures");
    return o.check ? 77 : 0;  // 77: skipped
  }
  cudaDeviceProp properties{};
  bench::ok(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  if (o.check) return check(bench::suite(o, properties, {}));
  bench::machine const m(properties);
  auto const write = [&](bench::suite const& s, bool complete) {
    if (o.json.empty()) return;
    std::string const part = o.json + ".part";  // a whole file stands there at any time
    std::ofstream file(part);
    bench::write_json(file, m, s, complete);
    file.close();
    if (!file || std::rename(part.c_str(), o.json.c_str()) != 0)
      throw std::runtime_error(o.json + " cannot be written");
  };
  bench::suite s(o, properties, [&](std::vector<bench::row> const& rows) {
    bench::print_block(rows);
    write(s, false);
  });
  if (!can_time(s.stream())) {
    std::printf("expar gpu benchmarks: \"%s\" captures no graphs; no figures (--check works)\n",
                properties.name);
    return 0;
  }
  write(s, false);
  s.ceilings();
  bench::print_ceilings(m, s);
  for (auto const& c : bench::configs())
    for (auto const ids : bench::spreads)
      if (!o.quick ||
          (ids == bench::spread::uniform && (c.name == "deepseek-v3" || c.name == "decode-128")))
        all_operations(s, c, ids);
  print_notes(s);
  write(s, true);
  return s.failed() == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a run may be cut off
  bench::options o;
  for (int i = 1; i < argc; ++i) {
    std::string const a = argv[i];
    if (a == "--check")
      o.check = true;
    else if (a == "--quick")
      o.quick = true;
    else if (a == "--filter" && i + 1 < argc)
      o.filter = argv[++i];
    else if (a == "--json" && i + 1 < argc)
      o.json = argv[++i];
    else
      return std::fprintf(stderr, "%s", usage), a == "--help" ? 0 : 2;
  }
  try {
    return run(o);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "expar gpu benchmarks: %s\n", e.what());
    return 1;
  }
}

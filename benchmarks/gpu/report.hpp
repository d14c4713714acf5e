// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdio>
#include <ctime>
#include <ostream>
#include <string>

#include "suite.hpp"

namespace bench {

/// The machine, as the report names it.
struct machine {
  std::string device, driver, clock_mhz, date;
  int major, minor, multiprocessors, driver_cuda = 0, runtime_cuda = 0;
  std::size_t memory_bytes, l2_bytes;

  explicit machine(cudaDeviceProp const& d)
      : device(d.name),
        major(d.major),
        minor(d.minor),
        multiprocessors(d.multiProcessorCount),
        memory_bytes(d.totalGlobalMem),
        l2_bytes(static_cast<std::size_t>(d.l2CacheSize)) {
    ok(cudaDriverGetVersion(&driver_cuda), "cudaDriverGetVersion");
    ok(cudaRuntimeGetVersion(&runtime_cuda), "cudaRuntimeGetVersion");
    char bus[32] = "0", text[32];
    static_cast<void>(cudaDeviceGetPCIBusId(bus, sizeof bus, 0));
    std::string const ask =
        std::string("nvidia-smi -i ") + bus + " --format=csv,noheader,nounits --query-gpu=";
    driver = answer(ask + "driver_version"), clock_mhz = answer(ask + "clocks.sm");
    std::time_t const now = std::time(nullptr);
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    date = text;
  }

 private:
  static std::string answer(std::string const& command) {
    std::string line;
    if (std::FILE* const f = popen((command + " 2>/dev/null").c_str(), "r")) {
      for (int c; (c = std::fgetc(f)) != EOF && c != '\n';) line += static_cast<char>(c);
      pclose(f);
    }
    return line.empty() ? "unknown" : line;
  }
};

inline std::string quoted(std::string const& s) {
  std::string q = "\"";
  for (char const c : s) {
    if (c == '"' || c == '\\') q += '\\';
    q += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return q + '"';
}
inline std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", x);
  return std::isfinite(x) ? text : "null";
}
inline std::string json_of(timing const& t) {
  return "\"us\": " + number(t.median) + ", \"us_p10\": " + number(t.p10) +
         ", \"us_p90\": " + number(t.p90) + ", \"calls_per_graph\": " + std::to_string(t.calls) +
         ", \"launches\": " + std::to_string(t.launches);
}
inline char const* name_of(variant::kind k) {
  constexpr char const* names[] = {"expar", "peer", "limit"};
  return names[static_cast<int>(k)];
}

/// Everything so far, for programs. A rejected row has no figures.
inline void write_json(std::ostream& o, machine const& m, suite const& s, bool complete) {
  o << "{\n\"schema\": 1, \"date\": " << quoted(m.date)
    << ", \"complete\": " << (complete ? "true" : "false")
    << ", \"quick\": " << (s.chosen().quick ? "true" : "false")
    << ", \"filter\": " << quoted(s.chosen().filter)
    << ",\n\"device\": {\"name\": " << quoted(m.device) << ", \"compute_capability\": \"" << m.major
    << '.' << m.minor << "\", \"multiprocessors\": " << m.multiprocessors
    << ", \"memory_bytes\": " << m.memory_bytes << ", \"l2_bytes\": " << m.l2_bytes
    << ", \"driver\": " << quoted(m.driver) << ", \"driver_cuda\": " << m.driver_cuda
    << ", \"runtime_cuda\": " << m.runtime_cuda << ", \"sm_clock_mhz\": " << quoted(m.clock_mhz)
    << "},\n\"ceilings\": [";
  char const* next = "\n";
  for (auto const& c : s.measured_ceilings()) {
    o << next << "{\"name\": " << quoted(c.name) << ", \"bytes\": " << number(c.bytes)
      << ", \"tb_per_s\": " << number(c.bytes / c.time.median * 1e-6) << ", " << json_of(c.time)
      << '}';
    next = ",\n";
  }
  o << "],\n\"rows\": [", next = "\n";
  for (auto const& r : s.rows()) {
    o << next << "{\"op\": " << quoted(r.op) << ", \"config\": " << quoted(r.config)
      << ", \"ids\": " << quoted(r.ids) << ", \"state\": " << quoted(r.state)
      << ", \"sets\": " << r.sets << ", \"kind\": \"" << name_of(r.is)
      << "\", \"variant\": " << quoted(r.name) << ", \"algorithm\": " << quoted(r.algorithm)
      << ", \"same_bytes_3_runs\": " << (r.same_bytes ? "true" : "false")
      << ", \"bytes\": " << number(r.bytes) << ", \"copy_drift\": " << number(r.copy_drift)
      << ", \"rejected\": " << (r.counts ? "false" : "true");
    if (r.counts) {
      o << ", " << json_of(r.time) << ", \"tb_per_s\": " << number(r.bytes / r.time.median * 1e-6)
        << ", \"floor_us\": " << number(r.floor_us)
        << ", \"share_of_floor\": " << number(r.share_of_floor)
        << ", \"share_of_copy\": " << number(r.share_of_copy) << ", \"peers\": {";
      char const* comma = "";
      for (auto const& [peer, ratio] : r.ratios)
        o << comma << quoted(peer) << ": " << number(ratio), comma = ", ";
      o << '}';
    }
    o << '}', next = ",\n";
  }
  o << "],\n\"notes\": [", next = "\n";
  for (auto const& n : s.notes()) o << next << quoted(n), next = ",\n";
  o << "]\n}\n";
}

// The same for people, part by part.
inline void print_ceilings(machine const& m, suite const& s) {
  std::printf("\n%s, compute capability %d.%d, driver %s, CUDA %d, SM clock %s MHz, %s\n\n",
              m.device.c_str(), m.major, m.minor, m.driver.c_str(), m.runtime_cuda,
              m.clock_mhz.c_str(), m.date.c_str());
  for (auto const& c : s.measured_ceilings())
    std::printf("%-28s %10.2f us %8.3f TB/s\n", c.name.c_str(), c.time.median,
                c.bytes / c.time.median * 1e-6);
}
inline void print_block(std::vector<row> const& rows) {
  auto const& b = rows.front();
  std::printf("\n%s, %s, ids %s, %s: %.1f MB\n%-28s %9s %9s %9s %7s %7s %7s %9s %10s %7s\n",
              b.op.c_str(), b.config.c_str(), b.ids.c_str(), b.state.c_str(), b.bytes / 1e6, "",
              "us", "p10", "p90", "TB/s", "% copy", "% floor", "launches", "same bytes", "x ours");
  for (auto const& r : rows) {
    if (!r.counts) {
      std::printf("%-28s rejected: the copy drifted by %.1f %%\n", r.name.c_str(),
                  100 * r.copy_drift);
      continue;
    }
    std::printf("%-28s %9.2f %9.2f %9.2f %7.3f %7.1f %7.1f %9d %10s", r.name.c_str(), r.time.median,
                r.time.p10, r.time.p90, r.bytes / r.time.median * 1e-6, 100 * r.share_of_copy,
                100 * r.share_of_floor, r.time.launches, r.same_bytes ? "yes" : "no");
    if (r.is == variant::kind::peer) std::printf(" %7.2f", r.times_ours);
    std::printf("\n");
  }
}

}  // namespace bench

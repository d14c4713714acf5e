// SPDX-License-Identifier: Apache-2.0
// Compares the kernels of some cubins with a table of what they may use.
//   figures TABLE VERSION check|record FOLDER ARCH...
// FOLDER holds ARCH.cubin and ARCH.log, what ptxas -v said; VERSION is the compiler's. `record`
// writes the table anew: limits stay, and a new kernel may use what it uses now.
#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct figures {
  int registers = 0, stack = 0;
  int loads16 = 0, stores16 = 0;  // of global memory
  int local = 0, generic = 0;     // accesses of local memory, and of who knows which
};
using kernels = std::map<std::string, figures>;

[[noreturn]] void fail(std::string const& sentence) {
  std::fprintf(stderr, "%s\n", sentence.c_str());
  std::exit(1);
}

std::string content(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A kernel's name and template arguments, without namespaces and parameters.
std::string readable(std::string const& symbol) {
  char* const demangled = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr);
  std::string name = demangled != nullptr ? demangled : symbol;
  std::free(demangled);
  for (std::string const prefix : {"void ", "expar::", "v0::", "gpu::", "detail::"})
    for (std::size_t at; (at = name.find(prefix)) != std::string::npos;)
      name.erase(at, prefix.size());
  int depth = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) name.resize(i);
  }
  return name;
}

/// What ptxas -v says of each kernel: its name, its stack frame, its registers.
kernels read_log(std::string const& path) {
  std::istringstream log(content(path));
  kernels all;
  figures* now = nullptr;
  for (std::string line; std::getline(log, line);) {
    int n = 0;
    std::string const entry = "entry function '";
    if (auto const at = line.find(entry); at != std::string::npos) {
      auto const begin = at + entry.size();
      now = &all[readable(line.substr(begin, line.find('\'', begin) - begin))];
    } else if (now != nullptr && std::sscanf(line.c_str(), " %d bytes stack frame", &n) == 1) {
      now->stack = n;
    } else if (auto const used = line.find("Used "); now != nullptr && used != std::string::npos) {
      now->registers = std::atoi(line.c_str() + used + 5);
    }
  }
  return all;
}

template <class T>
T read_at(std::string const& bytes, std::size_t at) {
  T value;
  if (at + sizeof value > bytes.size()) fail("a cubin ends too early");
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

/// Counts the accesses in the code of each kernel. A cubin is a 64-bit ELF file whose sections
/// .text.<kernel> hold instructions of 16 bytes; from sm_70 to sm_100 bits 0 to 8 of one say what
/// it does, and bits 73 to 75 of an access how wide it is.
void read_code(std::string const& path, kernels& all) {
  std::string const file = content(path);
  auto const table = read_at<std::uint64_t>(file, 0x28);
  auto const size = read_at<std::uint16_t>(file, 0x3a), count = read_at<std::uint16_t>(file, 0x3c);
  auto const field = [&](std::uint64_t section, std::uint64_t at) {
    return read_at<std::uint64_t>(file, table + section * size + at);
  };
  auto const names = field(read_at<std::uint16_t>(file, 0x3e), 0x18);
  for (std::uint64_t s = 0; s < count; ++s) {
    std::string const name = file.c_str() + names + read_at<std::uint32_t>(file, table + s * size);
    auto const kernel = all.find(name.rfind(".text.", 0) == 0 ? readable(name.substr(6)) : "");
    if (kernel == all.end()) continue;
    auto const begin = field(s, 0x18), end = begin + field(s, 0x20);
    for (auto at = begin; at < end; at += 16) {
      bool const wide = (read_at<std::uint64_t>(file, at + 8) >> 9 & 7) == 6;
      figures& f = kernel->second;
      switch (read_at<std::uint64_t>(file, at) & 0x1ff) {
        case 0x181:
          f.loads16 += wide;
          break;  // LDG
        case 0x186:
          f.stores16 += wide;
          break;  // STG
        case 0x183:
        case 0x187:
          ++f.local;
          break;  // LDL, STL
        case 0x180:
        case 0x185:
          ++f.generic;
          break;  // LD, ST
        default:
          break;
      }
    }
  }
}

struct row {
  int limit = 0;
  std::vector<int> registers;  // by architecture
  std::string access;          // "16": rows are read and written 16 bytes at a time; "-": no claim
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) fail("usage: figures TABLE VERSION check|record FOLDER ARCH...");
  std::string const table = argv[1], version = argv[2], folder = argv[4];
  bool const record = std::strcmp(argv[3], "record") == 0;
  std::vector<std::string> const archs(argv + 5, argv + argc);

  std::map<std::string, row> recorded;
  std::string recorded_version;
  if (std::ifstream file(table); file)
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string word, name;
      row r{0, std::vector<int>(archs.size()), "-"};
      if (line.rfind("# nvcc ", 0) == 0) recorded_version = line.substr(7);
      if (line.empty() || line[0] == '#') continue;
      words >> r.limit;
      for (int& n : r.registers) words >> n;
      words >> r.access >> std::ws;
      if (!std::getline(words, name)) fail(table + ": this is no row: " + line);
      recorded[name] = r;
    }

  std::vector<kernels> measured;
  std::set<std::string> names;
  for (std::string const& arch : archs) {
    measured.push_back(read_log(folder + "/" + arch + ".log"));
    read_code(folder + "/" + arch + ".cubin", measured.back());
    for (auto const& [name, f] : measured.back()) names.insert(name);
  }

  if (record) {
    std::ofstream out(table);
    out << "# nvcc " << version << "\n"
        << "# Registers of the kernels in kernels.cu, and what each may use at most. No kernel has "
           "a "
           "stack\n# frame or generic accesses; \"16\": its rows are read and written 16 bytes at "
           "a "
           "time.\n# After a change: cmake --build <folder> --target expar_record_figures\n# limit";
    for (std::string const& arch : archs) out << "  " << arch;
    out << "  access  kernel\n";
    for (std::string const& name : names) {
      row r;
      bool wide = true;
      for (kernels const& k : measured) {
        auto const at = k.find(name);
        figures const f = at == k.end() ? figures{} : at->second;
        r.registers.push_back(f.registers);
        r.limit = std::max(r.limit, f.registers);
        wide = wide && f.loads16 != 0 && f.stores16 != 0;
      }
      r.access = wide ? "16" : "-";
      if (auto const old = recorded.find(name); old != recorded.end())
        r.limit = old->second.limit, r.access = old->second.access;
      char text[32];
      std::snprintf(text, sizeof text, "%7d", r.limit);
      out << text;
      for (std::size_t a = 0; a < archs.size(); ++a) {
        std::snprintf(text, sizeof text, "  %*d", static_cast<int>(archs[a].size()),
                      r.registers[a]);
        out << text;
      }
      std::snprintf(text, sizeof text, "  %6s", r.access.c_str());
      out << text << "  " << name << "\n";
    }
    return 0;
  }

  int wrong = 0;
  for (std::string const& name : names)
    if (recorded.count(name) == 0)
      std::printf("WRONG  %s is not in the table\n", name.c_str()), ++wrong;
  for (auto const& [name, r] : recorded)
    for (std::size_t a = 0; a < archs.size(); ++a) {
      auto const at = measured[a].find(name);
      figures const f = at == measured[a].end() ? figures{} : at->second;
      std::string complaint;
      if (at == measured[a].end())
        complaint = "has vanished";
      else if (f.registers == 0)
        complaint = "has no figure in what ptxas says";
      else if (f.registers > r.limit)
        complaint = "uses more registers than its limit, " + std::to_string(r.limit);
      else if (version == recorded_version && f.registers != r.registers[a])
        complaint = "is recorded with " + std::to_string(r.registers[a]) + " registers";
      else if (f.stack != 0 || f.local != 0)
        complaint = "uses local memory";
      else if (f.generic != 0)
        complaint = "has generic accesses";
      else if (r.access == "16" && (f.loads16 == 0 || f.stores16 == 0))
        complaint = "does not read and write 16 bytes at a time";
      wrong += complaint.empty() ? 0 : 1;
      std::printf("%s  %-6s %3d registers, 16-byte loads %2d and stores %2d  %s%s%s\n",
                  complaint.empty() ? "ok   " : "WRONG", archs[a].c_str(), f.registers, f.loads16,
                  f.stores16, name.c_str(), complaint.empty() ? "" : ": ", complaint.c_str());
    }
  if (recorded.empty()) fail(table + " has no rows");
  if (wrong != 0) std::printf("%d wrong\n", wrong);
  return wrong == 0 ? 0 : 1;
}

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include <expar/plan/placement.hpp>

#include "model.hpp"

namespace digits {

struct options {
  int ranks = 4;
  int seed = 1;
  int epochs = 100;
  int replicas = 1;
  bool whole = false;
  int skip = -1, kill = -1;  // a rank
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
    if (name == "--whole") {
      o.whole = true;
      continue;
    }
    bool const known = name == "--seed" || name == "--epochs" || name == "--report" ||
                       name == "--replicas" || name == "--skip" || name == "--kill" ||
                       (with_ranks && (name == "--ranks" || name == "--device"));
    if (!known) throw bad_usage("there is no option " + name);
    if (++i == count) throw bad_usage(name + " needs a value");
    if (name == "--ranks") o.ranks = parse_number(name, words[i], 1);
    if (name == "--seed") o.seed = parse_number(name, words[i], 0);
    if (name == "--epochs") o.epochs = parse_number(name, words[i], 1);
    if (name == "--replicas") o.replicas = parse_number(name, words[i], 1);
    if (name == "--skip") o.skip = parse_number(name, words[i], 0);
    if (name == "--kill") o.kill = parse_number(name, words[i], 0);
    if (name == "--report") o.report = words[i];
    if (name == "--device") o.device = words[i];
    if (o.device != "cpu" && o.device != "cuda")
      throw bad_usage("--device is '" + o.device + "'; it is cpu or cuda");
  }
  if (o.whole && o.replicas > 1)
    throw bad_usage("--replicas and --whole are two ways to place the experts; choose one");
  if (o.skip >= 0 && o.kill >= 0) throw bad_usage("--skip and --kill are two faults; choose one");
  if (o.device == "cuda" && (o.skip >= 0 || o.kill >= 0))
    throw bad_usage("--device cuda has no ranks that fail: no --skip, no --kill");
  if (o.device == "cuda" && (o.whole || o.replicas > 1))
    throw bad_usage("--device cuda has one copy of every expert: no --replicas, no --whole");
  if (o.device == "cuda" && o.ranks > experts)
    throw bad_usage("--ranks is " + std::to_string(o.ranks) + "; with --device cuda at most " +
                    std::to_string(experts) + ", the experts, are possible");
  return o;
}

/// Where the experts are. More ranks than experts share each of them out. Throws bad_usage.
inline expar::placement placement_of(options const& o, int ranks) {
  if (o.whole) return expar::placement::whole(experts, ranks);
  if (o.replicas > ranks)
    throw bad_usage("--replicas is " + std::to_string(o.replicas) +
                    "; the copies of an expert are on different ranks, of which there are " +
                    std::to_string(ranks));
  if (o.replicas > 1) return expar::placement::replicated(experts, ranks, o.replicas);
  if (ranks <= experts) return expar::placement::blocks(experts, ranks);
  if (ranks > experts * width)
    throw bad_usage("there are " + std::to_string(ranks) + " ranks; at most " +
                    std::to_string(experts * width) + " can share the outputs of the experts");
  return expar::placement::sharded(experts, ranks, (ranks + experts - 1) / experts);
}

inline int most_copies(expar::placement const& place) {
  int most = 0;
  for (int e = 0; e < place.experts(); ++e) most = std::max(most, place.copies(e));
  return most;
}
/// "expert 4", "experts 4, 5": those without a copy.
inline std::string lost_experts(expar::placement const& place) {
  std::string list;
  int lost = 0;
  for (int e = 0; e < place.experts(); ++e)
    if (place.copies(e) == 0) list += (lost++ == 0 ? " " : ", ") + std::to_string(e);
  return lost == 0 ? "" : (lost == 1 ? "expert" : "experts") + list;
}
/// "1 rank", "2 ranks"
inline std::string ranks_text(int ranks) {
  return std::to_string(ranks) + (ranks == 1 ? " rank" : " ranks");
}

/// "8 experts on 4 ranks", and how.
inline std::string placement_text(expar::placement const& place) {
  std::string const text =
      std::to_string(place.experts()) + " experts on " + ranks_text(place.ranks());
  if (place.ranks() > 1 && place == expar::placement::whole(place.experts(), place.ranks()))
    return text + ", all of them on each";
  std::string const lost = lost_experts(place), without = lost.empty() ? "" : ", without " + lost;
  if (place.shards() > 1)
    return text + ", each in " + std::to_string(place.shards()) + " shards" + without;
  int const most = most_copies(place);
  bool same = true;
  for (int e = 0; e < place.experts(); ++e) same = same && place.copies(e) == most;
  if (most > 1)
    return text + (same ? ", " : ", up to ") + std::to_string(most) + " copies of each" + without;
  return text + without;
}

inline std::string help_text(std::string const& program, bool with_ranks) {
  return "usage: " + program +
         " [options]\n"
         "Trains a mixture of 8 experts, spread over ranks, to read handwritten digits.\n" +
         (with_ranks
              ? "  --ranks N     ranks (default 4); more than 8 share out the experts' outputs\n"
                "  --device NAME cpu: a thread for each rank (default); cuda: all ranks share "
                "one device\n"
              : "") +
         "  --replicas N  copies of every expert, on different ranks (default 1)\n"
         "  --whole       every rank has all experts, and its images stay there\n"
         "  --skip R      rank R throws in the middle of the training, and leaves a combine out: "
         "all ranks\n"
         "                get one sentence, and repeat the step\n" +
         (with_ranks
              ? "  --kill R      the thread of rank R ends in the middle of the training: the "
                "others "
                "go on with\n"
              : "  --kill R      rank R never comes again (SIGKILL under mpirun --enable-recovery, "
                "else it only\n"
                "                stops): the others hear of it after 2 s, and go on with\n") +
         "                the weights that they have, and share all images. The trunk is on every "
         "rank; an\n"
         "                expert is lost with its last copy: its routes are dropped, and counted. "
         "With\n"
         "                --replicas 2 nothing is lost\n"
         "  --seed N      what the initial weights and the order of the images come from (default "
         "1)\n"
         "  --epochs N    passes over the 1500 training images (default 100)\n"
         "  --report FILE where the report goes, an HTML page (default expar_demo_report.html)\n"
         "  --help        this text\n"
         "The trained weights have the same bits for any number of ranks and of copies. Experts "
         "that\n"
         "are shared out round their sums otherwise, which depends on the number of shards.\n";
}

}  // namespace digits

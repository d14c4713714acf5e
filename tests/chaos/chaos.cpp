// SPDX-License-Identifier: Apache-2.0
// Whatever goes wrong on one rank, all ranks say the same sentence, and the objects work at once:
// every fault in every step, over every transport, with ranks that come late at random. It prints
// how often, and exits with 1 if something was wrong or never tried. Who starts it watches that it
// ends.
//   expar_chaos [--seconds S | --firings N] [--seed S] [--ranks R] [--only TEXT]
// S: about so long, but until each has been tried; N: at least so many firings of each.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#ifdef EXPAR_CHAOS_MPI
#include <expar/comm/mpi_node.hpp>
#else
#include <barrier>

#include <expar/comm/thread.hpp>
#endif

#include "../support/random.hpp"
#include "table.hpp"

namespace chaos {
namespace {

struct settings {
  double seconds = 0;
  long firings = 1;
  std::uint64_t seed = 1;
  int ranks = 0;  // 0: all numbers in turn
  std::string only;
  bool used[kinds] = {};
  bool hurry = false;  // time is over

  bool wants(fault f, step s, kind k) const {
    std::string const text = std::string(name_of(f)) + ", " + name_of(s) + ", " + name_of(k);
    return used[static_cast<int>(k)] && applies(f, s, k) && text.find(only) != std::string::npos;
  }
  bool enough_of(long fired) const { return fired >= firings && (seconds <= 0 || hurry); }
};

/// What a rank tells about a firing: by another way than the one that is tried.
struct record {
  bool fired, raw;  // raw: it has thrown alone, before ranks agreed
  bool enough;      // time is over
  int at;           // the call in which it threw what ranks agreed on; -1: none
  char said[expar::error::room], wrong[200];

  void note(char const* where, char const* what) {
    if (wrong[0] == '\0') std::snprintf(wrong, sizeof wrong, "%s: %s", where, what);
  }
};

/// One rank of a group that lives for many firings.
template <class X, class C, class Layout, class Site>
class player {
 public:
  player(problem const& p, C& comm, trap& on_rank, bool shared)
      : p_(p), comm_(comm), trap_(on_rank), layers_(p, comm, on_rank, shared) {
    layers_.construct(0), layers_.construct(1);
    for (int i = 0; i < 4; ++i) {
      passage w{i % 2, i / 2, static_cast<std::uint64_t>(i)};
      for (step const call : calls_of(step::prepare, false)) layers_.run(w, call);
    }
  }

  /// The n-th firing: once other calls have gone well, `culprit` meets the fault in a step, what it
  /// brings for the `times`-th time, while the others go on; and then all go on.
  record fire(fault f, step s, std::uint64_t n, int culprit, int times) {
    expar_test::random draw(p_.seed + 1000 * n);
    late_ = expar_test::random(p_.seed + 1000 * n + passage::of_rank(comm_.rank()));
    bool const constructs = s == step::construct || f == fault::memory;
    bool const crosses = f == fault::object || f == fault::batch;
    step const begin[] = {step::prepare, step::quotas, step::fused};
    bool const begins = s == step::prepare || s == step::quotas || s == step::fused;
    auto const calls =
        calls_of(begins ? s : begin[draw.integer(0, s == step::rows ? 1 : 2)], constructs);
    // More copies need memory, and many tokens a pool.
    std::uint64_t const stamp = 9 * n + 9;
    auto const placed = static_cast<std::uint64_t>(f == fault::memory ? 1 : draw.integer(0, 2));
    passage a{constructs ? 2 : static_cast<int>(draw.integer(0, 1)), 0, stamp + placed};
    if (f == fault::pool) {
      // By a chain the rows of others pass through as well.
      bool const of_others = std::is_same_v<X, expar::hops<C>> && draw.chance(.3);
      a.of = of_others ? static_cast<int>(draw.integer(0, p_.ranks - 1)) : culprit;
      a.many = begins || draw.chance(.1) ? 66000 : 11000;
    }
    passage other{f == fault::object ? 1 - a.object : a.object, f == fault::batch, stamp + 3};
    passage next{constructs ? 0 : a.object, 0, stamp + 4};
    bool const by_network = f == fault::before || f == fault::after;  // for good, it is lost
    fault_ = {f, times, !by_network && draw.chance(.5),
              static_cast<int>(draw.integer(1, layers_.wrongs(s))), draw.chance(.5) ? 64 : 1};

    record r{};
    std::size_t here = 0;
    attempt(r, "before", [&] {
      for (; calls[here] != s; ++here) {
        layers_.run(a, calls[here]);
        if (crosses) layers_.run(other, calls[here]);
      }
    });
    bool const mine = comm_.rank() == culprit, skips = mine && f == fault::skip;
    bool const leaves = mine && (f == fault::user || (skips && s == step::construct));
    todo_.clear();
    if (mine && (f == fault::sum || f == fault::report)) todo_.push_back({nullptr, s});
    if (mine && crosses) todo_.push_back({&other, s});
    for (std::size_t i = here + skips; i < calls.size() && !leaves; ++i)
      todo_.push_back({&a, calls[i]});
    for (step const later : calls_of(step::prepare, false)) todo_.push_back({&next, later});
    go_on(r, mine);
    layers_.forget(2);
    for (int i = 0; i < 2; ++i) {
      passage w{i, 0, stamp + 5 + static_cast<std::uint64_t>(i)};
      auto const again = calls_of(begin[draw.integer(0, 2)], false);
      attempt(r, "afterwards", [&] {
        for (step const call : again) dawdle(), layers_.run(w, call);
      });
    }
    return r;
  }

 private:
  struct firing {
    fault what;
    int times;
    bool for_good;
    int wrong;
    index_t values;
    bool is_armed() const { return what >= fault::view && what <= fault::after; }
  };

  /// What this rank calls until ranks agree that something is wrong.
  void go_on(record& r, bool mine) {
    r.at = -1, r.fired = mine && !fault_.is_armed();
    for (std::size_t at = 0; at < todo_.size() && r.at < 0; ++at) {
      auto const [w, call] = todo_[at];
      bool const faulty = at == 0 && mine, armed = faulty && fault_.is_armed();
      dawdle();
      try {
        if (armed) trap_.arm(fault_.what, fault_.times, fault_.for_good);
        if (w != nullptr)
          layers_.run(*w, call, faulty && fault_.what == fault::argument ? fault_.wrong : 0);
        else if (fault_.what == fault::sum)
          layers_.sum_counts(fault_.values);
        else
          layers_.gather_report();
      } catch (wrong_row const& e) {
        r.note(name_of(call), e.what());
      } catch (std::exception const& e) {
        // What is thrown as it is has not been told to others.
        r.raw = r.raw || (faulty && std::strncmp(e.what(), "expar: ", 7) != 0);
        if (!r.raw || at != 0) {
          r.at = static_cast<int>(at);
          std::snprintf(r.said, sizeof r.said, "%s", e.what());
        }
      }
      if (armed) trap_.disarm(), r.fired = trap_.fired;
    }
  }
  template <class F>
  static void attempt(record& r, char const* when, F f) {
    if (r.wrong[0] != '\0') return;
    try {
      f();
    } catch (std::exception const& e) {
      r.note(when, e.what());
    }
  }
  void dawdle() {
    if (late_.chance(.2))
      std::this_thread::sleep_for(std::chrono::microseconds(late_.integer(0, 200)));
  }

  problem p_;
  C& comm_;
  trap& trap_;
  expar_test::random late_{0};
  firing fault_{};
  std::vector<std::pair<passage*, step>> todo_;  // no passage: what the fault is
  layers<X, C, Layout, Site> layers_;
};

/// Whether that is what all ranks have to say.
bool fits(std::string const& said, fault f, step s, int culprit) {
  std::string const rank = "rank " + std::to_string(culprit), at = " (" + rank + ")";
  auto const has = [&](std::string const& part) { return said.find(part) != std::string::npos; };
  if (f == fault::view) return has("the tensor is gone" + at);
  if (f == fault::pool) return has("the pool is gone" + at) || has(rank + " could not copy");
  if (f == fault::memory) return has("bad_alloc" + at) || has("has no memory");
  if (f == fault::before || f == fault::after) return has("the network is gone" + at);
  if (f == fault::skip) return has(" while rank ") || has(at);  // it may see by itself
  if (f != fault::argument) return has(" while rank ");
  return has(at) || (s <= step::place && has("pass the same"));
}

/// What was wrong with a firing; empty: nothing. All ranks come to the same.
std::string judge(std::vector<record> const& all, fault f, step s, int culprit, bool& same) {
  auto const ranks = static_cast<int>(all.size());
  auto const& its = all[static_cast<std::size_t>(culprit)];
  std::string wrong;
  same = its.said[0] != '\0';
  for (int r = 0; r < ranks; ++r) {
    record const& o = all[static_cast<std::size_t>(r)];
    std::string const rank = "rank " + std::to_string(r);
    if (o.wrong[0] != '\0') wrong += "\n  " + rank + ", " + o.wrong;
    if (!its.fired && o.at >= 0) wrong += "\n  " + rank + " throws without a fault: " + o.said;
    if (!its.fired) continue;
    same = same && std::strcmp(o.said, its.said) == 0;
    if (o.raw && f != fault::pool) wrong += "\n  " + rank + " throws alone";
    bool const behind = f == fault::after && r != culprit && o.at == 1;
    if (o.at != (its.raw ? 1 : 0) && !behind)
      wrong += "\n  " + rank + " throws in call " + std::to_string(o.at);
  }
  if (its.fired && (!same || !fits(its.said, f, s, culprit)))
    for (int r = 0; r < ranks; ++r)
      wrong += "\n  rank " + std::to_string(r) + " says " + all[static_cast<std::size_t>(r)].said;
  return wrong;
}

/// Any chain but the straight one.
inline expar::chain draw_way(expar_test::random& draw, int ranks) {
  using expar::chain, expar::topology;
  auto const how = draw.chance(.5) ? expar::sum::per_hop : expar::sum::exact;
  topology nodes = topology::blocks(ranks, static_cast<int>(draw.integer(1, 3)));
  if (draw.chance(.2)) {  // nodes that are not alike, and not in a row
    std::vector<int> colours;
    for (int r = 0; r < ranks; ++r) colours.push_back(static_cast<int>(draw.integer(0, 2)));
    nodes = topology::of_colours(colours);
  }
  auto const which = draw.integer(0, 4);
  return which == 0   ? chain::once_per_rank(ranks, how)
         : which == 1 ? chain::aggregated(nodes)
         : which == 2 ? chain::gathered(nodes)
                      : chain::once_per_node(nodes, how);
}

/// One pass over the cells of a transport, by one rank of a group; `tell(record)` gives those of
/// all ranks. False after what leaves the group in doubt.
template <class X, class C, class Layout, class Site = expar::weights_at_decode, class Base,
          class Tell>
bool pass(settings& set, tally& done, kind k, Base& base, std::uint64_t group, Tell tell) {
  expar_test::random draw(set.seed + 77777 * group);
  int const experts = static_cast<int>(draw.integer(1, 6));
  index_t const widths[] = {4, 5, 8};
  problem const p{draw.bits() >> 20,           base.size(),
                  experts == 1 ? 60 : experts, widths[draw.integer(0, 2)],
                  widths[draw.integer(0, 2)],  draw_way(draw, base.size())};
  trap on_rank;
  bool const by_v = draw.chance(.5), shared = draw.chance(.5);
  C comm(base, on_rank, by_v);
  player<X, C, Layout, Site> mine(p, comm, on_rank, shared);
  std::uint64_t n = 0;
  bool fine = true;
  tally::each([&](fault f, step s, kind of) {
    constexpr bool has_capacity = std::is_same_v<Layout, expar::fixed_capacity>;
    if (of != k || !set.wants(f, s, k) || !fine) return;
    if (f == fault::pool && has_capacity) return;  // whose rows would be too many
    tally::cell& c = done.at(f, s, k);
    for (int turn = 0; turn < 8 && fine && !set.enough_of(c.fired); ++turn) {
      int const culprit = static_cast<int>(draw.integer(0, p.ranks - 1));
      int const times = static_cast<int>(draw.integer(0, c.depth));
      record r = mine.fire(f, s, n++, culprit, times);
      r.enough = set.seconds > 0 && done.seconds() > set.seconds;
      auto const all = tell(r);
      bool same = false;
      auto const wrong = judge(all, f, s, culprit, same);
      bool const fired = all[static_cast<std::size_t>(culprit)].fired;
      set.hurry = all[0].enough, fine = wrong.empty();
      if (fired || !fine) done.count(c, times, same, fine);
      if (base.rank() == 0) done.show_progress(p.ranks, f, s, k);
      if (base.rank() == 0 && !fine)
        std::printf("\nWRONG: %s, %s, %s: %d ranks, group %llu, firing %llu on rank %d%s\n",
                    name_of(f), name_of(s), name_of(k), p.ranks,
                    static_cast<unsigned long long>(group), static_cast<unsigned long long>(n - 1),
                    culprit, wrong.c_str());
      if (fired) break;
    }
  });
  return fine;
}
template <class Base, class Tell>
bool pass_of(settings& set, tally& done, kind k, Base& base, std::uint64_t group, Tell tell) {
  using checked = communicator<Base, true>;
  using unchecked = communicator<Base, false>;
  auto const turn = group / kinds;
  auto const over = [&]<template <class> class Transport, class C>() {
    using X = Transport<C>;
    // By a chain a message of scalars may follow rows that are summed on their way.
    if constexpr (std::is_same_v<X, expar::hops<C>>)
      if (turn % 3 == 2)
        return pass<X, C, expar::ragged, expar::weights_per_row>(set, done, k, base, group, tell);
    return turn % 2 == 0 ? pass<X, C, expar::ragged>(set, done, k, base, group, tell)
                         : pass<X, C, expar::fixed_capacity>(set, done, k, base, group, tell);
  };
  if constexpr (expar::window_communicator<Base>)
    if (k == kind::windows)
      return pass<expar::windows<checked>, checked, expar::ragged>(set, done, k, base, group, tell);
  if constexpr (expar::traits_of<Base>().checks_sizes) {
    if (k == kind::messages) return over.template operator()<expar::messages, checked>();
    if (k == kind::hops) return over.template operator()<expar::hops, checked>();
  }
  if (k == kind::hops_unchecked) return over.template operator()<expar::hops, unchecked>();
  return over.template operator()<expar::messages, unchecked>();
}

constexpr auto deadline = std::chrono::seconds(30);  // of a rank that does not come

#ifdef EXPAR_CHAOS_MPI
using base = expar::EXPAR_CHAOS_MPI;

template <class Comm>
Comm of_world() {
  if constexpr (expar::window_communicator<Comm>)
    return Comm(MPI_COMM_WORLD, deadline);
  else
    return Comm(MPI_COMM_WORLD, std::size_t{1} << 30, deadline);
}

/// A group of the ranks of this program.
bool play(settings& set, tally& done, kind k, std::uint64_t group) {
  base comm = of_world<base>();
  return pass_of(set, done, k, comm, group, [&](record const& mine) {
    std::vector<record> all(static_cast<std::size_t>(comm.size()));
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, MPI_COMM_WORLD);
    return all;
  });
}
#else
using base = expar::thread_communicator;

/// A group of 2 to 8 ranks in turn.
bool play(settings& set, tally& done, kind k, std::uint64_t group) {
  int const ranks = set.ranks > 0 ? set.ranks : 2 + static_cast<int>(group / kinds * 3 % 7);
  std::barrier<> meet(ranks);
  std::vector<record> all(static_cast<std::size_t>(ranks));
  settings const set_before = set;
  tally const done_before = done;
  bool fine = true;
  auto const body = [&](base& comm) {
    settings own_set = set_before;
    tally own = done_before;
    auto const tell = [&](record const& r) {
      all[static_cast<std::size_t>(comm.rank())] = r;
      meet.arrive_and_wait();
      auto const told = all;
      meet.arrive_and_wait();
      return told;
    };
    try {
      bool const mine = pass_of(own_set, own, k, comm, group, tell);
      if (comm.rank() == 0) set = own_set, done = own, fine = mine;
    } catch (...) {
      meet.arrive_and_drop();  // nobody waits for this rank
      throw;
    }
  };
  expar::run_ranks(ranks, body, deadline);
  return fine;
}
#endif

int run(settings set, bool speaks) {
  for (bool& u : set.used) u = true;
  for (kind const k : {kind::messages, kind::hops})
    set.used[static_cast<int>(k)] = expar::traits_of<base>().checks_sizes;
  set.used[static_cast<int>(kind::windows)] = expar::window_communicator<base>;
  tally done;
  int wrong = 0, in_vain = 0;
  bool missing[kinds];
  for (bool& m : missing) m = true;
  auto const any = [&] { return std::ranges::any_of(missing, std::identity{}); };
  for (std::uint64_t group = 0; any() && wrong < 10 && in_vain < 200; ++group) {
    auto const k = static_cast<kind>(group % kinds);
    bool& misses = missing[static_cast<int>(k)];
    misses = false;
    tally::each([&](fault f, step s, kind of) {
      misses = misses || (of == k && set.wants(f, s, k) && !set.enough_of(done.at(f, s, k).fired));
    });
    if (!misses) continue;
    long const before = done.fired();
    try {
      if (!play(set, done, k, group)) ++wrong;
    } catch (std::exception const& e) {
      std::printf("\nWRONG: group %llu: %s\n", static_cast<unsigned long long>(group), e.what());
      ++wrong;
    }
    in_vain = done.fired() == before ? in_vain + 1 : 0;
  }
  if (speaks) done.print(set.used);
  return wrong == 0 && !any() ? 0 : 1;
}

settings settings_of(int argc, char** argv) {
  settings set;
  for (int i = 1; i < argc; i += 2) {
    std::string const name = argv[i];
    char const* const value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (value != nullptr && name == "--seconds")
      set.seconds = std::atof(value);
    else if (value != nullptr && name == "--firings")
      set.firings = std::atol(value);
    else if (value != nullptr && name == "--seed")
      set.seed = std::strtoull(value, nullptr, 10);
    else if (value != nullptr && name == "--ranks")
      set.ranks = std::atoi(value);
    else if (value != nullptr && name == "--only")
      set.only = value;
    else
      std::printf("%s [--seconds S | --firings N] [--seed S] [--ranks R] [--only TEXT]\n", argv[0]),
          std::exit(2);
  }
  return set;
}

}  // namespace
}  // namespace chaos

int main(int argc, char** argv) {
  auto const set = chaos::settings_of(argc, argv);
#ifdef EXPAR_CHAOS_MPI
  int provided = 0, rank = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int const code = chaos::run(set, rank == 0);
  MPI_Finalize();
  return code;
#else
  return chaos::run(set, true);
#endif
}

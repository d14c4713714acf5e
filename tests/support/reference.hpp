// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace expar_test {

/// A whole exchange, of all ranks, and what must come of it: in float64, by definition rather than
/// by algorithm, and with nothing of the library. Indices are those of ranks, tokens of a rank,
/// choices of a token, experts, copies of an expert, shards of a copy, and slots of all ranks.
struct problem {
  struct token {
    std::vector<int> ids;
    std::vector<double> weights, x, d_out;
  };
  struct slot {
    int rank, expert, copy, shard;
  };
  enum class way { in_turn, nearest, quotas };
  enum class limit { none, capacity, budget };
  using numbers = std::vector<long>;

  int ranks, experts, top_k, hidden, hidden_out;
  std::vector<std::vector<token>> tokens;  // [rank][token]

  // Placement: what each rank holds, in order. The n-th appearance of an expert is copy n / shards,
  // shard n % shards. Ranks that are lost hold something too, and are not among `ranks`: the others
  // are numbered without them. Copies that have lost a shard are copy -1, and not among the others.
  std::vector<std::vector<int>> experts_of_rank;
  std::vector<int> lost;
  int shards = 1, ranks_per_node = 1;
  way choice = way::in_turn;
  bool even = false;  // quotas: as even as can be, else some uneven ones

  // Layout.
  limit limited = limit::none;
  int alignment = 1;
  double factor = 1;
  long rows = -1;  // of a capacity, or of a budget
  bool drops = false;

  /// Expert e, of which shard s is asked, gives slope(e, s) * x, its columns repeated or cut off to
  /// hidden_out.
  static double slope(int expert, int shard) { return expert % 2 + 1 - 3 * (shard % 2); }
  int column_of(int out) const { return out % hidden; }

  std::vector<token> const& tokens_of(int rank) const {
    return tokens[static_cast<std::size_t>(rank)];
  }
  token const& at(int rank, int t) const { return tokens_of(rank)[static_cast<std::size_t>(t)]; }
  int id(int rank, int t, int j) const { return at(rank, t).ids[static_cast<std::size_t>(j)]; }
  double weight(int rank, int t, int j) const {
    return at(rank, t).weights[static_cast<std::size_t>(j)];
  }

  std::vector<slot> all_slots() const {
    std::vector<slot> all, left;
    std::vector<int> seen(static_cast<std::size_t>(experts));
    std::set<std::pair<int, int>> lost_copies;  // of an expert
    for (int r = 0; r < ranks + static_cast<int>(lost.size()); ++r)
      for (int const e : experts_of_rank[static_cast<std::size_t>(r)]) {
        int const n = seen[static_cast<std::size_t>(e)]++;
        all.push_back({r, e, n / shards, n % shards});
        if (is_lost(r)) lost_copies.insert({e, n / shards});
      }
    for (slot s : all) {
      if (is_lost(s.rank)) continue;
      s.rank -= static_cast<int>(
          std::count_if(lost.begin(), lost.end(), [&](int r) { return r < s.rank; }));
      int const copy = s.copy;
      for (int c = 0; c < copy; ++c) s.copy -= lost_copies.count({s.expert, c}) != 0;
      if (lost_copies.count({s.expert, copy}) != 0) s.copy = -1;
      left.push_back(s);
    }
    return left;
  }
  bool is_lost(int rank) const { return std::find(lost.begin(), lost.end(), rank) != lost.end(); }
  /// The first n % ranks ranks get one more than the others.
  static std::vector<int> blocks(int n, int ranks) {
    std::vector<int> sizes;
    for (int r = 0; r < ranks; ++r) sizes.push_back(n / ranks + (r < n % ranks));
    return sizes;
  }
};

/// What must come of a problem.
class answer {
 public:
  struct route {
    int rank, token, choice, shard;
  };
  /// The rows of one slot. A row that only fills has no route.
  struct slot_rows {
    long begin = 0;
    std::vector<std::optional<route>> rows;
    problem::numbers count_from, first_from;  // [source rank], first_from within the rank
    long count = 0;
  };

  long capacity = -1;
  long needed = 0;     // rows of the fullest rank, had there been no budget
  bool fails = false;  // a budget does not suffice, and nothing may be dropped
  std::vector<problem::slot> slots;
  std::vector<slot_rows> at;                 // [slot]
  std::vector<long> row_count, dropped;      // [rank]
  std::vector<problem::numbers> routes_for;  // [rank][expert] that a capacity keeps

  explicit answer(problem const& p)
      : slots(p.all_slots()),
        row_count(static_cast<std::size_t>(p.ranks)),
        dropped(row_count),
        p_(p) {
    if (p.limited == problem::limit::capacity) capacity = capacity_of_experts();
    choose_copies();
    std::vector<std::size_t> room;
    for (auto const& list : queue_) room.push_back(list.size());
    for (int r = 0; r < p.ranks; ++r) needed = std::max(needed, lay_out(r, room));
    if (p.limited == problem::limit::budget && needed > p.rows) {
      fails = !p.drops;
      room = levels();
      for (int r = 0; r < p.ranks; ++r) lay_out(r, room);
    }
    for (int r = 0; r < p.ranks; ++r) count_dropped(r);
  }

  bool has_row(int rank, int t, int j) const {
    auto const i = static_cast<std::size_t>(t * p_.top_k + j);
    return has_row_[static_cast<std::size_t>(rank)][i];
  }
  double out(int rank, int t, int h) const {
    double sum = 0;
    for (int j = 0; j < p_.top_k; ++j)
      if (has_row(rank, t, j))
        sum += p_.weight(rank, t, j) * slope(rank, t, j) * x(rank, t, p_.column_of(h));
    return sum;
  }
  double d_weight(int rank, int t, int j) const {
    double sum = 0;
    for (int h = 0; h < p_.hidden_out; ++h) sum += x(rank, t, p_.column_of(h)) * d_out(rank, t, h);
    return has_row(rank, t, j) ? slope(rank, t, j) * sum : 0;
  }
  double d_token(int rank, int t, int h) const {
    double of_routes = 0, sum = 0;
    for (int j = 0; j < p_.top_k; ++j)
      if (has_row(rank, t, j)) of_routes += p_.weight(rank, t, j) * slope(rank, t, j);
    for (int g = 0; g < p_.hidden_out; ++g)
      if (p_.column_of(g) == h) sum += d_out(rank, t, g);
    return of_routes * sum;
  }
  double x(int rank, int t, int h) const { return p_.at(rank, t).x[static_cast<std::size_t>(h)]; }
  double d_out(int rank, int t, int h) const {
    return p_.at(rank, t).d_out[static_cast<std::size_t>(h)];
  }

  int copies(int expert) const {
    int n = 0;
    for (auto const& s : slots) n += s.expert == expert && s.shard == 0 && s.copy >= 0;
    return n;
  }
  /// How many routes of each rank for an expert that has copies go to each: [rank][copy].
  std::vector<problem::numbers> quotas(int expert) const {
    auto const n = static_cast<std::size_t>(copies(expert));
    std::vector<problem::numbers> of_rank;
    long all = 0, before = 0;
    for (auto const& counts : routes_for) all += counts[static_cast<std::size_t>(expert)];
    for (auto const& counts : routes_for) {
      long const count = counts[static_cast<std::size_t>(expert)];
      auto& mine = of_rank.emplace_back(n);
      if (p_.even) {
        // All routes in order of their ranks, cut into parts that are equal but for one.
        for (std::size_t c = 0; c < n; ++c) {
          long const begin = all * static_cast<long>(c) / static_cast<long>(n),
                     end = all * static_cast<long>(c + 1) / static_cast<long>(n);
          mine[c] = std::max(0L, std::min(end, before + count) - std::max(begin, before));
        }
      } else {
        // Two thirds to the last copy where the rank is odd, else to the first, the rest in turn.
        std::size_t const first = of_rank.size() % 2 == 0 ? n - 1 : 0;
        for (long i = 0; i < count; ++i)
          ++mine[i % 3 == 2 ? static_cast<std::size_t>(i) % n : first];
      }
      before += count;
    }
    return of_rank;
  }

 private:
  double slope(int rank, int t, int j) const {
    double sum = 0;
    for (int s = 0; s < p_.shards; ++s) sum += problem::slope(p_.id(rank, t, j), s);
    return sum;
  }
  static long rounded_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

  /// The routes of a rank for an expert, in the order in which they take places: a capacity serves
  /// all first choices before second ones.
  std::vector<route> routes_of(int rank, int expert) const {
    bool const by_choice = p_.limited == problem::limit::capacity;
    int const tokens = static_cast<int>(p_.tokens_of(rank).size());
    std::vector<route> found;
    for (int a = 0; a < (by_choice ? p_.top_k : tokens); ++a)
      for (int b = 0; b < (by_choice ? tokens : p_.top_k); ++b) {
        int const t = by_choice ? b : a, j = by_choice ? a : b;
        if (p_.id(rank, t, j) == expert) found.push_back({rank, t, j, 0});
      }
    return found;
  }

  /// Of each rank for each expert, by the rule of Tutel.
  long capacity_of_experts() const {
    long tokens = 0, most = 0;
    for (int r = 0; r < p_.ranks; ++r) {
      tokens = std::max(tokens, static_cast<long>(p_.tokens_of(r).size()));
      for (int e = 0; e < p_.experts; ++e)
        most = std::max(most, static_cast<long>(routes_of(r, e).size()));
    }
    long const share = (tokens + p_.experts - 1) / p_.experts;
    double const factor = p_.factor < 0 ? -p_.factor : p_.factor;
    long bound = p_.top_k * static_cast<long>(factor * static_cast<double>(share));
    if (tokens > 0) bound = std::max(bound, 1L);
    long n = p_.factor > 0 ? bound : p_.factor < 0 ? std::min(bound, most) : most;
    if (p_.rows >= 0) n = p_.rows;
    return rounded_up(n, p_.alignment);
  }

  /// The copies of an expert that a rank may send to: [0, copies).
  std::vector<int> candidates(int rank, int expert) const {
    std::vector<int> own, node, all;
    for (auto const& s : slots)
      if (s.expert == expert && s.shard == 0 && s.copy >= 0) {
        if (s.rank == rank) own.push_back(s.copy);
        if (s.rank / p_.ranks_per_node == rank / p_.ranks_per_node) node.push_back(s.copy);
        all.push_back(s.copy);
      }
    if (p_.choice != problem::way::nearest) return all;
    return !own.empty() ? own : !node.empty() ? node : all;
  }

  /// Gives each route that a capacity keeps to every shard of one copy: in queue_, the routes of
  /// each slot in order of (source rank, place).
  void choose_copies() {
    queue_.resize(slots.size());
    std::vector<std::vector<std::vector<route>>> kept(static_cast<std::size_t>(p_.ranks));
    for (int r = 0; r < p_.ranks; ++r) {
      auto& counts = routes_for.emplace_back();
      for (int e = 0; e < p_.experts; ++e) {
        auto routes = routes_of(r, e);
        if (capacity >= 0 && static_cast<long>(routes.size()) > capacity)
          routes.resize(static_cast<std::size_t>(capacity));
        counts.push_back(static_cast<long>(routes.size()));
        kept[static_cast<std::size_t>(r)].push_back(routes);
      }
    }
    for (int e = 0; e < p_.experts; ++e) {
      if (copies(e) == 0) continue;
      auto left = quotas(e);
      for (int r = 0; r < p_.ranks; ++r) {
        auto& mine = left[static_cast<std::size_t>(r)];
        auto const copies_for = candidates(r, e);
        std::size_t place = 0, copy = 0;
        for (route const& one : kept[static_cast<std::size_t>(r)][static_cast<std::size_t>(e)]) {
          int chosen;
          if (p_.choice == problem::way::quotas) {
            while (mine[copy] == 0) ++copy;
            --mine[copy];
            chosen = static_cast<int>(copy);
          } else {
            chosen = copies_for[(place + static_cast<std::size_t>(r)) % copies_for.size()];
          }
          ++place;
          for (std::size_t s = 0; s < slots.size(); ++s)
            if (slots[s].expert == e && slots[s].copy == chosen)
              queue_[s].push_back({one.rank, one.token, one.choice, slots[s].shard});
        }
      }
    }
  }

  /// How many of its routes each slot keeps under a budget: the largest level of a rank that fits,
  /// and of the shards of a copy the least.
  std::vector<std::size_t> levels() const {
    std::vector<std::size_t> of_slot(slots.size());
    for (int r = 0; r < p_.ranks; ++r) {
      std::size_t level = 0;
      for (auto const& list : queue_) level = std::max(level, list.size());
      auto const fits = [&] {
        long sum = 0;
        for (std::size_t s = 0; s < slots.size(); ++s)
          if (slots[s].rank == r)
            sum += rounded_up(static_cast<long>(std::min(queue_[s].size(), level)), p_.alignment);
        return sum <= p_.rows;
      };
      while (!fits()) --level;
      for (std::size_t s = 0; s < slots.size(); ++s)
        if (slots[s].rank == r) of_slot[s] = std::min(queue_[s].size(), level);
    }
    auto of_all_shards = of_slot;
    for (std::size_t s = 0; s < slots.size(); ++s)
      for (std::size_t o = 0; o < slots.size(); ++o)
        if (slots[o].expert == slots[s].expert && slots[o].copy == slots[s].copy)
          of_all_shards[s] = std::min(of_all_shards[s], of_slot[o]);
    return of_all_shards;
  }

  /// Lays out the rows of a rank whose slots keep the first `room` routes of their queues, and
  /// returns their number.
  long lay_out(int rank, std::vector<std::size_t> const& room) {
    at.resize(slots.size());
    long next = 0;
    for (std::size_t s = 0; s < slots.size(); ++s) {
      if (slots[s].rank != rank) continue;
      slot_rows& here = at[s] = slot_rows{};
      here.begin = next;
      here.count = static_cast<long>(room[s]);
      long per_source = slots[s].copy < 0 ? 0 : capacity;
      if (per_source > 0 && p_.choice == problem::way::in_turn)
        per_source = rounded_up(capacity, copies(slots[s].expert)) / copies(slots[s].expert);
      std::size_t i = 0;
      for (int source = 0; source < p_.ranks; ++source) {
        auto const begin = here.rows.size();
        here.first_from.push_back(next + static_cast<long>(begin));
        for (; i < room[s] && queue_[s][i].rank == source; ++i) here.rows.push_back(queue_[s][i]);
        here.count_from.push_back(static_cast<long>(here.rows.size() - begin));
        if (capacity >= 0) here.rows.resize(begin + static_cast<std::size_t>(per_source));
      }
      if (capacity < 0)
        here.rows.resize(static_cast<std::size_t>(
            rounded_up(static_cast<long>(here.rows.size()), p_.alignment)));
      next += static_cast<long>(here.rows.size());
    }
    return row_count[static_cast<std::size_t>(rank)] = next;
  }

  void count_dropped(int rank) {
    auto& mine =
        has_row_.emplace_back(p_.tokens_of(rank).size() * static_cast<std::size_t>(p_.top_k));
    for (auto const& slot : at)
      for (auto const& row : slot.rows)
        if (row && row->rank == rank)
          mine[static_cast<std::size_t>(row->token * p_.top_k + row->choice)] = true;
    long named = 0;
    for (auto const& t : p_.tokens_of(rank))
      for (int const id : t.ids) named += id >= 0;
    dropped[static_cast<std::size_t>(rank)] = named - std::count(mine.begin(), mine.end(), true);
  }

  problem const& p_;
  std::vector<std::vector<route>> queue_;   // [slot]
  std::vector<std::vector<bool>> has_row_;  // [rank][token * top_k + choice]
};

}  // namespace expar_test

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdarg>
#include <cstdio>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <expar/exchange/agreement.hpp>
#include <expar/expert_batch.hpp>
#include <expar/plan/placement.hpp>
#include <expar/plan/plan.hpp>
#include <expar/router/count_choices.hpp>  // as_counts, add_count

namespace expar::inline v0 {

/// A batch seen from above, of all ranks together.
struct routing_report {
  int ranks = 0;
  index_t tokens = 0, routes = 0;  ///< routes that name an expert
  index_t dropped = 0;             ///< of these, how many got no row
  index_t capacity = -1;           ///< rows per rank and expert; -1: the layout has no capacity
  index_t needed_capacity = 0;     ///< the capacity that would have kept every route
  std::vector<index_t> counts;   ///< [experts]: routes that name each expert, dropped ones included
  std::vector<index_t> traffic;  ///< [ranks, ranks]: rows from a rank (row) to a rank (column)
  placement place;               ///< where the experts are
  std::vector<index_t> slot_counts;  ///< [slots]: rows that came to each slot, from all ranks

  double dropped_share() const noexcept {
    return routes == 0 ? 0 : static_cast<double>(dropped) / static_cast<double>(routes);
  }
};

struct gather_report_fn {
  template <class Comm, class... Dropped>
  routing_report operator()(host_context const& ctx, Comm& comm, route_plan const& plan,
                            Dropped const&... dropped) const {
    auto const share_of_rank = [&] {
      detail::expects(plan.experts() >= 1, "gather_report: the plan is empty; make it first");
      share mine{placement::blocks(plan.experts(), comm.size()), plan.dropped(), {}};
      for (int e = 0; e < plan.experts(); ++e) mine.rows.push_back(plan.kept(e));
      return mine;
    };
    auto const told_by = [](placement const&, int from, int slot) { return std::pair{from, slot}; };
    return gather(ctx, comm, plan, share_of_rank, told_by, dropped...);
  }
  template <class Comm, class T, class W, class Y, class... Dropped>
  routing_report operator()(host_context const& ctx, Comm& comm, expert_batch<T, W, Y> const& batch,
                            Dropped const&... dropped) const {
    auto const share_of_rank = [&] {
      share mine{batch.placement(), batch.dropped(), {}};
      detail::expects(mine.place.ranks() == comm.size(),
                      "gather_report: the experts of the batch are on ", mine.place.ranks(),
                      " ranks; there are ", comm.size());
      for (int from = 0; from < comm.size(); ++from)
        for (int l = 0; l < mine.place.most(); ++l)
          mine.rows.push_back(l < batch.local_slots() ? batch.count_from(from, l) : 0);
      return mine;
    };
    auto const told_by = [](placement const& place, int from, int slot) {
      int const to = place.rank_of(slot);
      return std::pair{to, from * place.most() + slot - place.first(to)};
    };
    return gather(ctx, comm, batch.plan(), share_of_rank, told_by, dropped...);
  }

 private:
  /// What one rank tells: rows from it to every slot, or from every rank to its own slots.
  struct share {
    placement place;
    index_t dropped;
    std::vector<index_t> rows;
  };
  /// told_by(place, from, slot): who tells how many rows go from a rank to a slot, and as which of
  /// its numbers.
  template <class Comm, class Share, class ToldBy, class... Dropped>
  static routing_report gather(host_context const& ctx, Comm& comm, route_plan const& plan,
                               Share share_of_rank, ToldBy told_by, Dropped const&... earlier) {
    static_assert(sizeof...(Dropped) <= 1, "expar: gather_report takes one tensor `dropped`");
    constexpr std::size_t before = detail::numbers_of_word;
    std::vector<index_t> own;
    detail::buffer<std::uint64_t> numbers(ctx.memory()), all(ctx.memory());
    routing_report r;
    detail::agreement ask(ctx.memory());
    ask.reserve(comm.size());
    ask.run(ctx, comm, {detail::step::gather_report}, [&] {
      share const mine = share_of_rank();
      own = {plan.tokens(), mine.dropped, plan.capacity(), 0};
      own.insert(own.end(), plan.counts().begin(), plan.counts().end());
      (add_earlier(ctx, comm.size(), plan, earlier, own), ...);
      for (std::size_t e = 4; e < own.size(); ++e) own[3] = own[e] > own[3] ? own[e] : own[3];
      own.insert(own.end(), mine.rows.begin(), mine.rows.end());
      numbers.resize(before + own.size());
      all.resize(numbers.size() * static_cast<std::size_t>(comm.size()));
      r.place = mine.place;
      r.counts.resize(plan.counts().size());
      r.slot_counts.resize(static_cast<std::size_t>(mine.place.slot_count()));
      r.traffic.resize(static_cast<std::size_t>(comm.size()) *
                       static_cast<std::size_t>(comm.size()));
    });
    placement const& place = r.place;
    detail::expects_agreement(
        ctx, comm, ask, detail::step::gather_report, "gather_report",
        {{"experts", static_cast<double>(plan.experts())},
         {"the hash of the placement", static_cast<double>(place.hash() >> 11)}});
    std::size_t const n = own.size(), experts = r.counts.size();
    std::memcpy(numbers.data() + before, own.data(), n * sizeof(index_t));
    auto word = detail::agreement::word_of({detail::step::gather_report, 0, 0, 1}, {});
    detail::keep_if_lost(
        [&] {
          ask.gather(ctx, comm, word, {}, numbers.data(), all.data(),
                     static_cast<index_t>(before + n), true);
        },
        numbers, all);
    auto const told_by_rank = [&](int rank) {
      return reinterpret_cast<index_t const*>(
          all.data() + static_cast<std::size_t>(rank) * (before + n) + before);
    };

    r.ranks = comm.size();
    for (int rank = 0; rank < r.ranks; ++rank) {
      index_t const* const theirs = told_by_rank(rank);
      r.tokens += theirs[0], r.dropped += theirs[1];
      if (theirs[2] > r.capacity) r.capacity = theirs[2];
      if (theirs[3] > r.needed_capacity) r.needed_capacity = theirs[3];
      for (std::size_t e = 0; e < experts; ++e) r.counts[e] += theirs[4 + e];
    }
    for (index_t count : r.counts) r.routes += count;
    for (int from = 0; from < r.ranks; ++from)
      for (int slot = 0; slot < place.slot_count(); ++slot) {
        auto const [rank, number] = told_by(place, from, slot);
        index_t const count = told_by_rank(rank)[4 + experts + static_cast<std::size_t>(number)];
        r.slot_counts[static_cast<std::size_t>(slot)] += count;
        r.traffic[static_cast<std::size_t>(from * r.ranks + place.rank_of(slot))] += count;
      }
    return r;
  }

  /// Adds the routes that each expert dropped before the plan was made to `own`.
  template <class Dropped>
  static void add_earlier(host_context const& ctx, int ranks, route_plan const& plan,
                          Dropped const& dropped, std::vector<index_t>& own) {
    auto const d = detail::as_counts(detail::as_view<1>(ctx, dropped));
    detail::argument_table("gather_report").reads("dropped", d, {{plan.experts(), "experts"}});
    index_t sum = 0;
    for (index_t e = 0; e < d.extents[0]; ++e)
      detail::add_count("gather_report: dropped", e, d(e), sum);
    index_t const most = detail::most_rows / ranks;
    detail::expects(sum <= most, "gather_report: dropped adds up to ", sum, "; at most ", most,
                    " are possible");
    own[1] += sum;
    for (index_t e = 0; e < d.extents[0]; ++e)
      own[static_cast<std::size_t>(4 + e)] += static_cast<index_t>(d(e));
  }
};
/// `gather_report(ctx, comm, batch, dropped)` sums up what all ranks did with their tokens.
/// Collective; every rank gets the same report.
///   batch: a prepared expert_batch; or a route_plan, whose experts stand in blocks on the ranks
///   dropped: [experts] integers, how many routes of this rank each expert dropped before the plan
///            was made, which knows nothing of them: what drop_to_capacity() wrote. They are
///            reported as routes that were dropped. All ranks leave it out, or none does
inline constexpr gather_report_fn gather_report{};

namespace detail {

/// Appends numbers and fixed text, which are never longer than this.
__attribute__((format(printf, 2, 3))) inline void print(std::string& to, char const* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  to += text;
}

/// At least 1; throws where a count is negative.
inline index_t largest(char const* what, std::span<index_t const> counts) {
  index_t most = 1;
  for (index_t count : counts) {
    expects(count >= 0, what, ": a count is ", count, "; it is at least 0");
    most = count > most ? count : most;
  }
  return most;
}

/// A bar of blocks, exact to an eighth of a character, filled up with spaces.
inline std::string bar(double share, int width) {
  char const* const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  int const length = static_cast<int>(share * 8 * width + .5), full = length / 8;
  std::string text;
  for (int i = 0; i < full; ++i) text += "█";
  text += eighths[length % 8];
  text.append(static_cast<std::size_t>(width - full - (length % 8 != 0)), ' ');
  return text;
}

/// A character that is as dark as the share, which lies between 0 and 1.
inline char const* shade(double share) {
  char const* const shades[] = {" ", "░", "▒", "▓", "█"};
  return shades[static_cast<int>(share * 4 + .5)];
}

inline double mean(std::span<index_t const> counts) {
  double sum = 0;
  for (index_t c : counts) sum += static_cast<double>(c);
  return sum > 0 ? sum / static_cast<double>(counts.size()) : 1;
}

}  // namespace detail

/// One line per expert: a bar, the number of routes, and its ratio to the mean. A bar is `width`
/// characters for `most` routes (0: for the largest count).
inline std::string load_bars(std::span<index_t const> counts, int width = 40, index_t most = 0) {
  detail::expects(width >= 0, "load_bars: width is ", width, "; it is at least 0");
  index_t const largest = detail::largest("load_bars", counts);
  double const scale = static_cast<double>(most > 0 ? most : largest);
  std::string text;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    double const count = static_cast<double>(counts[e]);
    detail::print(text, "expert %3zu  ", e);
    text += detail::bar(count < scale ? count / scale : 1, width);
    detail::print(text, " %7.0f  %5.2fx\n", count, count / detail::mean(counts));
  }
  return text;
}

/// One line per sending rank, one column per receiving rank, darker where more rows go.
inline std::string traffic_matrix(routing_report const& r) {
  detail::expects(static_cast<index_t>(r.traffic.size()) == index_t{r.ranks} * r.ranks,
                  "traffic_matrix: traffic has ", r.traffic.size(), " numbers; there are ", r.ranks,
                  " x ", r.ranks, " ranks");
  double const most = static_cast<double>(detail::largest("traffic_matrix", r.traffic));
  std::string text = "rows from";
  for (int to = 0; to < r.ranks; ++to) detail::print(text, "%*sto %d", to < 10 ? 6 : 5, "", to);
  for (int i = 0; i < static_cast<int>(r.traffic.size()); ++i) {
    double const rows = static_cast<double>(r.traffic[static_cast<std::size_t>(i)]);
    if (i % r.ranks == 0) detail::print(text, "\nrank %3d ", i / r.ranks);
    detail::print(text, " %s%8.0f", detail::shade(rows / most), rows);
  }
  return text + "\n";
}

/// `slot_name(place, slot)` is what drawings call a slot: the expert, with ".c" for its copy c
/// where it has several (".-" where shards of the copy are lost), and "/s" for its shard s.
inline std::string slot_name(placement const& place, int slot) {
  int const expert = place.expert_of(slot);
  std::string name;
  detail::print(name, "%d", expert);
  int const copy = place.copy_of(slot);
  if (copy < 0) name += ".-";
  if (copy >= 0 && place.copies(expert) > 1) detail::print(name, ".%d", copy);
  if (place.shards() > 1) detail::print(name, "/%d", place.shard_of(slot));
  return name;
}

/// `placement_chart(place, slot_counts)`: one line per rank with the names of its slots. With
/// slot_counts [slots], the rows that came to each slot, they are darker where more came, and the
/// sum of the rank stands at the end. A last line names the experts without a copy, which are lost.
inline std::string placement_chart(placement const& place,
                                   std::span<index_t const> slot_counts = {}) {
  detail::expects(
      slot_counts.empty() || static_cast<index_t>(slot_counts.size()) == place.slot_count(),
      "placement_chart: slot_counts has ", slot_counts.size(), " numbers; there are ",
      place.slot_count(), " slots");
  double const most = static_cast<double>(detail::largest("placement_chart", slot_counts));
  std::size_t widest = 0;
  for (int slot = 0; slot < place.slot_count(); ++slot)
    if (auto const n = slot_name(place, slot).size(); n > widest) widest = n;
  std::string text;
  for (int rank = 0; rank < place.ranks(); ++rank) {
    detail::print(text, "rank %3d ", rank);
    std::size_t left = static_cast<std::size_t>(place.most()) * (widest + 2);
    index_t sum = 0;
    for (int slot = place.first(rank); slot < place.first(rank + 1); ++slot) {
      index_t const rows = slot_counts.empty() ? 0 : slot_counts[static_cast<std::size_t>(slot)];
      std::string const name = slot_name(place, slot);
      text += " ";
      text += detail::shade(static_cast<double>(rows) / most);
      text += name;
      text.append(widest - name.size(), ' ');
      left -= widest + 2, sum += rows;
    }
    if (!slot_counts.empty()) detail::print(text.append(left, ' '), "  %8td rows", sum);
    while (text.back() == ' ') text.pop_back();
    text += "\n";
  }
  std::string lost;
  for (int expert = 0; expert < place.experts(); ++expert)
    if (place.copies(expert) == 0) detail::print(lost, "  %d", expert);
  if (!lost.empty()) text += "lost     " + lost + "\n";
  return text;
}

/// The whole report as text.
inline std::string to_text(routing_report const& r) {
  std::string text;
  detail::print(text, "%td tokens, %td routes, %td dropped (%.2f%%)", r.tokens, r.routes, r.dropped,
                100 * r.dropped_share());
  if (r.capacity >= 0)
    detail::print(text, ", capacity %td of the %td needed", r.capacity, r.needed_capacity);
  return text + "\n" + load_bars(r.counts) +
         (r.place.ranks() > 0 ? placement_chart(r.place, r.slot_counts) : "") + traffic_matrix(r);
}

}  // namespace expar::inline v0

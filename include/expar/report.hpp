// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdarg>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <expar/exchange/agreement.hpp>
#include <expar/expert_batch.hpp>
#include <expar/plan/block_placement.hpp>
#include <expar/plan/plan.hpp>
#include <expar/router/count_choices.hpp>  // as_counts, add_count

namespace expar::inline v0 {

/// A batch seen from above, of all ranks together.
struct routing_report {
  int ranks = 0;
  index_t tokens = 0, routes = 0;  ///< routes that name an expert
  index_t dropped = 0;             ///< of these, how many got no row
  index_t capacity = -1;           ///< rows per rank and expert; -1: the layout drops nothing
  index_t needed_capacity = 0;     ///< the capacity that would have kept every route
  std::vector<index_t> counts;   ///< [experts]: routes that name each expert, dropped ones included
  std::vector<index_t> traffic;  ///< [ranks, ranks]: rows from a rank (row) to a rank (column)

  double dropped_share() const noexcept {
    return routes == 0 ? 0 : static_cast<double>(dropped) / static_cast<double>(routes);
  }
};

struct gather_report_fn {
  template <class Comm>
  routing_report operator()(host_context const& ctx, Comm& comm, route_plan const& plan) const {
    return gather(ctx, comm, plan, tensor_view<index_t, 1>{});
  }
  template <class Comm, class Dropped>
  routing_report operator()(host_context const& ctx, Comm& comm, route_plan const& plan,
                            Dropped const& dropped) const {
    auto const d = detail::as_counts(detail::as_view<1>(ctx, dropped));
    detail::agreement ask(ctx.memory());
    ask.reserve(comm.size());
    ask.run(ctx, comm, {detail::step::gather_report, 0}, [&] {
      detail::argument_table("gather_report").reads("dropped", d, {{plan.experts(), "experts"}});
      index_t sum = 0;
      for (index_t e = 0; e < d.extents[0]; ++e)
        detail::add_count("gather_report: dropped", e, d(e), sum);
      index_t const most = detail::most_rows / comm.size();
      detail::expects(sum <= most, "gather_report: dropped adds up to ", sum, "; at most ", most,
                      " are possible");
    });
    return gather(ctx, comm, plan, d);
  }
  template <class Comm, class T, class W, class... Dropped>
  routing_report operator()(host_context const& ctx, Comm& comm, expert_batch<T, W> const& batch,
                            Dropped const&... dropped) const {
    return (*this)(ctx, comm, batch.plan(), dropped...);
  }

 private:
  /// `earlier`: for each expert the routes that were dropped before the plan was made, or empty.
  template <class Comm, class Count>
  static routing_report gather(host_context const& ctx, Comm& comm, route_plan const& plan,
                               tensor_view<Count, 1> earlier) {
    block_placement const place{plan.experts(), comm.size()};
    std::vector<index_t> own, all;
    routing_report r;
    auto const wrong = detail::failure_of([&] {
      own = {plan.tokens(), plan.dropped(), plan.capacity(), 0};
      for (index_t count : plan.counts()) own.push_back(count);
      for (index_t e = 0; e < earlier.extents[0]; ++e) {
        own[1] += static_cast<index_t>(earlier(e));
        own[static_cast<std::size_t>(4 + e)] += static_cast<index_t>(earlier(e));
      }
      for (std::size_t e = 4; e < own.size(); ++e) own[3] = own[e] > own[3] ? own[e] : own[3];
      for (int peer = 0; peer < comm.size(); ++peer) {
        index_t rows = 0;
        for (int i = 0; i < place.count(peer); ++i) rows += plan.kept(place.first(peer) + i);
        own.push_back(rows);
      }
      all.resize(own.size() * static_cast<std::size_t>(comm.size()));
      r.counts.resize(plan.counts().size());
      r.traffic.reserve(static_cast<std::size_t>(comm.size()) *
                        static_cast<std::size_t>(comm.size()));
    });
    detail::expects_agreement(ctx, comm, "gather_report",
                              {{"experts", static_cast<double>(plan.experts())}}, wrong);
    std::size_t const n = own.size(), experts = r.counts.size();
    all_gather(ctx, comm, own.data(), all.data(), n * sizeof(index_t));

    r.ranks = comm.size();
    for (std::size_t from = 0; from < all.size(); from += n) {
      index_t const* const theirs = all.data() + from;
      r.tokens += theirs[0], r.dropped += theirs[1];
      if (theirs[2] > r.capacity) r.capacity = theirs[2];
      if (theirs[3] > r.needed_capacity) r.needed_capacity = theirs[3];
      for (std::size_t e = 0; e < experts; ++e) r.counts[e] += theirs[4 + e];
      r.traffic.insert(r.traffic.end(), theirs + 4 + experts, theirs + n);
    }
    for (index_t count : r.counts) r.routes += count;
    return r;
  }
};
/// `gather_report(ctx, comm, plan, dropped)` sums up the plans of all ranks, for experts placed by
/// block_placement. Collective; every rank gets the same report.
///   plan: a route_plan, or a prepared expert_batch
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
  char const* const shades[] = {" ", "░", "▒", "▓", "█"};
  detail::expects(static_cast<index_t>(r.traffic.size()) == index_t{r.ranks} * r.ranks,
                  "traffic_matrix: traffic has ", r.traffic.size(), " numbers; there are ", r.ranks,
                  " x ", r.ranks, " ranks");
  double const most = static_cast<double>(detail::largest("traffic_matrix", r.traffic));
  std::string text = "rows from";
  for (int to = 0; to < r.ranks; ++to) detail::print(text, "%*sto %d", to < 10 ? 6 : 5, "", to);
  for (int i = 0; i < static_cast<int>(r.traffic.size()); ++i) {
    double const rows = static_cast<double>(r.traffic[static_cast<std::size_t>(i)]);
    if (i % r.ranks == 0) detail::print(text, "\nrank %3d ", i / r.ranks);
    detail::print(text, " %s%8.0f", shades[static_cast<int>(rows / most * 4 + .5)], rows);
  }
  return text + "\n";
}

/// The whole report as text.
inline std::string to_text(routing_report const& r) {
  std::string text;
  detail::print(text, "%td tokens, %td routes, %td dropped (%.2f%%)", r.tokens, r.routes, r.dropped,
                100 * r.dropped_share());
  if (r.capacity >= 0)
    detail::print(text, ", capacity %td of the %td needed", r.capacity, r.needed_capacity);
  return text + "\n" + load_bars(r.counts) + traffic_matrix(r);
}

}  // namespace expar::inline v0

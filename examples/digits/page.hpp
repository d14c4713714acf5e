// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <expar/report.hpp>

#include "faults.hpp"
#include "network.hpp"
#include "options.hpp"
#include "svg.hpp"

namespace digits {

/// All that the report tells.
struct outcome {
  std::string transport;
  int seed = 0;
  std::vector<double> losses, accuracies;  // one per epoch
  std::vector<sight> train_sights, test_sights;
  expar::routing_report before, after, capped;  // of the training images
  double training_seconds = 0;
  std::uint64_t checksum = 0;
  fault happened;

  expar::placement const& place() const { return after.place; }
  double tokens_per_second() const {
    return train_count * static_cast<double>(losses.size()) / training_seconds;
  }
};

/// A curve over epochs between two values; `y` gives the height (0 to 1) of a value.
template <class Height>
std::string curve(std::vector<double> const& values, std::vector<double> const& ticks, Height y,
                  char const* tick_form, char const* colour) {
  constexpr int left = 52, wide = 420, top = 10, height = 180;
  auto const x_of = [&](std::size_t i) {
    return left +
           wide * static_cast<double>(i) / static_cast<double>(values.size() - (values.size() > 1));
  };
  auto const y_of = [&](double v) {
    double const h = y(v);
    return top + height * (1 - (h < 0 ? 0 : h > 1 ? 1 : h));
  };
  std::string svg = "<svg viewBox='0 0 490 226'>";
  for (double tick : ticks)
    svg += format("<path d='M%d %.1fh%d' class='grid'/><text x='%d' y='%.1f' class='end'>", left,
                  y_of(tick), wide, left - 8, y_of(tick) + 4) +
           format(tick_form, tick) + "</text>";
  std::string points;
  for (std::size_t i = 0; i < values.size(); ++i)
    points += format("%.1f,%.1f ", x_of(i), y_of(values[i]));
  svg += format("<path d='M%d,%d L", left, top + height) + points +
         format("%.1f,%d' fill='%s' opacity='.1'/>", x_of(values.size() - 1), top + height, colour);
  svg += format("<polyline fill='none' stroke-width='2' stroke='%s' points='", colour) + points +
         "'/>";
  svg += format("<circle r='3.5' cx='%.1f' cy='%.1f' fill='%s'/>", x_of(values.size() - 1),
                y_of(values.back()), colour);
  svg +=
      format("<text x='%d' y='212'>epoch 1</text><text x='%d' y='212' class='end'>%zu</text></svg>",
             left, left + wide, values.size());
  return svg;
}

inline std::string loss_curve(std::vector<double> const& losses) {
  return curve(
      losses, {.01, .1, 1}, [](double v) { return (std::log10(v) + 2.2) / 2.6; }, "%.2g",
      "#b4552d");
}
inline std::string accuracy_curve(std::vector<double> const& accuracies) {
  std::vector<double> percent;
  for (double a : accuracies) percent.push_back(100 * a);
  return curve(
      percent, {80, 85, 90, 95, 100}, [](double v) { return (v - 78) / 22; }, "%.0f%%", "#2f6fb0");
}

/// An image, what the network reads in it, and the share of each of its experts.
inline std::string digit_card(sight const& s) {
  static char const* const colours[experts] = {"#2f6fb0", "#b4552d", "#3f8f5f", "#8a5fb0",
                                               "#b08a2f", "#2f9aa0", "#b04f7f", "#6f7f8f"};
  std::string html = s.right() ? "<figure>" : "<figure class='wrong'>";
  html += "<svg viewBox='0 0 8 8' class='digit'>";
  for (int p = 0; p < pixels; ++p)
    if (int const value = ink(s.image, p); value > 0)
      html += format("<rect x='%d' y='%d' width='1.02' height='1.02' opacity='%.2f'/>", p % side,
                     p / side, value / 16.);
  html += format("</svg><figcaption><b>%d</b>%s</figcaption><div class='mix'>", s.guess,
                 s.right() ? "" : format(" is a %d", label(s.image)).c_str());
  for (int j = 0; j < top_k; ++j) {
    auto const at = static_cast<std::size_t>(j);
    html += format("<span style='flex:%.3f;background:%s' title='expert %d, weight %.2f'>%d</span>",
                   static_cast<double>(s.weights[at]) + .12, colours[s.experts[at]], s.experts[at],
                   static_cast<double>(s.weights[at]), s.experts[at]);
  }
  return html + "</div></figure>\n";
}

/// The first two test images of each digit that were read right, and then those that were not.
inline std::string digit_cards(std::vector<sight> const& sights) {
  std::string right, wrong;
  for (int digit = 0; digit < classes; ++digit) {
    int shown = 0;
    for (sight const& s : sights) {
      if (label(s.image) != digit) continue;
      if (!s.right()) wrong += digit_card(s);
      if (s.right() && shown++ < 2) right += digit_card(s);
    }
  }
  return "<div class='digits'>" + right + "</div>" +
         (wrong.empty() ? ""
                        : "<h3>All test images that it got wrong</h3><div class='digits'>" + wrong +
                              "</div>");
}

/// [digit, expert]: how many routes of images of the digit go to the expert.
inline std::vector<index_t> who_reads_what(std::vector<sight> const& sights) {
  std::vector<index_t> counts(std::size_t{classes} * experts);
  for (sight const& s : sights)
    for (std::int32_t e : s.experts)
      ++counts[static_cast<std::size_t>(label(s.image) * experts + e)];
  return counts;
}

inline std::string drop_text(outcome const& r) {
  double home = 0, all = 0;
  for (std::size_t i = 0; i < r.after.traffic.size(); ++i) {
    double const rows = static_cast<double>(r.after.traffic[i]);
    all += rows;
    if (i % (static_cast<std::size_t>(r.after.ranks) + 1) == 0) home += rows;
  }
  std::string const lost = lost_experts(r.place());
  if (!lost.empty())
    return format(
               "<p class='below'>%.0f%% of the rows stay on their rank. %.1f%% of the routes are "
               "dropped: those of ",
               100 * home / all, 100 * r.after.dropped_share()) +
           lost + ", lost with a rank.</p>";
  return format(
      "<p class='below'>%.0f%% of the rows stay on their rank. Every expert takes what comes, and "
      "nothing is dropped. If it took %td rows from each rank, its fair share, %.1f%% of the "
      "routes "
      "would be dropped; %td would keep them all.</p>",
      100 * home / all, r.capped.capacity, 100 * r.capped.dropped_share(),
      r.capped.needed_capacity);
}

/// What the numbers in placement_svg() say.
inline std::string placement_legend(expar::placement const& place) {
  std::string const copy = most_copies(place) > 1 ? ".copy" : "";
  std::string const shard = place.shards() > 1 ? "/shard" : "", lost = lost_experts(place);
  return "<p>Each rank with its experts" +
         (copy.empty() && shard.empty() ? "" : " (expert" + copy + shard + ")") +
         " and the rows that came to them." + (lost.empty() ? "" : " Lost: " + lost + ".") + "</p>";
}

inline std::string card(std::string const& value, std::string const& name) {
  return "<div class='card'><b>" + value + "</b>" + name + "</div>";
}
inline std::string panel(char const* title, std::string const& body) {
  return std::string("<section><h2>") + title + "</h2>" + body + "</section>\n";
}

/// What happened in the middle of the training: the ranks before it, and what they heard.
inline std::string fault_panel(outcome const& r) {
  fault const& f = r.happened;
  if (f.rank < 0) return "";
  std::string text = placement_svg(r.before.place, r.before.slot_counts, f.rank) +
                     "<p class='below'>" + what_happens(f) + ".<br>";
  for (hearing const& h : f.heard)
    text += format("Rank %d hears, %.1f ms after its experts: <code>%s</code><br>", h.rank,
                   h.milliseconds, h.sentence);
  return panel(f.kills ? "A rank is lost" : "A rank leaves an operation out",
               text + what_goes_on(f, r.place()) + ".</p>");
}

/// The report: one page that needs no other file.
inline std::string page(outcome const& r) {
  index_t most = 0;
  for (auto const* counts : {&r.before.counts, &r.after.counts})
    for (index_t count : *counts) most = count > most ? count : most;
  std::string html = R"(<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Expar: digits</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #243240; background: #f4f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 16px; margin: 0 0 10px; }
h3 { font-size: 14px; margin: 18px 0 8px; } p { margin: 4px 0 12px; color: #5b6b7b; }
.cards, .two { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); }
.cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 20px 0 16px; }
section, .card { background: #fff; border: 1px solid #dfe5ea; border-radius: 10px; padding: 16px 20px; }
section { margin-bottom: 16px; } .two section { margin-bottom: 0; } .two { margin-bottom: 16px; }
.two section:last-child { grid-column: 1 / -1; }
.card { color: #5b6b7b; } .card b { display: block; font-size: 25px; color: #243240; }
svg { display: block; width: 100%; margin: 0 auto; font: 12px system-ui, sans-serif; fill: #5b6b7b; }
.grid { stroke: #e4e9ed; fill: none; } .end { text-anchor: end; }
.digits { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); }
figure { margin: 0; border: 1px solid #dfe5ea; border-radius: 8px; padding: 8px; text-align: center; }
figure.wrong { border-color: #c2452d; background: #fdf3f0; }
.digit { fill: #17222c; } figcaption b { font-size: 18px; }
.mix { display: flex; gap: 2px; color: #fff; font-size: 12px; }
.mix span { border-radius: 3px; }
.below { margin: 14px 0 0; } code { font-size: 14px; }
</style>
<main><h1>A mixture of experts reads handwritten digits</h1>
)";
  html += format("<p>Two layers, %s, %d per image; %s, seed %d.</p>",
                 placement_text(r.place()).c_str(), top_k, r.transport.c_str(), r.seed);
  html += "<div class='cards'>" +
          card(format("%.2f%%", 100 * r.accuracies.back()), "test accuracy") +
          card(format("%.0f", r.tokens_per_second()), "tokens per second") +
          card(format("%.2f%%", 100 * r.after.dropped_share()), "routes dropped") +
          card(format("%.2f%%", 100 * r.capped.dropped_share()), "drops at capacity 1.0") +
          card(format("%.1f s", r.training_seconds), format("for %zu epochs", r.losses.size())) +
          "</div>\n";
  html +=
      fault_panel(r) + "<div class='two'>" +
      panel("Cross-entropy in training", loss_curve(r.losses)) +
      panel("Test accuracy", accuracy_curve(r.accuracies)) +
      panel("Load of the experts before training", load_bars_svg(r.before.counts, most)) +
      panel("Load of the experts after training", load_bars_svg(r.after.counts, most, r.place())) +
      panel("Experts on ranks",
            placement_legend(r.place()) + placement_svg(r.place(), r.after.slot_counts)) +
      panel("Rows from rank to rank", "<p>Routes of the training images, after training.</p>" +
                                          traffic_svg(r.after) + drop_text(r)) +
      panel("Who reads what",
            "<p>Routes of the training images, by digit and expert.</p>" +
                heat_map_svg(who_reads_what(r.train_sights), experts, "digit", "expert")) +
      "</div>\n";
  html += panel("Test images",
                "<p>The image, what the network reads, and its two experts by weight.</p>" +
                    digit_cards(r.test_sights));
  html += format("<p>Checksum of all weights: <code>%016llx</code>. ",
                 static_cast<unsigned long long>(r.checksum));
  if (lost_experts(r.place()).empty())
    html +=
        format("It is the same for any number of ranks%s, over threads or MPI.",
               r.place().shards() > 1 ? " that share out an expert among as many" : " and copies");
  html += "<br>";
  return html +
         "Images: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI "
         "Machine "
         "Learning Repository, CC BY 4.0.</p></main></html>\n";
}

inline void write_file(std::string const& path, std::string const& text) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (!good) throw std::runtime_error("the report " + path + " cannot be written");
}

}  // namespace digits

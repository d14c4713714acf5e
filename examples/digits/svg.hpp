// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <span>
#include <string>

#include <expar/report.hpp>

namespace digits {

__attribute__((format(printf, 1, 2))) inline std::string format(char const* form, ...) {
  char text[1024];
  std::va_list arguments;
  va_start(arguments, form);
  std::vsnprintf(text, sizeof text, form, arguments);
  va_end(arguments);
  return text;
}

inline expar::index_t largest(std::span<expar::index_t const> values) {
  expar::index_t most = 1;
  for (expar::index_t v : values) most = v > most ? v : most;
  return most;
}
inline double mean_of(std::span<expar::index_t const> counts) {
  double sum = 0;
  for (expar::index_t c : counts) sum += static_cast<double>(c);
  return sum == 0 ? 1 : sum / static_cast<double>(counts.size());
}

inline void open_svg(std::string& to, int wide, int high) {
  to += format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" style=\"max-width:%dpx\" "
      "font-family=\"sans-serif\" font-size=\"12\" fill=\"currentColor\">\n",
      wide, high, wide * 5 / 4);
}

/// The bars of load_bars() as an <svg> element, with a line at the mean. Text has the colour of
/// what surrounds it; the bars are of class "bar", and of experts that `place` has lost "lost".
inline std::string load_bars_svg(std::span<expar::index_t const> counts, expar::index_t most = 0,
                                 expar::placement const& place = {}) {
  double const scale = 230. / static_cast<double>(most > 0 ? most : largest(counts));
  double const mean = 70 + mean_of(counts) * scale;
  int const height = 26 * static_cast<int>(counts.size());
  std::string svg;
  open_svg(svg, 400, height + 20);
  for (std::size_t e = 0; e < counts.size(); ++e) {
    double const count = static_cast<double>(counts[e]), y = 26 * static_cast<double>(e);
    bool const lost =
        static_cast<int>(e) < place.experts() && place.copies(static_cast<int>(e)) == 0;
    svg += format(
        "<text x=\"62\" y=\"%.0f\" text-anchor=\"end\">expert %zu</text>"
        "<rect class=\"%s\" x=\"70\" y=\"%.0f\" width=\"%.1f\" height=\"20\" rx=\"3\" "
        "fill=\"%s\"/>"
        "<text x=\"400\" y=\"%.0f\" text-anchor=\"end\">%.0f (%s)</text>\n",
        y + 17, e, lost ? "lost" : "bar", y + 3, count * scale < 230 ? count * scale : 230,
        lost ? "#c2452d" : "#2f6fb0", y + 17, count,
        lost ? "dropped" : format("%.2fx", count / mean_of(counts)).c_str());
  }
  svg += format(
      "<path d=\"M%.1f 0V%d\" stroke=\"currentColor\" stroke-dasharray=\"3 3\"/>"
      "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">mean</text>\n</svg>\n",
      mean, height + 4, mean, height + 17);
  return svg;
}

/// A cell with a text, and a smaller one below it. `share`, from 0 to 1: how dark it is.
inline std::string cell_svg(int x, int y, int wide, int high, double share, std::string const& text,
                            int size, std::string const& below = "") {
  int const middle = x + wide / 2, line = y + high / 2 + (below.empty() ? 5 : -1);
  char const* const colour = share > .45 ? "#fff" : "#234";
  auto const write = [&](std::string const& what, int at, int font) {
    return format("<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" font-size=\"%d\" fill=\"%s\">",
                  middle, at, font, colour) +
           what + "</text>";
  };
  return format(
             "\n<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"4\" "
             "fill=\"rgb(%.0f,%.0f,%.0f)\"/>",
             x, y, wide, high, 238 - 205 * share, 243 - 160 * share, 249 - 100 * share) +
         write(text, line, size) + (below.empty() ? "" : write(below, line + 14, 10));
}

/// Counts [rows, columns] as an <svg> element: a cell each, darker where more. The names stand
/// before the numbers of rows and columns.
inline std::string heat_map_svg(std::span<expar::index_t const> values, int columns,
                                std::string const& row_name, std::string const& column_name) {
  double const most = static_cast<double>(largest(values));
  int const count = static_cast<int>(values.size()), rows = columns > 0 ? count / columns : 0;
  int const step = columns > 8 ? 32 : 60, size = columns > 8 ? 10 : 12;
  std::string svg;
  open_svg(svg, 70 + step * columns, 24 + 34 * rows);
  auto const name = [&](int x, int y, char const* anchor, std::string const& what, int i) {
    svg +=
        format("<text x=\"%d\" y=\"%d\" text-anchor=\"%s\" font-size=\"%d\">", x, y, anchor, size);
    svg += what + " " + std::to_string(i) + "</text>";
  };
  for (int c = 0; c < columns; ++c) name(69 + step / 2 + step * c, 15, "middle", column_name, c);
  for (int r = 0; r < rows; ++r) name(62, 45 + 34 * r, "end", row_name, r);
  for (int i = 0; i < count; ++i) {
    auto const value = values[static_cast<std::size_t>(i)];
    svg += cell_svg(70 + step * (i % columns), 24 + 34 * (i / columns), step - 2, 32,
                    static_cast<double>(value) / most, std::to_string(value), size);
  }
  return svg + "\n</svg>\n";
}

inline std::string traffic_svg(expar::routing_report const& r) {
  return heat_map_svg(r.traffic, r.ranks, "from", "to");
}

/// Ranks as boxes with their slots in them, darker where more rows came, as an <svg> element. One
/// may be marked.
inline std::string placement_svg(expar::placement const& place,
                                 std::span<expar::index_t const> slot_counts, int marked = -1) {
  constexpr int wide = 48, high = 38, gap = 6;
  int const across = std::clamp(place.most(), 1, 4), down = (place.most() + across - 1) / across;
  int const box_wide = across * wide + gap, box_high = 22 + down * high + 4;
  int const in_row = std::min(place.ranks(), 480 / (box_wide + gap));
  int const rows = (place.ranks() + in_row - 1) / in_row;
  double const most = static_cast<double>(largest(slot_counts));
  std::string svg;
  open_svg(svg, in_row * (box_wide + gap), rows * (box_high + gap));
  for (int rank = 0; rank < place.ranks(); ++rank) {
    int const x = rank % in_row * (box_wide + gap) + 1, y = rank / in_row * (box_high + gap) + 1;
    svg += format(
        "<rect class=\"rank\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\" "
        "fill=\"none\" stroke=\"%s\"/><text x=\"%d\" y=\"%d\">rank %d</text>",
        x, y, box_wide, box_high, rank == marked ? "#c2452d" : "#b9c4ce", x + 4, y + 15, rank);
    for (int i = 0; i < place.count(rank); ++i) {
      int const slot = place.first(rank) + i;
      auto const count = slot_counts[static_cast<std::size_t>(slot)];
      svg += cell_svg(x + gap - 2 + i % across * wide, y + 22 + i / across * high, wide - 2,
                      high - 2, static_cast<double>(count) / most, expar::slot_name(place, slot),
                      12, std::to_string(count));
    }
    svg += "\n";
  }
  return svg + "</svg>\n";
}

}  // namespace digits

// SPDX-License-Identifier: Apache-2.0
#pragma once

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

inline void open_svg(std::string& to, int width, int height) {
  to += format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" style=\"max-width:%dpx\" "
      "font-family=\"sans-serif\" font-size=\"12\" fill=\"currentColor\">\n",
      width, height, width * 5 / 4);
}

/// The bars of load_bars() as an <svg> element, with a line at the mean. Text has the colour of
/// what surrounds it; the bars are of class "bar".
inline std::string load_bars_svg(std::span<expar::index_t const> counts, expar::index_t most = 0) {
  double const scale = 230. / static_cast<double>(most > 0 ? most : largest(counts));
  double const mean = 70 + mean_of(counts) * scale;
  int const height = 26 * static_cast<int>(counts.size());
  std::string svg;
  open_svg(svg, 400, height + 20);
  for (std::size_t e = 0; e < counts.size(); ++e) {
    double const count = static_cast<double>(counts[e]), y = 26 * static_cast<double>(e);
    svg += format(
        "<text x=\"62\" y=\"%.0f\" text-anchor=\"end\">expert %zu</text>"
        "<rect class=\"bar\" x=\"70\" y=\"%.0f\" width=\"%.1f\" height=\"20\" rx=\"3\" "
        "fill=\"#2f6fb0\"/>"
        "<text x=\"400\" y=\"%.0f\" text-anchor=\"end\">%.0f (%.2fx)</text>\n",
        y + 17, e, y + 3, count * scale < 230 ? count * scale : 230, y + 17, count,
        count / mean_of(counts));
  }
  svg += format(
      "<path d=\"M%.1f 0V%d\" stroke=\"currentColor\" stroke-dasharray=\"3 3\"/>"
      "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">mean</text>\n</svg>\n",
      mean, height + 4, mean, height + 17);
  return svg;
}

/// Counts [rows, columns] as an <svg> element: a cell each, darker where more. The names stand
/// before the numbers of rows and columns.
inline std::string heat_map_svg(std::span<expar::index_t const> values, int columns,
                                std::string const& row_name, std::string const& column_name) {
  double const most = static_cast<double>(largest(values));
  int const count = static_cast<int>(values.size()), rows = columns > 0 ? count / columns : 0;
  std::string svg;
  open_svg(svg, 70 + 60 * columns, 24 + 34 * rows);
  auto const name = [&](int x, int y, char const* anchor, std::string const& what, int i) {
    svg += format("<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">", x, y, anchor);
    svg += what + " " + std::to_string(i) + "</text>";
  };
  for (int c = 0; c < columns; ++c) name(99 + 60 * c, 15, "middle", column_name, c);
  for (int r = 0; r < rows; ++r) name(62, 45 + 34 * r, "end", row_name, r);
  for (int i = 0; i < count; ++i) {
    int const x = 70 + 60 * (i % columns), y = 24 + 34 * (i / columns);
    double const value = static_cast<double>(values[static_cast<std::size_t>(i)]);
    double const share = value / most;
    svg += format(
        "\n<rect x=\"%d\" y=\"%d\" width=\"58\" height=\"32\" rx=\"4\" "
        "fill=\"rgb(%.0f,%.0f,%.0f)\"/><text x=\"%d\" y=\"%d\" text-anchor=\"middle\" "
        "fill=\"%s\">%.0f</text>",
        x, y, 238 - 205 * share, 243 - 160 * share, 249 - 100 * share, x + 29, y + 21,
        share > .45 ? "#fff" : "#234", value);
  }
  return svg + "\n</svg>\n";
}

inline std::string traffic_svg(expar::routing_report const& r) {
  return heat_map_svg(r.traffic, r.ranks, "from", "to");
}

}  // namespace digits

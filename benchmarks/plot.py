#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what the benchmarks wrote: how near each operation comes to its limit, and others beside it.

    plot.py results.json picture.svg [ids]

From expar_gpu_benchmarks per cent of the floor, for every operation and configuration. ids: uniform
(the default), zipf, hot, or 7/8 masked. A bar is expar or the algorithm of a peer; a tick is a limit,
the copy of the same bytes. Rejected rows are left out. From expar_benchmarks or expar_mpi_benchmarks
the share of the limit, and how many times as fast as each peer; from scale/run.py how long rows are
on their way in a cluster. Needs nothing but Python 3.
"""
import json
import sys

import plot_clusters
import plot_host
import svg

WIDTH, LEFT, RIGHT, BAR, GAP = 900, 250, 90, 12, 10
COLOURS = ["#0b6e4f", "#c9772b", "#8a5a99", "#5f6b7a"]  # expar, and the peers in their order
COPY = "copy of the same bytes"


def groups(rows, ids):
    """{operation: {configuration and state: [row]}}, in the order of the file."""
    found = {}
    for r in rows:
        if r["ids"] == ids and not r["rejected"]:
            found.setdefault(r["op"], {}).setdefault(r["config"] + ", " + r["state"], []).append(r)
    return found


def picture(results, ids):
    ops = groups(results["rows"], ids)
    shares = [r["share_of_floor"] for g in ops.values() for rows in g.values() for r in rows]
    most = max([1.0] + shares)
    scale = (WIDTH - LEFT - RIGHT) / most
    page, y = svg.Page(WIDTH, 11), 64
    out, text = page.parts, page.text
    device = results["device"]
    text(12, 22, f"Per cent of the floor, ids {ids}: higher is better", font_size=16,
         font_weight="bold")
    text(12, 40, f'{device["name"]}, driver {device["driver"]}, {results["date"]}; floor = empty '
         "graph node + bytes / copy bandwidth, both measured in the run", fill="#555")
    top = y
    for op, configs in ops.items():
        names = list(dict.fromkeys(r["variant"] for rows in configs.values() for r in rows
                                   if r["kind"] != "limit"))
        text(12, y + 12, op, font_size=14, font_weight="bold")
        x = 150
        for i, name in enumerate(names):
            out.append(f'<rect x="{x}" y="{y + 3}" width="10" height="10" '
                       f'fill="{COLOURS[i % len(COLOURS)]}"/>')
            text(x + 14, y + 12, name)
            x += 30 + 7 * len(name)
        y += 24
        for config, rows in configs.items():
            bars = [r for r in rows if r["kind"] != "limit"]
            text(LEFT - 8, y + BAR * len(bars) / 2 + 4, config, text_anchor="end")
            for i, r in enumerate(bars):
                at, width = y + i * BAR, r["share_of_floor"] * scale
                colour = COLOURS[names.index(r["variant"]) % len(COLOURS)]
                out.append(f'<rect x="{LEFT}" y="{at}" width="{width:.1f}" height="{BAR - 1}" '
                           f'fill="{colour}"/>')
                text(LEFT + width + 4, at + BAR - 2.5,
                     f'{100 * r["share_of_floor"]:.0f} %  {r["us"]:.1f} us', fill="#333")
            for r in rows:
                if r["variant"] == COPY:
                    x = LEFT + r["share_of_floor"] * scale
                    out.append(f'<path d="M{x:.1f} {y - 2}V{y + BAR * len(bars) + 1}" '
                               'stroke="#000" stroke-width="2"/>')
            y += BAR * len(bars) + GAP
        y += 8
    x = LEFT + scale
    out.append(f'<path d="M{x:.1f} {top}V{y}" stroke="#b00" stroke-dasharray="4 3"/>')
    text(x, y + 14, "100 %", fill="#b00", text_anchor="middle")
    text(12, y + 14, f"black tick: {COPY}", fill="#555")
    return page.document(y + 24)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        measured = json.load(f)
    if "benchmarks" in measured:
        with open(sys.argv[2], "w") as f:
            f.write(plot_host.picture(measured))
        sys.exit()
    if "clusters" in measured:
        with open(sys.argv[2], "w") as f:
            f.write(plot_clusters.picture(measured))
        sys.exit()
    chosen = sys.argv[3] if len(sys.argv) == 4 else "uniform"
    if not groups(measured["rows"], chosen):
        sys.exit(f"{sys.argv[1]} has no figures for ids {chosen}")
    with open(sys.argv[2], "w") as f:
        f.write(picture(measured, chosen))

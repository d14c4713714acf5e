#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what expar_gpu_benchmarks wrote with the tables of predictions.md beside this file.

    predictions.py results.json

Uniform ids; figures out of a cold cache where there are both. Exits 0 whatever held: a prediction that fails
is a finding, not an error.
"""
import json
import pathlib
import sys


def predictions():
    """(op, config, figure, from, to) of every line of the tables."""
    page = pathlib.Path(__file__).with_name("predictions.md").read_text()
    for line in page.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 6 and cells[0] != "op" and "---" not in cells[0]:
            yield *cells[:3], float(cells[3]), float(cells[4])


def measured(results, op, config, figure):
    """The value of a figure; None if the run does not have it."""
    if not config:
        ceilings = {c["name"]: c for c in results["ceilings"]}
        mine = ceilings.get(op)
        if mine is None or figure == "us":
            return mine and mine["us"]
        other = ceilings.get(op.replace("own copy", figure.removeprefix("% of ")))
        return other and 100 * other["us"] / mine["us"]
    kind, _, variant = figure.partition(": ")
    rows = [r for r in results["rows"] if not r["rejected"] and r["ids"] == "uniform" and
            (r["op"], r["config"]) == (op, config)]
    rows.sort(key=lambda r: ["cold", "warm", "hot"].index(r["state"]))
    mine = next((r for r in rows if r["variant"] == variant), None)
    if mine is None:
        return None
    if kind == "times ours":
        return next((r["peers"].get(variant) for r in rows
                     if r["kind"] == "expar" and r["state"] == mine["state"]), None)
    share = mine[{"% of floor": "share_of_floor", "% of copy": "share_of_copy"}[kind]]
    return share and 100 * share


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        run = json.load(f)
    print(f'{run["device"]["name"]}, {run["date"]}\n')
    held = tested = 0
    for op, config, figure, low, high in predictions():
        value = measured(run, op, config, figure)
        tested += value is not None
        held += value is not None and low <= value <= high
        verdict = ("not measured" if value is None else "held" if low <= value <= high else
                   "BELOW" if value < low else "ABOVE")
        shown = "" if value is None else f"{value:.2f}"
        print(f"{op:18} {config:12} {figure:44} {low:7g} to {high:<7g} {shown:>9}  {verdict}")
    print(f"\n{held} of {tested} predictions that were tested held")

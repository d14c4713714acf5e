# SPDX-License-Identifier: Apache-2.0
"""The picture of what expar_benchmarks measured: for plot.py."""
import math
from html import escape

import svg

WIDTH, LEFT, SHARE, TIMES, RIGHT = 1060, 232, 300, 600, 1000  # columns: names, of_limit, times peers
ROW = 15
COLOURS = ["#c9772b", "#8a5a99", "#2b6ea8", "#5f6b7a", "#a83a3a"]
OURS = "#0b6e4f"
NAMES = {"tokens": "T", "hidden": "D", "experts": "E", "top_k": "k"}
NO_RATIOS = {"ours", "route", "permute", "gate"}  # shares of a whole layer


def parts(name):
    """The operation, the configuration in few words, and the threads, or None."""
    operation, *pairs = name.split("/")
    values = dict(p.split(":") for p in pairs if ":" in p)
    config = " ".join(f"{short}{values[key]}" for key, short in NAMES.items() if key in values)
    element = ""
    if "<" in operation:
        operation, inside = operation.rstrip(">").split("<")
        words = [w.strip().split("::")[-1] for w in inside.split(",")]
        element = {"float": "fp32", "bfloat16": "bf16"}.get(words[0], words[0])
        config = " ".join([config, element] + words[1:])
    if "threads" in values:
        config += f', {values["threads"]} thread' + ("s" if values["threads"] != "1" else "")
    return operation, config


def peers(b):
    """{name: (median, lower and upper quartile)} of all but the variants of the limit."""
    found = {}
    for key in b:
        if key + "_25" in b and key not in NO_RATIOS and not key.startswith(("limit_", "of_")):
            found[key] = (b[key], b[key + "_25"], b[key + "_75"])
    return found


def groups(benchmarks):
    """{operation: [(configuration, figures)]}, of those that have a limit or a peer."""
    found = {}
    for b in benchmarks:
        if "error_occurred" in b or b.get("run_type") == "aggregate" or "tokens:" not in b["name"]:
            continue
        if "of_limit" in b or peers(b):
            operation, config = parts(b["name"])
            found.setdefault(operation, []).append((config, b))
    return found


def axis_of_times(ops):
    highest = max([v[2] for rows in ops.values() for _, b in rows for v in peers(b).values()] + [10])
    lowest = min([v[1] for rows in ops.values() for _, b in rows for v in peers(b).values()] + [0.5])
    low, high = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))

    def at(value):
        return TIMES + (RIGHT - TIMES) * (math.log10(value) - low) / (high - low)
    return at, [10.0 ** n for n in range(low, high + 1)]


def picture(results):
    ops = groups(results["benchmarks"])
    if not ops:
        raise SystemExit("there are no figures with a limit or a peer")
    times, ticks = axis_of_times(ops)
    most = max([1.2] + [b.get("of_limit_75", 0) for rows in ops.values() for _, b in rows])
    most = min(most, 1.6)
    page, y = svg.Page(WIDTH, 10.5), 66
    out, text = page.parts, page.text

    def share(value):
        return LEFT + SHARE * min(value, most) / most

    def line(x1, y1, x2, y2, colour, width=1.0, dash=""):
        more = f' stroke-dasharray="{dash}"' if dash else ""
        out.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" '
                   f'stroke-width="{width}"{more}/>')

    context = results.get("context", {})
    text(12, 22, "How near to its limit, and how many times as fast as others", font_size=16,
         font_weight="bold")
    text(12, 40, "; ".join(str(context[k]) for k in ("processor", "instructions", "date")
                           if k in context), fill="#555")
    text(LEFT, 58, "share of the limit of this run: higher is better", font_weight="bold")
    text(TIMES, 58, "time of others / our time: further right is better", font_weight="bold")
    for operation, rows in ops.items():
        names = list(dict.fromkeys(name for _, b in rows for name in peers(b)))
        colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        y += 12
        text(12, y + 10, operation, font_size=13, font_weight="bold")
        x = TIMES
        for name in names:
            out.append(f'<circle cx="{x + 4}" cy="{y + 6}" r="4" fill="{colour[name]}"/>')
            text(x + 12, y + 10, name)
            x += 24 + 6.2 * len(name)
        y += 16
        top, bottom = y, y + ROW * len(rows)
        for tick in ticks:
            line(times(tick), top, times(tick), bottom, "#000" if tick == 1 else "#ddd")
            text(times(tick), bottom + 10, f"{tick:g}", fill="#777", text_anchor="middle",
                 font_size=9)
        has_limit = any("of_limit" in b for _, b in rows)
        if has_limit:
            for tick in (0, 0.25, 0.5, 0.75, 1):
                line(share(tick), top, share(tick), bottom, "#b00" if tick == 1 else "#ddd", 1,
                     "4 3" if tick == 1 else "")
                text(share(tick), bottom + 10, f"{100 * tick:g} %", fill="#777",
                     text_anchor="middle", font_size=9)
        for config, b in rows:
            middle = y + ROW / 2
            text(LEFT - 8, middle + 4, config, text_anchor="end")
            if "of_limit" in b:
                out.append(f'<rect x="{LEFT}" y="{y + 3}" width="{share(b["of_limit"]) - LEFT:.1f}" '
                           f'height="{ROW - 6}" fill="{OURS}" fill-opacity="0.75"/>')
                line(share(b["of_limit_25"]), middle, share(b["of_limit_75"]), middle, "#000", 1.5)
                text(LEFT + SHARE + 6, middle + 4, f'{100 * b["of_limit"]:.0f} %', fill="#333")
            for name, (median, lower, upper) in peers(b).items():
                line(times(lower), middle, times(upper), middle, colour[name], 1.5)
                out.append(f'<circle cx="{times(median):.1f}" cy="{middle:.1f}" r="4" '
                           f'fill="{colour[name]}"><title>{escape(name)}: {median:.2f} '
                           f'({lower:.2f} to {upper:.2f})</title></circle>')
            y += ROW
        y += 14
    text(12, y + 12, "Bars and dots are medians over the rounds, lines go from quartile to quartile. "
         "Everything of one row was timed in turns in one run.", fill="#555")
    return page.document(y + 24)

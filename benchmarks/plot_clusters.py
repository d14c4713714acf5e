# SPDX-License-Identifier: Apache-2.0
"""The picture of what scale/run.py measured on simulated clusters: for plot.py."""
import svg

WIDTH, LEFT, BAR, SHARE = 1060, 130, 15, 300  # of a column the widest bar
COLUMNS = [("dispatch, with counts", 130, ["dispatch"]),
           ("combine: summed at every hop, else exact", 600, ["combine_per_hop", "combine"])]
COLOURS = {"linear": "#5f6b7a", "once_per_rank": "#2b6ea8", "once_per_node": "#0b6e4f",
           "gathered": "#c9772b"}


def groups(rows):
    """{(ranks, tokens, message_us): [row]}, in the order of the file, where linear is among them."""
    found = {}
    for r in rows:
        found.setdefault((r["ranks"], r["tokens"], r["message_us"]), []).append(r)
    return {k: g for k, g in found.items() if any(r["chain"] == "linear" for r in g)}


def picture(results):
    page, y = svg.Page(WIDTH, 10.5), 64
    out, text = page.parts, page.text
    c = results["cluster"]
    text(12, 22, "How long rows are on their way: shorter is better", font_size=16,
         font_weight="bold")
    text(12, 40, f'{results["simulator"]}, {results["date"]}: nodes of {c["gpus"]} GPUs, NVLink '
         f'{c["nvlink"]:g} GB/s and {c["nvlink_us"]:g} us, a NIC each of {c["nic"]:g} GB/s and '
         f'{c["nic_us"]:g} us; rows of 7168 in bfloat16, 8 of 256 experts', fill="#555")
    for title, left, _ in COLUMNS:
        text(left, 58, title, font_weight="bold")
    for (ranks, tokens, message_us), rows in groups(results["clusters"]).items():
        linear = next(r for r in rows if r["chain"] == "linear")
        y += 12
        price = f", {message_us:g} us a message" if message_us else ""
        text(12, y + 10, f"{ranks} GPUs, {tokens} tokens on each{price}", font_size=13,
             font_weight="bold")
        y += 18
        for row in rows:
            text(LEFT - 8, y + BAR - 4, row["chain"].replace("_", " "), text_anchor="end")
            for _, left, names in COLUMNS:
                name = next(n for n in names if n in row["us"])
                whole = linear["us"][name.removesuffix("_per_hop")]
                scale = SHARE / max(whole, *(r["us"][next(n for n in names if n in r["us"])]
                                             for r in rows))
                us, bound = row["us"][name], row["bound_us"][name]
                out.append(f'<rect x="{left}" y="{y + 2}" width="{us * scale:.1f}" '
                           f'height="{BAR - 4}" fill="{COLOURS[row["chain"]]}" '
                           'fill-opacity="0.8"/>')
                out.append(f'<path d="M{left + bound * scale:.1f} {y}V{y + BAR - 1}" '
                           'stroke="#000" stroke-width="2"/>')
                times = "" if row is linear else f", {whole / us:.2f} times as fast"
                text(left + us * scale + 5, y + BAR - 4, f"{us:.0f} us{times}", fill="#333")
            y += BAR
    text(12, y + 18, "Black tick: the bytes of the busiest port by its bandwidth, summed over hops. "
         "Bars of one group have one scale.", fill="#555")
    return page.document(y + 30)

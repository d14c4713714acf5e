#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs expar's exchange on simulated clusters, and says what each chain takes beside what its ports
bound: the program is the library's own over MPI, the clock is SimGrid's.

    run.py [--ranks 16 64] [--tokens 128 4096] [--chains ...] [--message-us 0 0.5]
           [--json FILE] [--svg FILE] [--build FOLDER] [options of cluster.py]
    run.py --check      16 ranks and 128 tokens: ends with 1 where a row is wrong, or a chain does
                        not gain what it should

Tokens are those of each rank: rows of 7168 numbers in bfloat16, to 8 of 256 experts on four nodes
at most. Times are in us from an instant at which all ranks begin to that at which the last has
finished: dispatch with its counts. An exact combine goes straight, by any chain. With --message-us o every message also costs its sender o, where there are 128 tokens.
Needs SimGrid (on Debian: apt-get install simgrid libsimgrid-dev) and Python 3."""
import argparse
import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import time

import bound
import cluster

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
import plot_clusters  # noqa: E402

CHAINS = ["linear", "once_per_rank", "once_per_node", "gathered"]
ROW_BYTES = 2 * 7168
SMALL = 128  # tokens, up to which rows are compared
# Of once_per_node at 16 ranks and 128 tokens: how many times as fast as linear.
LEAST = {"dispatch": 2.5, "combine_per_hop": 2.5}
# Bandwidths and latencies are those of the platform, and nothing else takes time. A blank message
# of many bytes is the same piece of memory again and again.
FLAGS = ["network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0", "smpi/bw-factor:1",
         "smpi/lat-factor:1", "smpi/simulate-computation:no", "smpi/wtime:0", "smpi/os:0:0:0",
         "smpi/or:0:0:0", "smpi/shared-malloc-blocksize:67108864"]


def compiled(folder):
    program = folder / "simulated"
    subprocess.run(["smpicxx", "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror",
                    "-fno-gnu-unique",  # else ranks share what is inline
                    "-DSMPI_NO_OVERRIDE_MALLOC", f"-I{ROOT / 'include'}", HERE / "simulated.cpp",
                    "-o", program], check=True)
    return program


def simulate(program, files, case, gpus, routes):
    """What the program prints, and how long the simulator took. What ends within `precision` ends
    together: 5e-7 s, and more for many tokens, where each sharing of ports costs seconds. Times of
    these come out up to 1 % too short, which shows where one is below its bound."""
    ranks, tokens, chain, message_us = case
    rough = tokens > SMALL
    precision = 5e-7 * (max(1, ranks // 16) * max(1, tokens // 400) if rough else 1)
    command = ["smpirun", "-np", ranks, "-platform", files[0], "-hostfile", files[1],
               *(f"--cfg={flag}" for flag in FLAGS), f"--cfg=smpi/ois:0:{message_us}e-6:0",
               f"--cfg=surf/precision:{precision}", "--log=root.thres:error", program, chain,
               tokens, gpus, "--routes", routes]
    # What gathered sends on 64 ranks is more than one machine has memory for.
    if rough or (chain == "gathered" and ranks > 16):
        command.append("--zeros")
    begun = time.monotonic()
    out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout), time.monotonic() - begun


def measure(program, folder, case, cluster_of, found):
    ranks, tokens, chain, message_us = case
    files = cluster.write(ranks, folder, cluster_of)
    routes = folder / f"routes_{ranks}_{tokens}.bin"
    figures, wall = simulate(program, files, case, cluster_of.gpus, routes)
    if (ranks, tokens) not in found:
        found[ranks, tokens] = list(bound.routes(routes, ranks, tokens))

    def least(of):
        return bound.us(of, found[ranks, tokens], ranks, tokens, ROW_BYTES, cluster_of)
    row = {"ranks": ranks, "tokens": tokens, "chain": chain, "message_us": message_us,
           "rows": figures.pop("rows"), "wall_s": round(wall, 1)}
    if tokens > SMALL:
        del figures["prepare"]  # far below the precision, and as for few tokens
    row["us"] = figures
    by = {"dispatch": chain, "combine": "linear", "combine_per_hop": chain}
    row["bound_us"] = {name: round(least(by[name]), 3) for name in by if name in figures}
    return row


def line(row, linear):
    """One line of the table: us [bound], and how many times as fast as linear."""
    cells = [f'{row["ranks"]:5}{row["tokens"]:7}{row["message_us"]:5g}  {row["chain"]:14}',
             f'{row["us"]["prepare"]:8.1f}' if "prepare" in row["us"] else " " * 8]
    for name in ("dispatch", "combine", "combine_per_hop"):
        if name not in row["us"]:
            cells.append(" " * 27)
            continue
        us = row["us"][name]
        times = f'{linear["us"][name.removesuffix("_per_hop")] / us:5.2f}x' if linear else ""
        cells.append(f'{us:9.1f} [{row["bound_us"][name]:7.1f}] {times:7}')
    return "".join(cells) + f'  {row["rows"]:8}{row["wall_s"]:6.0f} s'


def wanting(rows):
    """What a check finds wrong."""
    for row in rows:
        if row["rows"] not in ("right", "counted"):
            yield f'{row["chain"]}: rows are {row["rows"]}'
    of = {row["chain"]: row["us"] for row in rows}
    for name, least in LEAST.items():
        times = of["linear"][name.removesuffix("_per_hop")] / of["once_per_node"][name]
        if times < least:
            yield f"once_per_node: {name} is {times:.2f} times as fast as linear, not {least}"


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    p.add_argument("--tokens", type=int, nargs="+", default=[SMALL, 4096])
    p.add_argument("--chains", nargs="+", default=CHAINS, choices=CHAINS)
    p.add_argument("--message-us", type=float, nargs="+", default=[0, 0.5])
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--svg", type=pathlib.Path)
    p.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "scale")
    p.add_argument("--check", action="store_true")
    cluster.arguments(p)
    given = p.parse_args()
    if not shutil.which("smpirun"):
        sys.exit("there is no smpirun; on Debian: apt-get install simgrid libsimgrid-dev")
    if given.check:
        given.ranks, given.tokens, given.message_us = [16], [SMALL], [0]
    given.build.mkdir(parents=True, exist_ok=True)
    program = compiled(given.build)
    cases = [(r, t, c, o) for t in given.tokens for r in given.ranks for o in given.message_us
             for c in given.chains if o == 0 or t <= SMALL]
    # gathered sends all tokens everywhere, 3 GB a rank there.
    cases = [c for c in cases if not (c[2] == "gathered" and c[0] * c[1] > 16 * 4096)]
    version = subprocess.run(["smpirun", "-version"], stdout=subprocess.PIPE, text=True).stdout
    results = {"simulator": version.splitlines()[0] if version else "SimGrid",
               "date": datetime.date.today().isoformat(),
               "cluster": {k: getattr(given, k) for k in ("gpus", "nvlink", "nic", "nvlink_us",
                                                          "nic_us", "spine_us", "spine")},
               "clusters": []}
    rows, found = results["clusters"], {}
    print("ranks tokens  o   chain          prepare   " +
          "".join(f"{name + ' us [bound] x':27}" for name in
                  ("dispatch", "combine", "combine, per hop")) + "rows     wall")
    for case in cases:
        rows.append(measure(program, given.build, case, given, found))
        linear = next((r for r in rows if r["chain"] == "linear" and
                       all(r[k] == rows[-1][k] for k in ("ranks", "tokens", "message_us"))), None)
        print(line(rows[-1], linear), flush=True)
        if given.json:
            given.json.write_text(json.dumps(results, indent=1) + "\n")
    if given.svg:
        given.svg.write_text(plot_clusters.picture(results))
    wrong = list(wanting(rows)) if given.check else []
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()

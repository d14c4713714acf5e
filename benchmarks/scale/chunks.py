#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A layer by chunks on a simulated cluster, beside a list schedule of its parts.

    chunks.py [--ranks 16] [--tokens 512] [--chunks 1 2 4] [--experts .5 1 2] [--json FILE]
    chunks.py --check               ends with 1 unless each time is within 5 % of the schedule

The parts of d chunks are rows out, experts and rows home of each. A list schedule has one network
and one processor: each takes its parts in the order of the list, rows 0, rows 1, home 0, rows 2,
home 1, ..., each as soon as it is there and what it needs is done. A part of the network takes what
the NIC of a rank has to carry, and the latency. --experts is how long experts run, in shares of the
time in which rows go out and home. Needs SimGrid (on Debian: apt-get install simgrid libsimgrid-dev)
and Python 3."""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import cluster

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOP_K, ROW_BYTES = 8, 4 * 448
TOLERANCE = .05
FLAGS = ["network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0", "smpi/bw-factor:1",
         "smpi/lat-factor:1", "smpi/simulate-computation:no", "smpi/wtime:0", "smpi/os:0:0:0",
         "smpi/or:0:0:0", "smpi/ois:0:0:0", "surf/precision:5e-8"]


def schedule(chunks, rows_out, experts, rows_home):
    """When all is done that the list has, if rows out of a chunk take so long, and so on."""
    network = processor = 0
    arrived, made, home = {}, {}, {}
    for c in range(chunks + 1):
        if c < chunks:
            network = arrived[c] = network + rows_out
        if c > 0:
            network = home[c - 1] = max(network, made[c - 1]) + rows_home
        if c < chunks:
            processor = made[c] = max(processor, arrived[c]) + experts
    return home[chunks - 1]


def compiled(folder):
    program = folder / "chunks"
    subprocess.run(["smpicxx", "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror",
                    "-fno-gnu-unique",  # else ranks share what is inline
                    "-DSMPI_NO_OVERRIDE_MALLOC", f"-I{ROOT / 'include'}", HERE / "chunks.cpp",
                    "-o", program], check=True)
    return program


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ranks", type=int, default=16)
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4])
    p.add_argument("--experts", type=float, nargs="+", default=[.5, 1, 2])
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "scale")
    p.add_argument("--check", action="store_true")
    cluster.arguments(p)
    p.set_defaults(nic=5, nvlink=45)
    given = p.parse_args()
    if not shutil.which("smpirun"):
        sys.exit("there is no smpirun; on Debian: apt-get install simgrid libsimgrid-dev")
    given.build.mkdir(parents=True, exist_ok=True)
    program = compiled(given.build)
    files = cluster.write(given.ranks, given.build, given)
    # Rows to other nodes, of which every rank sends and gets as many.
    away = given.tokens * TOP_K * (1 - min(given.gpus, given.ranks) / given.ranks)
    one_way = away * ROW_BYTES / given.nic / 1000
    latency = given.nic_us + given.spine_us
    wrong, results = [], []
    print("experts chunks        scheduled    forward           backward     us, and of the schedule")
    for share in given.experts:
        experts_us = share * 2 * one_way
        command = ["smpirun", "-np", given.ranks, "-platform", files[0], "-hostfile", files[1],
                   *(f"--cfg={flag}" for flag in FLAGS), "--log=root.thres:error", program,
                   given.tokens, experts_us, *given.chunks]
        out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE,
                             text=True)
        for line in out.stdout.splitlines():
            row = json.loads(line)
            d = row["chunks"]
            row["experts_us"] = experts_us
            row["scheduled"] = schedule(d, one_way / d + latency, experts_us / d,
                                        one_way / d + latency)
            results.append(row)
            of = {way: row[way] / row["scheduled"] for way in ("forward", "backward")}
            print(f'{share:7} {d:6} {row["scheduled"]:16.1f} ' +
                  " ".join(f"{row[way]:10.1f} {of[way]:6.3f}" for way in of), flush=True)
            wrong += [f"{d} chunks, experts {share}: {way} takes {of[way]:.3f} of the schedule"
                      for way in of if abs(of[way] - 1) > TOLERANCE]
            if not row["same"]:
                wrong.append(f"{d} chunks make other bytes than one")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit("\n".join(wrong) or None if given.check else None)


if __name__ == "__main__":
    main()

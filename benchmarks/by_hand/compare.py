#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A layer with experts by hand over MPI, and with Expar through the memory that two processes share
and over messages of MPI: lines of each, microseconds, and what each survives.

    compare.py BUILD/benchmarks/expar_by_hand [result.json] [--mpiexec "mpiexec ..."] [--edges-only]

Each edge is a run of its own on two processes: a right step, the edge, and two right steps. A process
that is stuck for ten seconds ends, and its run with it. Needs nothing but Python 3 and mpiexec.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
EDGES = {
    "no_tokens": "no tokens on a rank",
    "k_is_E": "k = E",
    "id_minus_1": "an id of -1, no expert",
    "hot_expert": "one expert has all tokens",
    "id_out_of_range": "an id out of range on a rank",
    "other_hidden": "a rank passes another hidden",
    "throws": "an expert throws on a rank",
}
WAYS = {"hand": "by hand", "expar": "with Expar", "messages": "with Expar over messages"}


def code_lines(text):
    """Lines that are neither blank nor comment."""
    lines = [line.strip() for line in text.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("//"))


def between(text, way):
    return text.split(f"// {way}: begin")[1].split(f"// {way}: end")[0]


def lines_of_code():
    users = (HERE / "layers.hpp").read_text()
    return {
        "hand": code_lines((HERE / "moe_by_hand.hpp").read_text()) +
        code_lines(between(users, "by hand")),
        "expar": code_lines(between(users, "with Expar")),
    }


def session(process):
    """The processes that mpiexec started, which stay in its session."""
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == process.pid:
                yield int(entry.name)
        except ProcessLookupError:
            pass


def run(command, seconds):
    """What it printed, and its status, or None where it had to be ended."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=seconds)
        return out, process.returncode
    except subprocess.TimeoutExpired:
        for pid in session(process):
            os.kill(pid, signal.SIGKILL)
        return process.communicate()[0], None


def outcome(mpiexec, program, edge, way):
    """In a few words what the two ranks saw, and the lines that say so."""
    out, status = run([*mpiexec, "-n", "2", program, "--edge", edge, "--way", way], 40)
    seen = {}
    for line in out.splitlines():
        part = [p.strip() for p in line.split("|")]
        if len(part) == 3 and part[0].startswith("rank "):
            seen.setdefault(part[1], {})[part[0]] = part[2]
    edge_says = list(seen.get("edge", {}).values())
    later_right = list(seen.get("later", {}).values()) == ["right", "right"]
    threw = [s for s in edge_says if s.startswith("threw")]
    if edge_says == ["right", "right"] and later_right:
        words = "right"
    elif "wrong" in edge_says and status == 0:
        words = "a wrong result, and no error"
    elif threw and status == 0 and later_right:
        alike = len(threw) == 2 and threw[0] == threw[1]
        words = ("the same error on both ranks" if alike else "an error on each rank" if
                 len(threw) == 2 else "an error on one rank") + "; then right again"
    elif "stuck" in out or status is None:
        words = "an error on one rank, then stuck" if threw else "stuck"
    else:
        words = "the processes end" + (f" (status {status})" if status is not None else "")
    said = [line.strip() for line in out.splitlines()]
    return words, [s for s in said if s.startswith("rank ") or s == "stuck" or "MPI_ERR_" in s]


def main(arguments):
    mpiexec = ["mpiexec"]
    if "--mpiexec" in arguments:
        at = arguments.index("--mpiexec")
        mpiexec = arguments[at + 1].split()
        del arguments[at:at + 2]
    edges_only = "--edges-only" in arguments
    arguments = [a for a in arguments if a != "--edges-only"]
    if not arguments or arguments[0].startswith("-"):
        sys.exit(__doc__)
    program = str(pathlib.Path(arguments[0]).resolve())
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")

    result = {"lines": lines_of_code(), "times": [], "edges": {}}
    print("lines of code:", ", ".join(f"{WAYS[w]} {n}" for w, n in result["lines"].items()))
    if not edges_only:
        out, status = run([*mpiexec, "-n", "2", program, "--benchmark_format=json"], 240)
        if status != 0:
            sys.exit(f"{program} failed:\n{out}")
        measured = json.loads(out[out.index("{"):out.rindex("}") + 1])
        result["context"] = measured["context"]
        for b in measured["benchmarks"]:
            tokens = int(b["name"].split("tokens:")[1].split("/")[0])
            hand = b["real_time"] * b["by_hand"]
            result["times"].append({"tokens": tokens, "expar_us": b["real_time"],
                                    **{k: b[k] for k in b if k.startswith(("by_hand", "messages"))},
                                    "disturbed": b["disturbed"]})
            print(f'{tokens:5} tokens, forward and backward: with Expar {b["real_time"]:.1f} us, '
                  f'over messages {b["real_time"] * b["messages"]:.1f} us, '
                  f'by hand {hand:.1f} us ({b["by_hand"]:.2f} times; quartiles '
                  f'{b["by_hand_25"]:.2f} to {b["by_hand_75"]:.2f})')
    for edge, name in EDGES.items():
        row = result["edges"][edge] = {}
        for way in WAYS:
            words, said = outcome(mpiexec, program, edge, way)
            row[way] = {"outcome": words, "said": said}
        print(f"{name:30} | " + " | ".join(f"{WAYS[w]}: {row[w]['outcome']}" for w in WAYS))
    print("a message above 2^31 bytes     | not tried here. By hand MPI counts rows, not bytes, so up "
          "to 2^31 rows go; Expar splits messages, and a test of it sends one")
    if len(arguments) > 1:
        pathlib.Path(arguments[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

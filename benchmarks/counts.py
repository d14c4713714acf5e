#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of the host's hot loops with callgrind, and compares them with those on
record: counts are exact, so that what makes a loop slower shows on any machine.

    counts.py PROGRAM RECORD            ends with 1 where a count is more than 2 % from its record
    counts.py PROGRAM RECORD --write    writes the record

PROGRAM is expar_counts. What the C library does is left out, since it chooses by the processor.
Counts are those of one compiler: with another there is nothing to compare, which is said."""
import json
import pathlib
import subprocess
import sys
import tempfile

ALLOWED = 0.02


def instructions(program, name):
    """Instructions of the program's own code inside counted()."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out")
        subprocess.run(
            ["valgrind", "--tool=callgrind", "--toggle-collect=counted",
             f"--callgrind-out-file={out}", program, name],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        own, objects, total, skip = None, {}, 0, False
        for line in out.read_text().splitlines():
            if line.startswith(("ob=", "cob=")):  # of this code, and of what it calls
                number, _, path = line.partition("=")[2].partition(" ")
                if path:
                    objects[number] = pathlib.Path(path).name
                if line.startswith("ob="):
                    own = objects[number] == pathlib.Path(program).name
            elif line.startswith("calls="):
                skip = True  # the next line has what the function that is called costs
            elif line[:1].isdigit() or line[:1] in "+-*":
                if not skip and own:
                    total += sum(map(int, line.split()[1:]))
                skip = False
        return total


def main():
    program, record = sys.argv[1], pathlib.Path(sys.argv[2])
    names = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")
    strings = subprocess.run(["readelf", "-p", ".comment", program], check=True,
                             capture_output=True, text=True).stdout
    compiler = strings[strings.index("]") + 1:].strip().split("\n")[0].strip()
    before = json.loads(record.read_text()) if record.exists() else {"counts": {}}
    if "--write" not in sys.argv and before.get("compiler") != compiler:
        print(f"nothing to compare: on record is {before.get('compiler')}, this is {compiler}")
        return 0
    counts, wrong = {}, 0
    for name in filter(None, names):
        counts[name] = instructions(program, name)
        was = before["counts"].get(name)
        off = abs(counts[name] - was) > ALLOWED * was if was else True
        wrong += off
        print(f"{name:34} {counts[name]:>12,}  on record {was or 0:>12,}{'  OTHER' if off else ''}",
              flush=True)
    if "--write" in sys.argv:
        record.write_text(json.dumps({"compiler": compiler, "counts": counts}, indent=1) + "\n")
        return 0
    if wrong or set(before["counts"]) != set(counts):
        print(f"{wrong} counts are more than {ALLOWED:.0%} from their records, or names are others; "
              "--write makes new ones, which say in their commit why")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

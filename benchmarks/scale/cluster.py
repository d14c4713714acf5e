#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a cluster of GPUs for SimGrid: the platform, and the host of each rank.

    cluster.py RANKS FOLDER [--gpus 8] [--nvlink 450] [--nic 50] [--nvlink-us 1] [--nic-us 2]
                            [--spine-us 1] [--spine 1]

Nodes of --gpus GPUs. In a node every GPU has a port of --nvlink GB/s in each direction to a switch.
Between nodes every GPU has a NIC of --nic GB/s in each direction; NICs of the same place in their
nodes meet in one switch, the rail, and rails in a spine, which carries --spine of what all NICs do
together. A message takes --nvlink-us within a node, --nic-us along a rail, and --spine-us more
between rails. Needs nothing but Python 3."""
import argparse
import pathlib
from xml.sax.saxutils import quoteattr


def arguments(parser):
    """Adds the options of a cluster."""
    for name, default, what in (("gpus", 8, "GPUs of a node"), ("nvlink", 450, "GB/s"),
                                ("nic", 50, "GB/s"), ("nvlink-us", 1, "us"), ("nic-us", 2, "us"),
                                ("spine-us", 1, "us"), ("spine", 1, "share of all NICs")):
        parser.add_argument("--" + name, type=type(default) if name == "gpus" else float,
                            default=default, help=f"{what}; {default}")


def element(tag, inside="", **attributes):
    words = "".join(f" {name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f"<{tag}{words}>{inside}</{tag}>" if inside else f"<{tag}{words}/>"


def link(name, gigabytes, us, policy="SHARED"):
    return element("link", id=name, bandwidth=f"{gigabytes}GBps", latency=f"{us}us",
                   sharing_policy=policy)


def both_ways(a, b, up, down):
    """Routes from a to b over the link `up`, and back over `down`."""
    return [element("route", element("link_ctn", id=by), src=s, dst=d, symmetrical="NO")
            for s, d, by in ((a, b, up), (b, a, down))]


def platform(ranks, c):
    """The platform as XML. Routes are those of fewest links: within a node two of NVLink, along a
    rail two of NICs, else the spine between these."""
    nodes, hosts, links, routes = -(-ranks // c.gpus), [], [], []
    hosts += [element("router", id=f"node-{n}") for n in range(nodes)]
    hosts += [element("router", id=f"rail-{g}") for g in range(c.gpus)]
    for r in range(ranks):
        gpu = f"gpu-{r}"
        hosts.append(element("host", id=gpu, speed="1Tf"))
        for switch, kind, rate, us in ((f"node-{r // c.gpus}", "nvlink", c.nvlink, c.nvlink_us),
                                       (f"rail-{r % c.gpus}", "nic", c.nic, c.nic_us)):
            names = [f"{kind}-{r}-{way}" for way in ("out", "in")]
            links += [link(name, rate, us / 2) for name in names]
            routes += both_ways(gpu, switch, *names)
    if c.spine < 1:
        links.append(link("spine", c.spine * c.nic * ranks, c.spine_us))
    else:  # as wide as all NICs: it takes time, and bounds nothing
        links.append(link("spine", c.nic, c.spine_us, "FATPIPE"))
    for a in range(c.gpus):
        for b in range(a):
            routes += both_ways(f"rail-{a}", f"rail-{b}", "spine", "spine")
    zone = element("zone", "\n".join(["", *hosts, *links, *routes, ""]), id="cluster",
                   routing="DijkstraCache")
    return ('<?xml version="1.0"?>\n<!DOCTYPE platform SYSTEM '
            '"https://simgrid.org/simgrid.dtd">\n' +
            element("platform", "\n" + zone + "\n", version="4.1") + "\n")


def write(ranks, folder, c):
    """The two files that smpirun takes: platform and hosts."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"cluster_{ranks}.xml", folder / f"hosts_{ranks}.txt"
    files[0].write_text(platform(ranks, c))
    files[1].write_text("".join(f"gpu-{r}\n" for r in range(ranks)))
    return files


if __name__ == "__main__":
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("ranks", type=int)
    p.add_argument("folder")
    arguments(p)
    given = p.parse_args()
    print(*write(given.ranks, given.folder, given))

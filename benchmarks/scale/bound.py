# SPDX-License-Identifier: Apache-2.0
"""What the ports of a cluster bound: for run.py."""
import array
import collections


EXPERTS = 256


def routes(file, ranks, tokens):
    """(source rank, {ranks of a token's experts, one for each: how many tokens}) of every source,
    from the ids that it wrote."""
    ids = array.array("i")
    ids.frombytes(file.read_bytes())
    width = len(ids) // (ranks * tokens)
    rank_of = [e * ranks // EXPERTS for e in range(EXPERTS)]
    for source in range(ranks):
        first = source * tokens * width
        found = collections.Counter()
        for i in range(first, first + tokens * width, width):
            found[tuple(sorted(rank_of[e] for e in ids[i:i + width]))] += 1
        yield source, found


class Hop:
    """Rows through each port in one hop."""

    def __init__(self, ranks, gpus):
        self.gpus = gpus
        self.ports = {(kind, way): [0] * ranks for kind in ("nic", "nvlink")
                      for way in ("out", "in")}

    def add(self, source, to, rows):
        if source == to:
            return
        kind = "nvlink" if source // self.gpus == to // self.gpus else "nic"
        self.ports[kind, "out"][source] += rows
        self.ports[kind, "in"][to] += rows

    def us(self, row_bytes, cluster):
        rate = {"nic": cluster.nic, "nvlink": cluster.nvlink}
        return max(max(rows) * row_bytes / rate[kind] / 1000
                   for (kind, _), rows in self.ports.items())


def hops(chain, found, ranks, tokens, gpus):
    """The hops of a chain, as include/expar/exchange/chain.hpp has them."""
    first, second = Hop(ranks, gpus), Hop(ranks, gpus)
    for source, parcels in found:
        node, place = source // gpus, source % gpus

        def inside(rank, rows):  # from the rank to which a row for this one comes
            hop = first if rank // gpus == node else second
            hop.add(rank // gpus * gpus + place, rank, rows)
        if chain == "gathered":
            for r in range(ranks):
                if r % gpus == place:
                    first.add(source, r, tokens)
                inside(r, tokens)
            continue
        for to, count in parcels.items():
            if chain == "once_per_node":
                for n in {r // gpus for r in to}:
                    first.add(source, n * gpus + place, count)
                for r in set(to):
                    inside(r, count)
            else:
                for r in to if chain == "linear" else set(to):
                    first.add(source, r, count)
    return first, second


def us(chain, found, ranks, tokens, row_bytes, cluster):
    """Microseconds below which no order of messages brings the rows: for each hop that of the port
    with the most bytes."""
    return sum(h.us(row_bytes, cluster)
               for h in hops(chain, found, ranks, tokens, cluster.gpus))

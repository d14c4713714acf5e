#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""encode and decode beside what torch does on a CPU: index_select, index_add_, and the gather of all choices.

    torch_compare.py BUILD/benchmarks/expar_benchmarks [result.json] [tokens]

Needs torch (pip install torch); without it, it says so and does nothing. The program and torch take
turns, three rounds each; every torch operation writes into memory that is there before, and is run
once before it is timed. tokens: of the configurations that are run (128, 4096 or 8192; all if left out).
What each makes is compared with a plain loop over the routes of some tokens.
"""
import json
import statistics
import subprocess
import sys
import time

SHAPES = [(4096, 1024, 8, 2), (8192, 2048, 64, 6), (4096, 7168, 256, 8), (128, 7168, 256, 8)]
ROUNDS = 3


def ours(program, operation, element, shape, threads):
    """Seconds of one call, the median of the rounds of one run of the program."""
    name = (f"^{operation}<{element}>/tokens:{shape[0]}/hidden:{shape[1]}/experts:{shape[2]}"
            f"/top_k:{shape[3]}/threads:{threads}/")
    out = subprocess.run([program, f"--benchmark_filter={name}", "--benchmark_format=json"],
                         check=True, capture_output=True, text=True).stdout
    (measured,) = json.loads(out)["benchmarks"]
    return measured["real_time"] * 1e-6


def timed(f):
    f()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.05 or calls < 3:
        f()
        calls += 1
    return (time.perf_counter() - start) / calls


class Routed:
    """A batch, with rows in order of their experts."""

    def __init__(self, torch, shape, dtype):
        tokens, hidden, experts, top_k = shape
        torch.manual_seed(1)
        self.torch = torch
        self.x = torch.rand(tokens, hidden).add_(0.5).to(dtype)
        ids = torch.rand(tokens, experts).topk(top_k, dim=1).indices
        self.order = ids.flatten().argsort(stable=True)
        self.token_of_row = self.order // top_k
        self.row_of_route = self.order.argsort().view(tokens, top_k)
        self.weights = torch.rand(tokens, top_k).add_(0.5).to(dtype)
        self.weight_of_row = self.weights.flatten()[self.order].unsqueeze(1)
        self.rows = torch.ones(tokens * top_k, hidden, dtype=dtype)
        self.weighted = torch.ones_like(self.rows)
        self.out = torch.ones_like(self.x)

    def index_select(self):
        self.torch.index_select(self.x, 0, self.token_of_row, out=self.rows)

    def index_add(self):
        self.torch.mul(self.rows, self.weight_of_row, out=self.weighted)
        self.out.zero_().index_add_(0, self.token_of_row, self.weighted)

    def gather_choices(self):
        tokens, top_k = self.row_of_route.shape
        self.torch.index_select(self.rows, 0, self.row_of_route.flatten(), out=self.weighted)
        each = self.weighted.view(tokens, top_k, -1)
        self.torch.bmm(self.weights.unsqueeze(1), each, out=self.out.unsqueeze(1))

    def check(self):
        """Ends the program where a result is not that of a plain loop."""
        def close(a, b, relative):
            return bool(((a.float() - b).abs() <= relative * b.abs()).all())

        self.rows.zero_()
        self.index_select()
        precise = self.x.element_size() == 4
        for f in (self.index_add, self.gather_choices):
            self.out.fill_(float("nan"))
            f()
            for t in range(0, self.x.shape[0], max(1, self.x.shape[0] // 64)):
                expected = self.torch.zeros(self.x.shape[1])
                for j, row in enumerate(self.row_of_route[t].tolist()):
                    if not self.torch.equal(self.rows[row], self.x[t]):
                        sys.exit("index_select: the result is wrong")
                    expected += self.weights[t, j].float() * self.rows[row].float()
                if not close(self.out[t], expected, 1e-5 if precise else 0.07):
                    sys.exit(f"{f.__name__}: the result is wrong")


def main(arguments):
    if not arguments or arguments[0].startswith("-"):
        sys.exit(__doc__)
    try:
        import torch
    except ImportError:
        print("torch_compare: torch is not here (pip install torch); nothing was compared")
        return
    program, results = arguments[0], []
    tokens = int(arguments[2]) if len(arguments) > 2 else None
    dtypes = {"float": torch.float32, "bfloat16": torch.bfloat16}
    for shape in SHAPES:
        if tokens is not None and shape[0] != tokens:
            continue
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for element, dtype in dtypes.items():
                routed = Routed(torch, shape, dtype)
                routed.check()
                pairs = {"encode": ("index_select",), "decode": ("index_add", "gather_choices")}
                for operation, peers in pairs.items():
                    ratios = {p: [] for p in peers}
                    for _ in range(ROUNDS):
                        mine = ours(program, operation, element, shape, threads)
                        for p in peers:
                            ratios[p].append(timed(getattr(routed, p)) / mine)
                    for p, values in ratios.items():
                        results.append({"operation": operation, "element": element,
                                        "shape": shape, "threads": threads, "peer": p,
                                        "times": statistics.median(values), "lowest": min(values),
                                        "highest": max(values)})
                        print(f"{operation:7} {element:8} T D E k {shape}, {threads} threads: "
                              f"{p} takes {statistics.median(values):.2f} times as long "
                              f"({min(values):.2f} to {max(values):.2f})", flush=True)
                del routed
    if len(arguments) > 1:
        with open(arguments[1], "w") as f:
            json.dump({"torch": torch.__version__, "config": torch.__config__.show(),
                       "results": results}, f, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Measures the cost of a call from Python beyond the library's own work, in one process.

    python bindings/python/benches/overhead.py

Both columns are medians over rounds that alternate. "library" is the same call in a loop inside the library.
"""

import statistics
import time

import numpy as np

import evenkeel

ROUNDS, CALLS = 41, 200


def medians(python, library):
    """Returns microseconds per call, from rounds of calls that alternate."""
    times = ([], [])
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            python()
        times[0].append((time.perf_counter() - begun) / CALLS * 1e6)
        times[1].append(library(CALLS) / CALLS * 1e6)
    return [statistics.median(column) for column in times]


def main():
    rng = np.random.default_rng(0)
    print(f"{'call':44} {'python us':>10} {'library us':>11} {'beyond us':>10}")
    for ranks, per_rank in [(8, 1), (8, 2), (16, 2), (32, 2), (64, 2)]:
        loads = rng.lognormal(2, 1, 256)
        counts = rng.poisson(loads / ranks * 8, (1, ranks, 256)).transpose(1, 0, 2)
        plan = evenkeel.plan(
            evenkeel.Trace.from_loads(counts.sum(axis=0)[None]), ranks, ranks * per_rank, policy="lplb:ring"
        )
        planner = plan.planner(0)
        counts = np.ascontiguousarray(counts[:, 0, :], dtype=np.uint64)
        ours = medians(lambda: planner.split(counts), lambda calls: planner._time_split(counts, calls))
        print(f"{f'split, 256 experts, {ranks} ranks x {per_rank}':44} {ours[0]:10.2f} {ours[1]:11.2f} {ours[0] - ours[1]:10.2f}")
    for dtype in (np.int32, np.int64):
        ids = rng.choice(256, (4096, 8), p=loads / loads.sum()).astype(dtype)
        counts = np.zeros((64, 256), dtype=np.uint64)
        counts[5] = planner.count(ids)
        planner.split(counts)
        out = np.empty_like(ids)
        ours = medians(lambda: planner.redirect(ids, 5, out), lambda calls: planner._time_redirect(ids, 5, out, calls))
        name = f"redirect, 4096 x 8 ids, {np.dtype(dtype).name}"
        print(f"{name:44} {ours[0]:10.2f} {ours[1]:11.2f} {ours[0] - ours[1]:10.2f}")


if __name__ == "__main__":
    main()

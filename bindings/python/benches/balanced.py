"""Measures the price of dynamic slots where routing is balanced and no copy is needed.

    python bindings/python/benches/balanced.py

A call is the planner's: from the counts of all sources to quotas and shares. Columns are medians over rounds
that alternate, in microseconds.
"""

import statistics

import numpy as np

import evenkeel

ROUNDS, CALLS, EXPERTS = 41, 200, 256


def slots_with_replicas(ranks):
    """Returns contiguous homes, and on every rank a replica of the next rank's first expert."""
    own = EXPERTS // ranks
    rows = [[*range(rank * own, (rank + 1) * own), (rank + 1) % ranks * own] for rank in range(ranks)]
    return np.array(rows, dtype=np.int64).ravel()


def main():
    print(f"{'256 experts':28} {'static':>8} {'shared':>8} {'kept':>8} {'ratio':>6}")
    for ranks in (8, 32, 64):
        counts = np.full((ranks, EXPERTS), 64, dtype=np.uint64)
        for name, slots in (("homes", np.arange(EXPERTS)), ("one replica", slots_with_replicas(ranks))):
            make = lambda **options: evenkeel.Planner(slots, ranks, experts=EXPERTS, **options)
            planners = [make(), make(dynamic_slots=2), make(dynamic_slots=2, memory="kept")]
            assert not any(len(planner.split(counts).copies) for planner in planners)
            rounds = [[planner._time_split(counts, CALLS) / CALLS * 1e6 for planner in planners] for _ in range(ROUNDS)]
            static, shared, kept = (statistics.median(column) for column in zip(*rounds))
            ratio = max(shared, kept) / static
            print(f"{f'{ranks} ranks, {name}':28} {static:8.1f} {shared:8.1f} {kept:8.1f} {ratio:6.2f}")


if __name__ == "__main__":
    main()

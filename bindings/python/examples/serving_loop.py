"""The fast loop of one MoE layer.

Every rank counts its ids. All counts are gathered. Each rank then splits and redirects independently. Here
eight ranks take turns in one process. In a server each rank is a process and gathers with its collectives.
"""

import pathlib

import numpy as np

import evenkeel

RANKS, TOKENS, TOP_K = 8, 64, 4
trace = evenkeel.read_trace(pathlib.Path(__file__).parents[3] / "traces/sample-decode.csv.zst")
plan = evenkeel.plan(trace, ranks=RANKS, redundant=RANKS)
layer = int(plan.layers[0])
placement = plan.physical_to_logical[0]
planners = [plan.planner(layer) for _ in range(RANKS)]

rng = np.random.default_rng(0)
popular = trace.totals()[0] / trace.totals()[0].sum()
for batch in range(5):
    ids = [rng.choice(trace.experts, (TOKENS, TOP_K), p=popular).astype(np.int32) for _ in range(RANKS)]
    counts = np.stack([planner.count(own) for planner, own in zip(planners, ids)])  # the all-gather: [ranks, experts]
    served = np.zeros(len(placement), dtype=np.uint64)
    for rank, planner in enumerate(planners):
        split = planner.split(counts)  # the same on every rank, bit for bit
        slots = planner.redirect(ids[rank], source=rank)
        assert (placement[slots] == ids[rank]).all()
        served += np.bincount(slots.reshape(-1), minlength=len(placement)).astype(np.uint64)
    assert (served == split.quotas).all()  # exact to the token
    print(f"batch {batch}: busiest rank {split.peak} tokens, {split.imbalance:.4f} of the average")

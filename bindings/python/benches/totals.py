"""Measures vLLM's case: re-planning on totals from vLLM's initial placement, judged on later batches under
its rule.

    EVENKEEL_REAL_TRACES=.. .tools/python/bin/python bindings/python/benches/totals.py

The trace is gpt-oss-20b with tokens shuffled into batches. The sum of its first half is planned on, and the
second half judges. EPLB plans from scratch, as in vLLM. All others start from the running placement. The
columns are the imbalance under vllm, even and exact, and the moves per layer.
"""

import os
import pathlib

import numpy as np

import evenkeel
from evenkeel import _native
from evenkeel._replan import moves

EXPERTS = 32


def main():
    traces = pathlib.Path(os.environ["EVENKEEL_REAL_TRACES"])
    ids = np.load(traces / "gptoss20b-decode/routed_experts.npz")["routed_experts"]
    layers = ids.shape[1]
    for width in (64, 512):
        count = min(200, len(ids) // width)
        order = np.random.default_rng(0).permutation(len(ids))[: width * count]
        tokens = ids[order].reshape(count, width, layers, -1).transpose(0, 2, 1, 3).reshape(count, layers, -1)
        loads = np.stack([[np.bincount(layer, minlength=EXPERTS) for layer in batch] for batch in tokens])
        totals, later = loads[: count // 2].sum(axis=0), np.ascontiguousarray(loads[count // 2 :])
        for redundant, ranks in ((8, 8), (16, 16)):
            slots = EXPERTS + redundant
            running = np.tile(np.arange(slots) % EXPERTS, (layers, 1))
            print(f"{width} tokens, {ranks} ranks x {slots // ranks}")
            for policy in ("running", "eplb", "recourse:vllm", "recourse", "recourse:exact"):
                maps = running
                if policy != "running":
                    previous = None if policy == "eplb" else running
                    maps = evenkeel.eplb.rebalance_experts(
                        totals[None], slots, 1, 1, ranks, policy=policy, previous=previous
                    )[0]
                splits = ("vllm", "even", "exact")
                judged = [f"{_native.imbalance(later, maps, ranks, split=split):7.3f}" for split in splits]
                moved = moves(maps, running, ranks, EXPERTS) / layers
                print(f"  {policy:15}", *judged, f"{moved:7.1f}")


if __name__ == "__main__":
    main()

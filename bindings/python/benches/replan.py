"""Times a re-planning inside a stack with and without its line in the log: the cost of judging the
placements.

    .tools/python/bin/python bindings/python/benches/replan.py

The shape is 58 layers of 256 experts, 288 slots on 32 ranks in 4 nodes. SGLang's loads are 1000 batches,
vLLM's are totals. Figures are computed only if the log has level INFO; at WARNING nothing is judged.
"""

import logging
import time

import numpy as np

import evenkeel
from evenkeel import _replan
from evenkeel._active_split import always, exactly
from evenkeel._plugin import Settings

LAYERS, EXPERTS, SLOTS, RANKS, NODES = 58, 256, 288, 32, 4


def timed(call):
    begun = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begun


def main():
    logger = logging.getLogger("evenkeel")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    rng = np.random.default_rng(0)
    liking = rng.lognormal(0, 1, (1, LAYERS, EXPERTS))
    batches = rng.poisson(2048 * 8 * liking / liking.sum(axis=2, keepdims=True), (1000, LAYERS, EXPERTS))
    running = evenkeel.eplb.rebalance_experts(batches[:100].sum(axis=0), SLOTS, 8, NODES, RANKS)[0]
    for stack, loads, active in [
        ("SGLang, static", batches, always("sglang-static")),
        ("SGLang, exact", batches, always("exact")),
        ("SGLang, exact and graphs", batches, exactly("sglang-random", True)),
        ("vLLM", batches.sum(axis=0)[None], always("vllm")),
        ("vLLM, exact and graphs", batches.sum(axis=0)[None], exactly("vllm", True)),
    ]:
        logger.setLevel(logging.WARNING)
        call = lambda: _replan.replan(
            Settings("recourse", None), loads, SLOTS, RANKS, NODES, 8, running, lambda: active
        )
        maps, plan = timed(call)
        logger.setLevel(logging.INFO)
        judge = lambda: _replan.log_replan("", active.judged, loads, maps, RANKS, NODES, 8, running)
        log = min(timed(judge)[1] for _ in range(3))
        print(f"{stack:26} planning {plan:7.2f} s, the line {log:6.3f} s ({100 * log / plan:.1f} %)")


if __name__ == "__main__":
    main()

"""Tests EPLB's call: its published example, its algorithm on random inputs, and other policies behind the
same call.
"""

import time

import numpy as np
import pytest

import evenkeel
from evenkeel.eplb import rebalance_experts

WEIGHT = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)


def pack(weight, packs):
    """Packs items in descending order of weight, each into the lightest pack with room.

    Returns (pack, place within it) of every item.
    """
    room = len(weight) // packs
    if room == 1:
        return np.arange(len(weight)), np.zeros(len(weight), dtype=int)
    pack_of, place_of = np.empty(len(weight), dtype=int), np.empty(len(weight), dtype=int)
    filled, held = np.zeros(packs, dtype=np.float32), np.zeros(packs, dtype=int)
    for item in np.argsort(-weight, kind="stable"):
        best = min((p for p in range(packs) if held[p] < room), key=lambda p: filled[p])
        pack_of[item], place_of[item] = best, held[best]
        filled[best] += weight[item]
        held[best] += 1
    return pack_of, place_of


def replicate(weight, slots):
    """Gives each expert one replica, and each further replica to the largest weight per replica.

    Returns (expert, number of the replica) of every slot.
    """
    copies = np.ones(len(weight), dtype=np.float32)
    expert, rank = list(range(len(weight))), [0] * len(weight)
    for _ in range(slots - len(weight)):
        heaviest = int(np.argmax(weight / copies))
        expert.append(heaviest)
        rank.append(int(copies[heaviest]))
        copies[heaviest] += 1
    return np.array(expert), copies


def reference(weight, slots, groups, nodes, gpus):
    """Restates DeepSeek's algorithm layer by layer."""
    if groups % nodes:
        groups, nodes = 1, 1
    maps = []
    for row in weight.astype(np.float32):
        size = len(row) // groups
        of_groups = row.reshape(groups, size)
        node_of, place = pack(np.array([part.sum() for part in of_groups], dtype=np.float32), nodes)
        physical = []
        for node in range(nodes):
            mine = sorted((g for g in range(groups) if node_of[g] == node), key=lambda g: place[g])
            experts = np.concatenate([np.arange(g * size, (g + 1) * size) for g in mine])
            copy_of, copies = replicate(row[experts], slots // nodes)
            per_copy = (row[experts] / copies)[copy_of]
            gpu, seat = pack(per_copy, gpus // nodes)
            order = np.lexsort((seat, gpu))
            physical.append(experts[copy_of[order]])
        maps.append(np.concatenate(physical))
    return np.stack(maps)


def test_published_example():
    phy2log, log2phy, logcnt = rebalance_experts(WEIGHT, 16, 4, 2, 8)
    assert phy2log.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert phy2log.dtype == log2phy.dtype == logcnt.dtype == np.int64
    for layer in range(2):
        for expert in range(12):
            held = np.flatnonzero(phy2log[layer] == expert)
            assert logcnt[layer, expert] == len(held)
            row = log2phy[layer, expert]
            assert sorted(row[row >= 0]) == held.tolist()


def test_a_thousand_random_inputs(record_property):
    rng = np.random.default_rng(0)
    ours = theirs = 0.0
    for _ in range(1000):
        nodes, gpus_per_node = rng.choice([1, 2, 4]), rng.choice([1, 2, 4])
        gpus = int(nodes * gpus_per_node)
        groups = int(nodes * rng.choice([1, 2])) if rng.random() < 0.7 else 1
        size = int(rng.integers(1, 5))
        experts = groups * size
        if experts * 4 % gpus:
            experts, groups = gpus * size, gpus
        slots = experts
        while slots % gpus or rng.random() < 0.5:
            slots += 1
        layers = int(rng.integers(1, 4))
        kind = rng.integers(3)
        weight = {
            0: rng.integers(0, 200, (layers, experts)),  # ties among them
            1: rng.integers(0, 3, (layers, experts)),
            2: rng.lognormal(3, 1, (layers, experts)).astype(np.float32),
        }[int(kind)]
        begun = time.perf_counter()
        expected = reference(weight, slots, groups, int(nodes), gpus)
        middle = time.perf_counter()
        phy2log, _, _ = rebalance_experts(weight, slots, groups, int(nodes), gpus)
        ours, theirs = ours + time.perf_counter() - middle, theirs + middle - begun
        assert phy2log.tolist() == expected.tolist(), (weight, slots, groups, nodes, gpus)
    record_property("per call", f"{ours * 1e3:.0f} us, restatement in NumPy {theirs * 1e3:.0f} us")


@pytest.mark.parametrize("policy", ["recourse", "contiguous", "eplb:trtllm"])
def test_other_policies_behind_the_same_call(policy):
    rng = np.random.default_rng(1)
    batches = rng.poisson(rng.lognormal(2, 1, (1, 2, 16)), (6, 2, 16))
    phy2log, log2phy, logcnt = rebalance_experts(batches, 24, 1, 1, 8, policy=policy)
    assert phy2log.shape == (2, 24) and (logcnt.sum(axis=1) == 24).all() and (logcnt >= 1).all()
    again = rebalance_experts(batches, 24, 1, 1, 8, policy=policy)
    assert (again[0] == phy2log).all()


def test_what_is_running_is_kept():
    rng = np.random.default_rng(2)
    before = rng.poisson(rng.lognormal(2, 1, (1, 2, 16)), (6, 2, 16))
    after = rng.poisson(rng.lognormal(2, 1, (1, 2, 16)), (6, 2, 16))
    running, _, _ = rebalance_experts(before, 24, 1, 1, 8, policy="recourse")
    def moved(new):
        held = lambda maps, layer: [set(maps[layer, r * 3 : r * 3 + 3]) for r in range(8)]
        return [sum(len(n - o) for n, o in zip(held(new, l), held(running, l))) for l in range(2)]

    none, _, _ = rebalance_experts(after, 24, 1, 1, 8, policy="recourse", previous=running, max_moves=0)
    assert moved(none) == [0, 0]
    few, _, _ = rebalance_experts(after, 24, 1, 1, 8, policy="recourse", previous=running, max_moves=3)
    assert max(moved(few)) <= 3


def test_zero_load_and_fractions():
    for policy in ("eplb", "recourse"):
        phy2log, _, logcnt = rebalance_experts(np.zeros((2, 8), dtype=np.int64), 16, 1, 1, 4, policy=policy)
        assert (logcnt >= 1).all() and phy2log.shape == (2, 16)
    fractions = np.random.default_rng(0).random((1, 8)) * 1e-3
    rebalance_experts(fractions, 16, 1, 1, 4, policy="recourse")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((WEIGHT, 17, 4, 2, 8), "17 slots do not divide over 8 ranks"),
        ((WEIGHT, 8, 4, 2, 8), "8 slots cannot hold 12 experts"),
        ((WEIGHT, 16, 5, 1, 8), "do not divide into 5 groups"),
        ((WEIGHT, 16, 4, 2, 0), "0 ranks"),
        ((WEIGHT[0], 16, 4, 2, 8), r"expected \[layers, experts\]"),
        ((-WEIGHT, 16, 4, 2, 8), "from 0 on"),
        ((WEIGHT * np.nan, 16, 4, 2, 8), "from 0 on"),
    ],
)
def test_errors_say_what_was_expected(arguments, message):
    with pytest.raises(evenkeel.Error, match=message):
        rebalance_experts(*arguments)

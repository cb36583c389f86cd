"""Writes eplb_reference.json: random inputs and the placements that EPLB gives for them.

This restates DeepSeek's published algorithm for whole arrays in NumPy float32. It shares no code with the
Rust implementation, which is compared with it: it builds index permutations where Rust builds lists. Ties are
broken by stable sorts and by the first maximum.

    python3 tests/data/eplb_reference.py
"""

import json
import pathlib

import numpy as np

F = np.float32


def pack(weights, packs):
    """[n] weights -> (pack of each item, place of each item within its pack)."""
    n = len(weights)
    if n == packs:
        return np.arange(n), np.zeros(n, int)
    pack_of, place_of = np.full(n, -1), np.full(n, -1)
    sums, counts = np.zeros(packs, F), np.zeros(packs, int)
    for item in np.argsort(-weights, kind="stable"):
        open_packs = np.flatnonzero(counts < n // packs)
        pack = open_packs[np.argmin(sums[open_packs])]
        pack_of[item], place_of[item] = pack, counts[pack]
        sums[pack] += weights[item]
        counts[pack] += 1
    return pack_of, place_of


def replicate(weights, slots):
    phy2log = np.arange(slots)
    count = np.ones(len(weights), np.int64)
    for slot in range(len(weights), slots):
        phy2log[slot] = np.argmax(weights / count.astype(F))
        count[phy2log[slot]] += 1
    return phy2log, count


def inverse(permutation):
    out = np.empty_like(permutation)
    out[permutation] = np.arange(len(permutation))
    return out


def rebalance(weights, slots, groups, nodes, ranks):
    if groups % nodes:
        groups, nodes = 1, 1
    experts = len(weights)
    size = experts // groups
    group_sums = weights.reshape(groups, size).sum(-1, dtype=F)
    node_of, place_of = pack(group_sums, nodes)
    first = (node_of * (groups // nodes) + place_of) * size
    log2mid = (first[:, None] + np.arange(size)).reshape(-1)
    mid2log = inverse(log2mid)
    out = []
    for node, logical in enumerate(mid2log.reshape(nodes, -1)):
        phy2mid, count = replicate(weights[logical], slots // nodes)
        shares = (weights[logical] / count.astype(F))[phy2mid]
        rank_of, place = pack(shares, ranks // nodes)
        physical = inverse(rank_of * (slots // ranks) + place)
        out.append(logical[phy2mid[physical]])
    return np.concatenate(out)


rng = np.random.default_rng(7)
cases = []
while len(cases) < 300:
    nodes = int(rng.choice([1, 1, 2, 4]))
    ranks = nodes * int(rng.choice([1, 2, 4, 8]))
    groups = int(rng.choice([1, 2, 4, 8]))
    experts = groups * int(rng.integers(1, 9))
    slots = ranks * int(-(-experts // ranks) + rng.integers(0, 3))
    effective = nodes if groups % nodes == 0 else 1
    if experts % effective or slots // effective < experts // effective or slots % ranks:
        continue
    kind = rng.integers(4)
    if kind == 0:
        weights = rng.integers(0, 200, experts)
    elif kind == 1:  # ties everywhere
        weights = rng.integers(0, 4, experts)
    elif kind == 2:  # heavy tail, still below 2^24 in any sum: exact in float32
        weights = np.minimum(rng.pareto(0.8, experts) * 50, 100_000).astype(int)
    else:
        weights = rng.integers(0, 1 << 16, experts)
    phy2log = rebalance(weights.astype(F), slots, groups, nodes, ranks)
    cases.append(
        dict(weights=weights.tolist(), slots=slots, groups=groups, nodes=nodes, ranks=ranks, phy2log=phy2log.tolist())
    )

example = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
expected = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
for weights, wanted in zip(example, expected):
    assert rebalance(np.array(weights, F), 16, 4, 2, 8).tolist() == wanted
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
print(f"{len(cases)} cases written to {path}")

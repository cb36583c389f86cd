"""Tests LPLB's planner: its placement, its call and exact quotas."""

import numpy as np
import pytest
from conftest import counts_of

import evenkeel

RING = np.array([[1], [2], [3], [4], [5], [6], [7], [0]])
CUBE = np.array([[3, 6], [0, 7], [1, 4], [2, 5], [7, 0], [4, 1], [5, 2], [6, 3]])


@pytest.mark.parametrize("table, ranks, per_rank", [(RING, 8, 1), (RING, 32, 1), (CUBE, 32, 2), (CUBE, 32, 4)])
def test_copies_follow_the_graph(table, ranks, per_rank):
    rng = np.random.default_rng(0)
    planner = evenkeel.lplb.Planner(table, 256 + per_rank * ranks, 256, ranks)
    workload = np.maximum(rng.normal(1, 0.15, 256), 0) * 2**20
    phy2log, log2phy, logcnt = planner.update_redundancy_mapping(workload.astype(np.int64))
    assert logcnt.max() == 2 and logcnt.sum() == len(phy2log) == 256 + per_rank * ranks
    held = phy2log.reshape(ranks, -1)
    homes = held[:, : 256 // ranks]
    assert sorted(homes.reshape(-1)) == list(range(256))
    group = len(table)
    for rank in range(ranks):
        for d in range(per_rank):
            source = rank - rank % group + table[rank % group, d % table.shape[1]]
            assert held[rank, 256 // ranks + d] == homes[source, d]
    batch = (np.maximum(rng.normal(1, 0.3, 256), 0) * 2**12).astype(np.int64)
    split = planner.split(batch)
    assert split.rank_loads.sum() == batch.sum() and split.peak < batch[homes].sum(axis=1).max()


def test_run_redirects_every_id():
    rng = np.random.default_rng(1)
    planner = evenkeel.lplb.Planner(RING, 24, 16, 8)
    planner.update_redundancy_mapping(rng.integers(1, 99, 16))
    ids = rng.integers(-1, 16, (512, 4)).astype(np.int32)
    available = np.zeros((), dtype=np.int64)
    slots = planner.run(ids, available, n_sms=20)
    assert slots.shape == ids.shape and slots.dtype == ids.dtype and available == planner.n_group == 1
    kept = ids >= 0
    assert (slots[~kept] == -1).all() and (planner.phy2log[slots[kept]] == ids[kept]).all()
    loads = counts_of(slots, 24).reshape(8, 3).sum(axis=1)
    assert loads.max() == planner.split(counts_of(ids, 16)).peak


def test_without_a_past_experts_stand_in_order():
    planner = evenkeel.lplb.Planner(RING, 24, 16, 8)
    assert planner.phy2log.reshape(8, 3).tolist()[:2] == [[0, 1, 2], [2, 3, 4]]
    assert planner.run(np.array([[3]])).tolist() == [[4]]


def test_any_placement_with_three_copies():
    planner = evenkeel.lplb.Planner(RING, 24, 16, 8)
    placement = np.concatenate([np.arange(16).reshape(8, 2), np.zeros((8, 1), dtype=int)], axis=1)
    placement[0, 2] = 5
    planner.physical_to_logical = placement.reshape(-1)
    assert planner.logcnt[0] == 8 and planner.split(np.eye(16, dtype=int)[0] * 80).peak == 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[1], [1]], 10, 8, 2), "permutation|column"),
        (([[0], [1]], 10, 8, 2), "column|itself|own"),
        ((RING, 24, 16, 12), "multiple of the group of 8"),
        ((RING, 8, 16, 8), "cannot hold"),
        ((RING, 24, 16), "ep_size"),
        ((RING, 26, 18, 8), "divide"),
    ],
)
def test_errors_say_what_was_expected(arguments, message):
    with pytest.raises(evenkeel.Error, match=message):
        evenkeel.lplb.Planner(*arguments)

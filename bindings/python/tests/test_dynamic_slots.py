"""Dynamic slots: copies before each batch, and the slots that serve tokens after them."""

import numpy as np
import pytest

import evenkeel

RANKS, EXPERTS = 4, 8
HOMES = np.arange(EXPERTS, dtype=np.int64)


def hot_counts(expert):
    counts = np.full((RANKS, EXPERTS), 10, dtype=np.int64)
    counts[:, expert] = 200
    return counts


def test_copies_balance_a_hot_expert_and_tokens_meet_the_quotas():
    planner = evenkeel.Planner(HOMES, RANKS, dynamic_slots=1)
    counts = hot_counts(3)
    split = planner.split(counts)
    assert split.imbalance < 1.011
    assert split.copies.shape == (split.copies.shape[0], 4) and split.copies.dtype == np.uint32
    assert 0 < split.least_copies <= len(split.copies)
    after = planner.physical_to_logical
    for expert, sender, to, slot in split.copies:
        assert after[slot] == expert and slot // 3 == to and sender == expert // 2 != to
    served = np.zeros(len(after), dtype=np.uint64)
    for rank in range(RANKS):
        ids = np.repeat(np.arange(EXPERTS, dtype=np.int64), counts[rank])
        slots = planner.redirect(ids, rank)
        assert (after[slots] == ids).all()
        served += np.bincount(slots, minlength=len(after)).astype(np.uint64)
    assert (served == split.quotas).all()
    planner.check(counts)


def test_kept_copies_serve_again_and_shared_ones_do_not():
    for memory, again in (("kept", 0), ("shared", 3)):
        planner = evenkeel.Planner(HOMES, RANKS, dynamic_slots=1, memory=memory)
        first = len(planner.split(hot_counts(3)).copies)
        assert first == 3 and len(planner.split(hot_counts(3)).copies) == again


def test_copies_may_be_prepared_and_limited():
    planner = evenkeel.Planner(HOMES, RANKS, dynamic_slots=1, max_copies=2)
    prepared = planner.prepare_copies(hot_counts(3).sum(axis=0))
    assert len(prepared) == 2
    split = planner.split(hot_counts(5))
    assert (split.copies == prepared).all() and split.imbalance > 1.5


def test_without_dynamic_slots_nothing_is_copied():
    planner = evenkeel.Planner(HOMES, RANKS)
    split = planner.split(hot_counts(3))
    assert split.copies.shape == (0, 4) and split.least_copies == 0
    assert (planner.physical_to_logical == HOMES).all()
    with pytest.raises(evenkeel.Error, match="dynamic"):
        planner.prepare_copies(np.ones(EXPERTS, dtype=np.int64))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"memory": "both"}, "memory"),
        ({"imbalance_limit": -1.0}, "imbalance_limit"),
        ({"imbalance_limit": float("nan")}, "imbalance_limit"),
        ({"keep": "peak"}, "keep"),
        ({"dynamic_slots": 10**9}, "dynamic slots"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises((evenkeel.Error, ValueError), match=words):
        evenkeel.Planner(HOMES, RANKS, **{"dynamic_slots": 1, **options})


def test_wrong_shapes_are_refused():
    planner = evenkeel.Planner(HOMES, RANKS, dynamic_slots=1)
    with pytest.raises((evenkeel.Error, ValueError), match="shape"):
        planner.prepare_copies(np.ones(3, dtype=np.int64))

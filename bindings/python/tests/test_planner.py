"""Splits are exact, redirects meet them to the token, and errors on bad input state the expected value."""

import numpy as np
import pytest
from conftest import counts_of

import evenkeel


def batch(seed, dtype, ranks=8, experts=16, tokens=64, k=2):
    rng = np.random.default_rng(seed)
    skew = rng.dirichlet(np.full(experts, 0.3))
    ids = rng.choice(experts, size=(ranks, tokens, k), p=skew).astype(dtype)
    ids[rng.random(ids.shape) < 0.05] = -1
    return ids


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("seed", range(20))
def test_redirect_meets_the_quotas(ring, dtype, seed):
    ids = batch(seed, dtype)
    counts = np.stack([counts_of(part, 16) for part in ids])
    planner = evenkeel.Planner(ring, 8)
    split = planner.split(counts)
    planner.check(counts)
    served = np.zeros(24, dtype=np.uint64)
    for source in range(8):
        assert (planner.count(ids[source]) == counts[source]).all()
        slots = planner.redirect(ids[source], source)
        assert slots.dtype == dtype and slots.shape == ids[source].shape
        assert (slots[ids[source] == -1] == -1).all()
        kept = ids[source] >= 0
        assert (ring[slots[kept]] == ids[source][kept]).all()
        served += counts_of(slots, 24)
    assert (served == split.quotas).all()
    assert split.rank_loads.sum() == counts.sum()
    assert split.peak == split.rank_loads.max() and split.imbalance >= 1.0
    # The certificate: the experts confined to those ranks need this peak.
    inside = set(split.certificate.tolist())
    hosts = {e: {slot // 3 for slot in np.flatnonzero(ring == e)} for e in range(16)}
    confined = sum(int(counts[:, e].sum()) for e in range(16) if hosts[e] <= inside)
    assert -(-confined // len(inside)) == split.peak


def test_any_integers_and_any_layout_give_the_same(ring):
    counts = np.arange(128).reshape(8, 16) % 37
    planner = evenkeel.Planner(ring, 8)
    expected = planner.split(counts.astype(np.uint64)).quotas
    for dtype in (np.int64, np.int32, np.uint32):
        assert (planner.split(counts.astype(dtype)).quotas == expected).all()
    wide = np.zeros((8, 32), dtype=np.uint64)
    wide[:, ::2] = counts
    assert (planner.split(wide[:, ::2]).quotas == expected).all()
    assert (planner.split(np.asfortranarray(counts.astype(np.uint64))).quotas == expected).all()


def test_out_is_written_and_returned(ring):
    ids = batch(3, np.int32)[0]
    planner = evenkeel.Planner(ring, 8)
    counts = np.zeros((8, 16), dtype=np.uint64)
    counts[0] = counts_of(ids, 16)
    planner.split(counts)
    out = np.empty_like(ids)
    answer = planner.redirect(ids, 0, out)
    assert answer is out and (out == planner.redirect(ids, 0)).all()
    with pytest.raises(evenkeel.Error, match="shape"):
        planner.redirect(ids, 0, np.empty(3, dtype=np.int32))
    with pytest.raises(evenkeel.Error, match="type of topk_ids"):
        planner.redirect(ids, 0, np.empty(ids.shape, dtype=np.int64))
    with pytest.raises(evenkeel.Error, match="overlaps"):
        planner.redirect(ids, 0, ids)
    fixed = np.empty_like(ids)
    fixed.flags.writeable = False
    with pytest.raises(evenkeel.Error, match="read-only"):
        planner.redirect(ids, 0, fixed)


def test_least_traffic_at_the_same_peak(ring):
    counts = np.random.default_rng(0).integers(0, 50, (8, 16))
    plain, local = evenkeel.Planner(ring, 8), evenkeel.Planner(ring, 8, nodes=2, keep="vector")
    assert local.split(counts).peak == plain.split(counts).peak
    local.check(counts)


def test_nothing_to_do(ring):
    split = evenkeel.Planner(ring, 8).split(np.zeros((8, 16), dtype=np.int64))
    assert split.peak == 0 and split.imbalance == 1.0 and not split.quotas.any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p.split(np.zeros((7, 16), dtype=np.int64)), r"\[ranks, experts\] = \[8, 16\]"),
        (lambda p: p.split(np.full((8, 16), -1)), "-1 tokens"),
        (lambda p: p.split(np.zeros((8, 16))), "float64: expected uint64"),
        (lambda p: p.split([[1]]), "expected a NumPy array"),
        (lambda p: p.split(np.full((8, 16), 2**63, dtype=np.uint64)), r"more than 2\^64"),
        (lambda p: p.count(np.array([16])), "position 0: expert id 16"),
        (lambda p: p.count(np.array([-2])), "expert id -2"),
        (lambda p: p.redirect(np.array([0, 0]), 0), "more tokens"),
        (lambda p: p.redirect(np.array([0]), 8), "8 ranks"),
        (lambda p: evenkeel.Planner(np.array([0, 1]), 3), "3 ranks"),
        (lambda p: evenkeel.Planner(np.array([0, 2]), 2), "expert 1"),
        (lambda p: evenkeel.Planner(np.array([0, -2]), 2), "expert -2"),
        (lambda p: evenkeel.Planner(np.array([0, 1]), 2, keep="all"), "keep"),
    ],
)
def test_errors_say_what_was_expected(ring, call, message):
    planner = evenkeel.Planner(ring, 8)
    planner.split(np.zeros((8, 16), dtype=np.int64))
    with pytest.raises(evenkeel.Error, match=message):
        call(planner)


def test_a_plan_for_a_split():
    rng = np.random.default_rng(1)
    trace = evenkeel.Trace.from_loads(rng.poisson(rng.lognormal(3, 1, (1, 2, 16)), (12, 2, 16)))
    plan = lambda **options: evenkeel.plan(trace, ranks=8, redundant=8, **options)
    for split in ("exact", "even", "sglang-static", "sglang-dynamic", "sglang-random", "vllm", "vllm-ascend", "trtllm"):
        placed = plan(split=split)
        assert repr(placed).startswith(f"<evenkeel.Plan by recourse:{split}:")
        assert (placed.physical_to_logical == plan(policy=f"recourse:{split}").physical_to_logical).all()
    assert repr(plan(policy="recourse:even", split="even")).startswith("<evenkeel.Plan by recourse:even:")
    assert repr(plan(policy="recourse:worst", split="even")).startswith("<evenkeel.Plan by recourse:even:worst:")
    assert repr(plan(split=None)) == repr(plan())
    for options, words in [
        (dict(split="fair"), "unknown split `fair`: expected even, lp, exact"),
        (dict(split="vllm", policy="eplb"), "policy `eplb`: expected policy recourse"),
        (dict(split="vllm", policy="recourse:even"), "expected even, which the policy names, or none"),
    ]:
        with pytest.raises(evenkeel.Error, match=words):
            plan(**options)

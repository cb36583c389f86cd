"""Tests traces and plans as arrays, and plans that are written, read and exported."""

import json

import numpy as np
import pytest

import evenkeel

SAMPLES = __file__.rsplit("/bindings/", 1)[0] + "/traces"


def test_a_sample_as_arrays():
    trace = evenkeel.read_trace(f"{SAMPLES}/sample-decode.csv.zst")
    loads = trace.loads()
    assert loads.shape == (len(trace.steps), len(trace.layers), trace.experts) and loads.dtype == np.uint64
    assert (loads.sum(axis=0) == trace.totals()).all()
    table = trace.columns()
    assert table["tokens"].sum() == loads.sum() and len({len(column) for column in table.values()}) == 1
    where = np.searchsorted(trace.layers, table["layer"])
    assert (loads[table["step"], where, table["expert"]] == table["tokens"]).all()


def test_from_loads_and_back():
    loads = np.random.default_rng(0).integers(0, 50, (3, 2, 8))
    trace = evenkeel.Trace.from_loads(loads, layers=[3, 7])
    assert (trace.loads() == loads).all() and trace.layers.tolist() == [3, 7]
    with pytest.raises(evenkeel.Error, match="steps, layers, experts"):
        evenkeel.Trace.from_loads(loads[0])
    with pytest.raises(evenkeel.Error, match="layer ids"):
        evenkeel.Trace.from_loads(loads, layers=[1])


@pytest.mark.parametrize("policy", ["recourse", "eplb", "lplb:ring"])
def test_plan_save_load_export(tmp_path, policy):
    trace = evenkeel.read_trace([f"{SAMPLES}/sample-decode.csv.zst"])
    plan = evenkeel.plan(trace, ranks=8, redundant=8, policy=policy)
    maps = plan.physical_to_logical
    assert maps.shape == (len(plan.layers), 8 * plan.slots_per_rank) and (plan.imbalance >= 1).all()
    plan.save(tmp_path / "plan.json")
    assert (evenkeel.Plan.load(tmp_path / "plan.json").physical_to_logical == maps).all()
    assert (evenkeel.Plan.from_json(plan.to_json()).physical_to_logical == maps).all()
    sglang = json.loads(plan.export("sglang"))
    assert (np.array(sglang["physical_to_logical_map"])[plan.layers] == maps).all()
    planner = plan.planner(int(plan.layers[0]))
    assert planner.experts == trace.experts
    with pytest.raises(evenkeel.Error, match="not planned"):
        plan.planner(4000)
    with pytest.raises(evenkeel.Error, match="unknown format"):
        plan.export("tensorflow")


def test_errors_name_the_file(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(evenkeel.Error, match="bad.json"):
        evenkeel.Plan.load(tmp_path / "bad.json")
    with pytest.raises(evenkeel.Error, match="bad.json"):
        evenkeel.read_trace(tmp_path / "bad.json")
    with pytest.raises(evenkeel.Error, match="nowhere"):
        evenkeel.read_trace(tmp_path / "nowhere.csv")
    with pytest.raises(evenkeel.Error, match="order"):
        evenkeel.read_trace(tmp_path / "bad.json", order="sorted")
    trace = evenkeel.Trace.from_loads(np.ones((1, 1, 8), dtype=int))
    with pytest.raises(evenkeel.Error, match="do not divide"):
        evenkeel.plan(trace, ranks=8, redundant=3)
    with pytest.raises(evenkeel.Error, match="unknown policy"):
        evenkeel.plan(trace, ranks=8, redundant=8, policy="magic")


def test_redundant_slots_have_the_stacks_name_too():
    trace = evenkeel.Trace.from_loads(np.random.default_rng(2).integers(0, 50, (3, 2, 8)))
    expected = evenkeel.plan(trace, ranks=4, redundant=4, policy="eplb").physical_to_logical
    for options in (dict(num_redundant_experts=4), dict(redundant=4, num_redundant_experts=4)):
        plan = evenkeel.plan(trace, ranks=4, policy="eplb", **options)
        assert (plan.physical_to_logical == expected).all()
    words = "redundant 4, num_redundant_experts 8: expected one of them, or equal values"
    with pytest.raises(evenkeel.Error, match=words):
        evenkeel.plan(trace, 4, 4, num_redundant_experts=8)
    with pytest.raises(TypeError, match="expected redundant or num_redundant_experts"):
        evenkeel.plan(trace, ranks=4)


def test_plans_from_a_previous_plan():
    trace = evenkeel.read_trace(f"{SAMPLES}/sample-decode.csv.zst")
    first = evenkeel.plan(trace, 4, 16, policy="eplb")
    assert first.moves == {}
    again = evenkeel.plan(trace, 4, 16, policy="eplb", previous=first, max_moves=1)
    assert list(again.moves) == first.layers.tolist() and all(len(moves) <= 1 for moves in again.moves.values())
    left = evenkeel.plan(trace, 3, 3 * first.slots_per_rank - trace.experts, previous=first, lost_ranks=[1])
    assert left.ranks == 3 and any(source is None for moves in left.moves.values() for _, source, _, _ in moves)
    grown = evenkeel.plan(trace, 6, 6 * first.slots_per_rank - trace.experts, previous=first)
    assert grown.ranks == 6 and all(source is not None for moves in grown.moves.values() for _, source, _, _ in moves)
    safe = evenkeel.plan(trace, 4, trace.experts, survive_rank_loss="1", speeds=[1, 1, 2, 2])
    hosts = safe.physical_to_logical.reshape(len(safe.layers), 4, -1)
    assert all(((layer == expert).any(axis=1)).sum() >= 2 for layer in hosts for expert in range(trace.experts))
    small = evenkeel.plan(trace, 4, memory_budget=8 * len(first.layers))
    used = (small.physical_to_logical >= 0).sum() - trace.experts * len(small.layers)
    assert used <= 8 * len(first.layers)
    linked = evenkeel.plan(
        trace,
        4,
        16,
        previous=first,
        link_budget_bytes=3 * 1024**3,
        model="gpt-oss-20b",
        horizon_steps=1,
        link_gbps=1,
        gpu="h100",
    )
    assert all(not moves for moves in linked.moves.values()), "nothing pays within one step"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_moves": 1}, "a limit of moves: expected a previous plan"),
        ({"lost_ranks": [9]}, "lost ranks: expected a previous plan"),
        ({"survive_rank_loss": "2"}, 'expected "1" or "best"'),
        ({"horizon_steps": 5}, "expected link_gbps, model and gpu too"),
        ({"link_budget_bytes": 5}, "expected model too"),
        ({"speeds": [1, 2]}, "2 speeds for 4 ranks"),
    ],
)
def test_constraints_that_do_not_fit(options, words):
    trace = evenkeel.read_trace(f"{SAMPLES}/sample-decode.csv.zst")
    with pytest.raises(evenkeel.Error, match=words):
        evenkeel.plan(trace, 4, 4, **options)


def test_an_unknown_constraint_is_a_type_error():
    trace = evenkeel.read_trace(f"{SAMPLES}/sample-decode.csv.zst")
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_move'"):
        evenkeel.plan(trace, 4, 4, max_move=1)

"""Plug-ins against the stacks' own published modules, through the registration of entry points.

This file tests the placement. `test_sglang_split.py` and `test_vllm_split.py` test the split of every batch.
`stacks.py` states the source of the modules.
"""

import sys

import numpy as np
import pytest
import stacks

import evenkeel
from evenkeel._plugin import Settings, settings

ON = Settings("recourse", None)


def batches(seed, layers=3, experts=16, steps=6):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.lognormal(2, 1, (1, layers, experts)), (steps, layers, experts))


def moved(new, old, ranks):
    held = lambda maps, layer: [set(row) for row in maps[layer].reshape(ranks, -1).tolist()]
    return sum(len(n - o) for l in range(len(new)) for n, o in zip(held(new, l), held(old, l)))


def test_off_unless_asked(monkeypatch):
    for value in ("", "off"):
        monkeypatch.setenv("EVENKEEL_POLICY", value)
        assert settings() is None
        for plugin in (evenkeel.vllm, evenkeel.sglang, evenkeel.vllm_ascend):
            plugin.register()  # imports no stack
    monkeypatch.setenv("EVENKEEL_POLICY", "eplb")
    monkeypatch.setenv("EVENKEEL_MAX_MOVES", "4")
    assert settings() == Settings("eplb", 4)
    monkeypatch.setenv("EVENKEEL_MAX_MOVES", "few")
    with pytest.raises(evenkeel.Error, match="few"):
        settings()


def test_vllm_call():
    policy = evenkeel.vllm.policy_class(object, ON)
    loads = batches(0).sum(axis=0)
    first = policy.rebalance_experts(loads, 24, 1, 1, 8)
    assert first.shape == (3, 24) and first.dtype == np.int64
    assert all(set(row) == set(range(16)) for row in first.tolist())
    # Without load, as in profiling, nothing moves.
    assert (policy.rebalance_experts(np.zeros_like(loads), 24, 1, 1, 8, first) == first).all()
    # Under a new load, experts stay where possible.
    other = batches(1).sum(axis=0)
    again = policy.rebalance_experts(other, 24, 1, 1, 8, first)
    assert moved(again, first, 8) <= moved(policy.rebalance_experts(other, 24, 1, 1, 8), first, 8)
    # The number of ranks changes.
    assert policy.rebalance_experts(loads, 32, 1, 2, 16, first).shape == (3, 32)
    assert policy.rebalance_experts(loads, 18, 1, 1, 6, first).shape == (3, 18)
    assert policy.rebalance_experts(loads, 21, 4, 2, 7, np.full((3, 21), -1)).shape == (3, 21)


def test_vllm_max_moves():
    policy = evenkeel.vllm.policy_class(object, Settings("recourse", 2))
    first = policy.rebalance_experts(batches(0).sum(axis=0), 24, 1, 1, 8)
    again = policy.rebalance_experts(batches(1).sum(axis=0), 24, 1, 1, 8, first)
    assert moved(again, first, 8) <= 2 * 3


def test_sglang_call():
    loads = batches(2)
    loads[3:] = 0  # unused rows of the ring
    loads[:, 0] = 0  # a dense layer
    trivial = np.tile(np.arange(24) % 16, (3, 1))
    rebalance = evenkeel.sglang.rebalance_function(ON, lambda: trivial)
    maps, copies, counts = rebalance(
        tokens_per_expert=loads, num_physical_experts=24, num_local_physical_experts=3, num_groups=None, num_nodes=1,
        algorithm=None,
    )
    assert (maps[0] == trivial[0]).all() and (maps[1] != trivial[1]).any()
    for layer in range(3):
        for expert in range(16):
            held = copies[layer, expert]
            assert (maps[layer, held[held >= 0]] == expert).all() and counts[layer, expert] == (held >= 0).sum()


def test_vllm_ascend_call():
    policy = evenkeel.vllm_ascend.policy_class(object, ON)()
    table = np.tile(np.arange(24) % 16, (3, 1)).reshape(3, 8, 3)
    load = np.random.default_rng(0).integers(0, 99, table.shape)
    load[0, 2] *= 9  # two devices with far more than their share
    load[2, 5] *= 9
    load[1] = 0
    changed, priority, new = policy.rebalance_experts(table, load)
    new = np.array(new)
    assert changed == 1 and new.shape == table.shape and sorted(priority.tolist()) == [0, 1, 2] and priority[2] == 1
    assert (new[1] == table[1]).all()
    assert all(len(set(slots)) == 3 for layer in (0, 2) for slots in new[layer].tolist()), "no expert twice on a device"
    still, _, same = policy.rebalance_experts(table, np.zeros_like(load))
    assert still == 0 and (np.array(same) == table).all()


def test_vllm_own_classes(clean):
    torch = clean
    abstract = stacks.load("vllm.distributed.eplb.policy.abstract")
    default = stacks.load("vllm.distributed.eplb.policy.default")
    policy = evenkeel.vllm.policy_class(abstract.AbstractEplbPolicy, ON)
    assert issubclass(policy, abstract.AbstractEplbPolicy)
    loads = torch.from_numpy(batches(0).sum(axis=0)).float()
    answer = policy.rebalance_experts(loads, 24, 1, 1, 8, None)
    theirs = default.DefaultEplbPolicy.rebalance_experts(loads, 24, 1, 1, 8, None)
    assert type(answer) is type(theirs) and answer.dtype == theirs.dtype and answer.shape == theirs.shape
    weights = torch.from_numpy(np.random.default_rng(0).lognormal(3, 1, (58, 256)).astype(np.float32))
    theirs = default.DefaultEplbPolicy.rebalance_experts(weights, 288, 8, 4, 32, None)
    assert torch.equal(evenkeel.eplb.rebalance_experts(weights, 288, 8, 4, 32)[0], theirs)


def test_vllm_registration(clean, monkeypatch):
    abstract = stacks.load("vllm.distributed.eplb.policy.abstract")
    package = sys.modules["vllm.distributed.eplb.policy"]
    package.AbstractEplbPolicy, package.EPLB_POLICIES = abstract.AbstractEplbPolicy, {"default": object}
    monkeypatch.setenv("EVENKEEL_POLICY", "recourse")
    evenkeel.vllm.register()
    assert issubclass(package.EPLB_POLICIES["default"], abstract.AbstractEplbPolicy)


def test_sglang_own_hooks(clean, monkeypatch):
    torch = clean
    registry = stacks.load("sglang.srt.plugins.hook_registry").HookRegistry
    algorithms = stacks.load("sglang.srt.eplb.eplb_algorithms")
    monkeypatch.setenv("EVENKEEL_POLICY", "recourse")
    evenkeel.sglang.register()
    assert list(registry._hooks) == [evenkeel.sglang.TARGET]
    registry.apply_hooks()
    monkeypatch.setattr(evenkeel.sglang, "running_placement", lambda: None)  # no server runs here
    loads = torch.from_numpy(batches(4))
    shape = dict(num_physical_experts=24, num_local_physical_experts=3, num_groups=1, num_nodes=1)
    algorithm = algorithms.EplbAlgorithm.deepseek
    ours = algorithms.rebalance_experts(tokens_per_expert=loads, **shape, algorithm=algorithm)
    registry.reset()
    expected = evenkeel.eplb.rebalance_experts(loads.numpy(), 24, 1, 1, 8, policy="recourse")
    assert all((our.numpy() == part).all() for our, part in zip(ours, expected))
    theirs = algorithms.deepseek.rebalance_experts(
        weight=loads.sum(dim=0), num_replicas=24, num_groups=1, num_nodes=1, num_gpus=8, enable_hierarchical=False
    )
    for our, their in zip(ours, theirs):
        assert our.dtype == their.dtype and our.shape[:2] == their.shape[:2]


def test_sglang_reads_the_running_placement(clean, ring):
    from sglang_rank import LAYERS, Rank

    maps = np.tile(ring, (LAYERS, 1))
    Rank(clean, maps).place(maps)
    assert (evenkeel.sglang.running_placement() == maps).all()


def test_vllm_ascend_own_factory(clean, monkeypatch):
    """The factory's module imports all its policies and vLLM's logger, so the class runs from its source."""
    abstract = stacks.load("vllm_ascend.eplb.core.policy.policy_abstract")
    factory = stacks.take(
        "vllm_ascend.eplb.core.policy.policy_factory", "PolicyFactory", EplbPolicy=abstract.EplbPolicy
    )
    monkeypatch.setenv("EVENKEEL_POLICY", "recourse")
    evenkeel.vllm_ascend.register()
    policy = factory.PolicyFactory.generate_policy(1)
    assert isinstance(policy, abstract.EplbPolicy)
    table = np.tile(np.arange(24) % 16, (2, 1)).reshape(2, 8, 3)
    changed, _, new = policy.rebalance_experts(table, np.random.default_rng(0).integers(0, 99, table.shape))
    assert changed == 1 and np.array(new).shape == table.shape

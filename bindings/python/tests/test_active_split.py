"""The active split of each stack: plug-ins plan for it, and their log reports the placement under it.

Real: SGLang's `runtime_context`, `cuda_graph_config` and `HookRegistry`; vLLM's `set_current_vllm_config`,
its reader and `CUDAGraphMode` (from their source, since the configuration's module imports a whole server);
vllm-ascend's `PolicyFactory`. The tests set the values that a server publishes.
"""

import contextlib
import enum
import functools
import logging
import re
import sys
import types

import numpy as np
import pytest
import stacks
from test_stacks import batches, moved
from test_vllm_split import Vllm

import evenkeel
from evenkeel import _native, _plugin, _vllm_split
from evenkeel._active_split import ActiveSplit, always, resolved
from evenkeel._plugin import Settings

ON = Settings("recourse", None)
SLOTS, RANKS = 24, 8
FIGURES = re.compile(r"([\d.]+)(?: \((?:eplb ([\d.]+))?(?:, )?(?:running ([\d.]+))?\))? under ([a-z-]+)")


@pytest.fixture
def said(caplog, monkeypatch):
    """Returns the lines of the log. Messages that are logged once may appear again."""
    _plugin.warn_once.cache_clear()
    monkeypatch.setattr(_vllm_split, "_config", None)
    caplog.set_level(logging.INFO, logger="evenkeel")
    return lambda: [record.getMessage() for record in caplog.records]


def planned(loads, policy, previous=None):
    """Returns the placement by a policy, with or without a split in its name."""
    return evenkeel.eplb.rebalance_experts(loads, SLOTS, 1, 1, RANKS, policy=policy, previous=previous)[0]


def check(line, policy, splits, loads, maps, running=None):
    """Checks one line of the log: the policy, and every figure against a computation in the test."""
    loads = loads.reshape(-1, *loads.shape[-2:])
    assert line.startswith(f"evenkeel: {policy}: mean imbalance of {loads.any(axis=(0, 2)).sum()} layers on "), line
    assert ("totals, not single batches" if len(loads) == 1 else f"{len(loads)} batches") in line
    eplb = planned(loads.sum(axis=0), "eplb")
    found = FIGURES.findall(line)
    assert tuple(split for *_, split in found) == splits, line
    for own, theirs, ran, split in found:
        judge = lambda placement: f"{_native.imbalance(loads, placement, RANKS, split=split):.3f}"
        assert (own, theirs) == (judge(maps), judge(eplb)), line
        assert ran == ("" if running is None else judge(running))
    ends = "" if running is None else f"; {moved(maps, running, RANKS)} moves"
    assert line.endswith(f"under {splits[-1]}{ends}")


def sglang(torch, a2a, algorithm, decode="full", prefill="breakable"):
    """Publishes SGLang's state for these options, as a server does."""
    from sglang_rank import Rank

    rank = Rank(torch, np.tile(np.arange(SLOTS) % 16, (3, 1)), a2a, algorithm)
    graphs = stacks.load("sglang.srt.model_executor.cuda_graph_config")
    config = graphs.CudaGraphConfig(graphs.PhaseConfig(backend=decode), graphs.PhaseConfig(backend=prefill))
    bags = sys.modules["sglang.srt.runtime_context"].get_context()._config_bags
    bags["exec"].graph = types.SimpleNamespace(cuda_graph_config=config)
    return rank


OFF = ("disabled", "disabled")
SGLANG = [
    ("", "none", "dynamic", ("full", "breakable"), "sglang-dynamic", ()),
    ("", "none", "fake", OFF, "sglang-dynamic", ()),
    ("", "deepep", "static", OFF, "sglang-static", ()),
    ("", "deepep", "dynamic", OFF, "sglang-random", ()),
    ("", "deepep", "fake", OFF, "sglang-random", ()),
    ("", "deepep", "lp", ("full", "breakable"), "exact", ()),
    ("exact", "none", "dynamic", OFF, "exact", ()),
    ("exact", "none", "dynamic", ("full", "disabled"), None, ("exact", "sglang-dynamic")),
    ("exact", "none", "dynamic", ("disabled", "breakable"), None, ("exact", "sglang-dynamic")),
    ("exact", "none", "fake", OFF, "sglang-dynamic", ()),
    ("exact", "deepep", "lp", OFF, "exact", ()),
    ("exact", "deepep", "lp", ("full", "disabled"), None, ("exact", "sglang-random")),
    ("exact", "deepep", "static", OFF, "sglang-static", ()),
    ("exact", "deepep", "dynamic", ("full", "breakable"), "sglang-random", ()),
]


@pytest.mark.parametrize("split, a2a, algorithm, graphs, plans_for, judged", SGLANG)
def test_sglang(clean, monkeypatch, said, split, a2a, algorithm, graphs, plans_for, judged):
    monkeypatch.setenv("EVENKEEL_POLICY", "recourse")
    monkeypatch.setenv("EVENKEEL_SPLIT", split)
    rank = sglang(clean, a2a, "dynamic" if algorithm == "lp" else algorithm)
    algorithms = stacks.load("sglang.srt.eplb.eplb_algorithms")
    if split:
        stacks.stand_in("sglang.srt.layers.moe.topk", resolve_routing_inputs=lambda: None)
    rank.start()
    running = rank.placement
    # A server may change its options until it plans.
    sglang(clean, a2a, algorithm, *graphs)
    monkeypatch.setattr(evenkeel.sglang, "running_placement", lambda: running)
    loads = batches(4)
    maps = algorithms.rebalance_experts(
        tokens_per_expert=clean.from_numpy(loads), num_physical_experts=SLOTS, num_local_physical_experts=3,
        num_groups=1, num_nodes=1, algorithm=algorithms.EplbAlgorithm.deepseek,
    )[0].numpy()  # fmt: skip
    policy = f"recourse:{plans_for}" if plans_for else "recourse"
    assert (maps == planned(loads, policy, running)).all()
    check(said()[-1], policy, judged or (plans_for,), loads, maps, running)


def test_sglang_without_a_configuration(clean, said):
    stacks.load("sglang.srt.runtime_context")
    rebalance = evenkeel.sglang.rebalance_function(ON, lambda: None)
    loads = batches(4)
    for _ in range(2):
        maps = rebalance(loads, SLOTS, 3, None, 1)[0]
        assert (maps == planned(loads, "recourse")).all()
        check(said()[-1], "recourse", ("exact", "even"), loads, maps)
    assert sum("SGLang's split cannot be read (config namespace 'exec' not published)" in line for line in said()) == 1
    # No rule applies to ids that are not mapped.
    sglang(clean, "none", None)
    assert sys.modules["sglang.srt.runtime_context"].get_exec().moe.ep_dispatch_algorithm is None
    assert evenkeel.sglang.active_split() == ActiveSplit(None, ("exact", "even"))


@pytest.fixture
def vllm(clean, monkeypatch):
    """Returns a class that starts vLLM: its policies, and the way in which it sets its configuration."""
    modes = stacks.take("vllm.config.compilation", "CUDAGraphMode", enum=enum)
    counter = stacks.stand_in("vllm.compilation.counter", compilation_counter=types.SimpleNamespace(num_models_seen=0))
    assert counter.compilation_counter.num_models_seen == 0
    config = stacks.take(
        "vllm.config.vllm", "set_current_vllm_config", "get_current_vllm_config_or_none", "get_cached_compilation_config",
        _current_vllm_config=None, _current_prefix=None,
    )  # fmt: skip
    config.get_cached_compilation_config = functools.lru_cache(config.get_cached_compilation_config)
    setting = contextlib.contextmanager(config.set_current_vllm_config)
    package = sys.modules["vllm.config"]
    package.get_current_vllm_config_or_none = config.get_current_vllm_config_or_none
    abstract = stacks.load("vllm.distributed.eplb.policy.abstract")
    policies = sys.modules["vllm.distributed.eplb.policy"]
    policies.AbstractEplbPolicy, policies.EPLB_POLICIES = abstract.AbstractEplbPolicy, {"default": object}

    class Server:
        """A model made under its configuration. Plans are made outside of it."""

        def __init__(self, policy="recourse", split="", mode=None):
            monkeypatch.setenv("EVENKEEL_POLICY", policy)
            monkeypatch.setenv("EVENKEEL_SPLIT", split)
            ranks = Vllm(clean, np.tile(np.arange(SLOTS) % 16, (3, 1)))
            evenkeel.vllm.register()
            self.compilation = types.SimpleNamespace(cudagraph_mode=modes.CUDAGraphMode["FULL_AND_PIECEWISE"])
            if mode is not None:
                with setting(types.SimpleNamespace(compilation_config=self.compilation)):
                    ranks.runner.MoERunner()
                # vLLM determines the mode after it has made the model.
                self.compilation.cudagraph_mode = modes.CUDAGraphMode[mode]
            assert config.get_current_vllm_config_or_none() is None
            self.policy = policies.EPLB_POLICIES["default"]

        def plan(self, loads, running=None):
            given = None if running is None else clean.from_numpy(running)
            return self.policy.rebalance_experts(clean.from_numpy(loads), SLOTS, 1, 1, RANKS, given).numpy()

    return Server


VLLM = [
    ("", None, "vllm", ()),
    ("", "NONE", "vllm", ()),
    ("exact", "NONE", "exact", ()),
    ("exact", "PIECEWISE", None, ("exact", "vllm")),
    ("exact", "FULL_AND_PIECEWISE", None, ("exact", "vllm")),
    ("exact", "FULL_DECODE_ONLY", None, ("exact", "vllm")),
    ("exact", None, None, ("exact", "even")),
]


@pytest.mark.parametrize("split, mode, plans_for, judged", VLLM)
def test_vllm(vllm, said, split, mode, plans_for, judged):
    server = vllm(split=split, mode=mode)
    policy = f"recourse:{plans_for}" if plans_for else "recourse"
    loads = batches(4).sum(axis=0)
    first = server.plan(loads)
    assert (first == planned(loads, policy)).all()
    check(said()[-1], policy, judged or (plans_for,), loads, first)
    # A layer without load keeps its running placement and does not count.
    later = batches(5).sum(axis=0)
    later[1] = 0
    second = server.plan(later, first)
    assert (second[1] == first[1]).all()
    check(said()[-1], policy, judged or (plans_for,), later, second, first)
    assert sum("vLLM's split cannot be read" in line for line in said()) == (judged == ("exact", "even"))
    # Profiling has no load, so nothing is planned or logged.
    lines = len(said())
    assert (server.plan(np.zeros_like(loads), second) == second).all() and len(said()) == lines


@pytest.mark.parametrize(
    "policy, planned_by, judged",
    [
        ("recourse:even", "recourse:even", ("even", "vllm")),
        ("recourse:vllm", "recourse:vllm", ("vllm",)),
        ("recourse:worst:exact", "recourse:worst:exact", ("exact", "vllm")),
        ("recourse:worst", "recourse:vllm:worst", ("vllm",)),
        ("eplb", "eplb", ("vllm",)),
    ],
)
def test_a_named_split_stays(vllm, said, policy, planned_by, judged):
    loads = batches(4).sum(axis=0)
    maps = vllm(policy).plan(loads)
    assert (maps == planned(loads, planned_by)).all()
    check(said()[-1], planned_by, judged, loads, maps)


def test_vllm_ascend(clean, monkeypatch, said):
    abstract = stacks.load("vllm_ascend.eplb.core.policy.policy_abstract")
    factory = stacks.take(
        "vllm_ascend.eplb.core.policy.policy_factory", "PolicyFactory", EplbPolicy=abstract.EplbPolicy
    )
    monkeypatch.setenv("EVENKEEL_POLICY", "recourse")
    evenkeel.vllm_ascend.register()
    running = np.tile(np.arange(SLOTS) % 16, (2, 1))
    served = np.random.default_rng(0).integers(0, 99, running.shape)
    loads = np.stack([np.bincount(row, weights, 16) for row, weights in zip(running, served)]).astype(np.int64)
    _, _, table = factory.PolicyFactory.generate_policy(1).rebalance_experts(
        running.reshape(2, RANKS, 3), served.reshape(2, RANKS, 3)
    )
    maps = np.array(table).reshape(running.shape)
    assert (maps == planned(loads, "recourse:vllm-ascend", running)).all()
    check(said()[-1], "recourse:vllm-ascend", ("vllm-ascend",), loads, maps, running)


def test_many_batches_are_sampled(said):
    rebalance = evenkeel.sglang.rebalance_function(Settings("eplb", None), lambda: None)
    loads = batches(6, steps=40)
    loads[30:] = 0
    rebalance(loads, SLOTS, 3, None, 1)
    assert "of 3 layers on 16 of 30 batches" in said()[-1]


def test_nothing_is_judged_without_a_reader(monkeypatch):
    monkeypatch.setattr(_native, "imbalance", lambda *_, **__: pytest.fail("judged"))
    logging.getLogger("evenkeel").setLevel(logging.WARNING)
    try:
        evenkeel.vllm.policy_class(object, ON).rebalance_experts(batches(0).sum(axis=0), SLOTS, 1, 1, RANKS)
    finally:
        logging.getLogger("evenkeel").setLevel(logging.NOTSET)


def test_lines_go_where_the_stack_s_go(monkeypatch):
    """vLLM attaches handlers to its own logger alone."""
    ours, theirs, root = logging.Logger("ours"), logging.Logger("theirs", logging.INFO), logging.Logger("root")
    theirs.addHandler(logging.NullHandler())
    named = {"theirs": theirs, None: root}
    monkeypatch.setattr(_plugin, "logger", ours)
    monkeypatch.setattr(logging, "getLogger", lambda name=None: named[name])
    _plugin.log_through("theirs")
    assert ours.handlers == theirs.handlers and ours.isEnabledFor(logging.INFO)
    ours.handlers.clear()
    root.addHandler(logging.NullHandler())
    _plugin.log_through("theirs")
    assert not ours.handlers


def test_imbalance():
    loads = batches(7)
    loads[2] = 0  # a batch without tokens
    loads[:, 1] = 0  # a layer without any
    maps = planned(loads, "eplb")
    by_hand = {"even": [], "exact": []}
    for layer in (0, 2):
        copies = np.bincount(maps[layer], minlength=16)
        planner = evenkeel.Planner(maps[layer], RANKS)
        for batch in np.delete(loads[:, layer], 2, axis=0):
            each, more = np.divmod(batch, copies)
            slots = np.zeros(SLOTS, dtype=np.int64)
            for expert in range(16):
                at = np.flatnonzero(maps[layer] == expert)
                slots[at] = each[expert] + (np.arange(len(at)) < more[expert])
            served = slots.reshape(RANKS, -1).sum(axis=1)
            by_hand["even"].append(served.max() / served.mean())
            sources = np.zeros((RANKS, 16), dtype=np.uint64)
            sources[0] = batch
            by_hand["exact"].append(planner.split(sources).imbalance)
    for split, expected in by_hand.items():
        assert _native.imbalance(loads, maps, RANKS, split=split) == pytest.approx(np.mean(expected), abs=1e-12)
    assert _native.imbalance(loads, maps, RANKS, split="sglang-static", nodes=2) >= 1
    assert _native.imbalance(np.zeros_like(loads), maps, RANKS, split="even") == 1
    for call, words in [
        (lambda: _native.imbalance(loads, maps, RANKS, split="fair"), "unknown split `fair`"),
        (lambda: _native.imbalance(loads[0], maps, RANKS, split="even"), r"expected \[batches, layers, experts\]"),
        (lambda: _native.imbalance(loads, maps[:2], RANKS, split="even"), "2 layers: expected 3"),
        (lambda: _native.imbalance(loads, maps, 7, split="even"), r"maps\[0\]: 24 slots do not divide over 7 ranks"),
        (lambda: _native.imbalance(loads, maps, RANKS, split="even", nodes=3), "nodes"),
        (lambda: _native.imbalance(loads[..., :9], maps, RANKS, split="even"), r"maps\[0\]"),
    ]:
        with pytest.raises(evenkeel.Error, match=words):
            call()


def test_names():
    assert [_native.named_split(name) for name in ("recourse", "recourse:worst", "eplb", "lplb:ring")] == [None] * 4
    assert _native.named_split("recourse:worst:sglang-static:seed=3") == "sglang-static"
    assert _native.with_split("recourse:seed=3", "vllm") == "recourse:vllm:seed=3"
    assert resolved(Settings("lplb:ring", 2), always("vllm")) == (Settings("lplb:ring", 2), ("vllm",))
    for policy in ("lplb:ring", "recoursed", "recourse:even"):
        with pytest.raises(evenkeel.Error, match=f"split `vllm` with policy `{policy}`: expected"):
            _native.with_split(policy, "vllm")

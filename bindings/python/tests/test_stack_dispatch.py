"""Compares each stack's choice of replicas, from its published modules, with `evenkeel.StackRouter`.

A batch is dealt to the ranks. The stack redirects it on a placement that evenkeel planned, and the loads are
counted. The prediction has to match to the token. For a random rule it has to match within the sampling
error.

Real parts of SGLang: `expert_location` and `expert_location_dispatch` on the path of `sglang_rank.py`. Real
parts of vLLM: `_eplb_map_and_record_i32_kernel` with its launcher in Triton's interpreter,
`_apply_eplb_mapping` and `compute_logical_maps`. Real parts of vllm-ascend: `init_eplb_config`, which reads
the exported file, and `generate_log2phy_map`. TensorRT-LLM has no published module that runs without a GPU.
The loop of its kernel `moeComputeRouteKernel` is restated here, thread by thread.
"""

import json
import os
import pathlib
import types
import typing
from collections import defaultdict

import numpy as np
import pytest
import stacks

import evenkeel

REAL = os.environ.get("EVENKEEL_REAL_TRACES")
RANKS, K = 8, 4


@pytest.fixture(params=["made here", "gpt-oss-20b"], scope="module")
def recorded(request):
    """Returns ids [tokens, layers, k] and the number of experts."""
    if request.param == "made here":
        rng = np.random.default_rng(3)
        liking = rng.normal(0, 1.2, (1, 5, 32)) + rng.normal(0, 0.5, (8, 1, 32)).repeat(256, 0)
        return np.argsort(-liking - rng.gumbel(size=(2048, 5, 32)), axis=2)[:, :, :K].astype(np.int64), 32
    if REAL is None:
        pytest.skip("no real traces")
    arrays = np.load(pathlib.Path(REAL) / "gptoss20b-decode/routed_experts.npz")
    return arrays["routed_experts"][20_000:22_048].astype(np.int64), 32


def plan_of(recorded, nodes, redundant=16):
    """Returns a plan for the first half of the recorded tokens, and the second half as a batch, [layers,
    tokens, k].
    """
    ids, experts = recorded
    half = len(ids) // 2
    steps = ids[:half].reshape(16, -1, ids.shape[1], K).transpose(0, 2, 1, 3).reshape(16, ids.shape[1], -1)
    loads = np.stack([[np.bincount(layer, minlength=experts) for layer in step] for step in steps])
    trace = evenkeel.Trace.from_loads(loads)
    plan = evenkeel.plan(trace, ranks=RANKS, redundant=redundant, policy="eplb", nodes=nodes)
    return plan, ids[half:].transpose(1, 0, 2).copy()


def dealt(layer):
    """Deals the rows of one layer to the ranks as data parallelism does: unequal parts, in order."""
    return np.split(layer, np.cumsum([len(layer) // 8 + 5 * (rank % 3) - 5 for rank in range(RANKS - 1)]))


def imbalance(loads):
    return loads.max() / loads.mean()


def same(router, maps, batch, redirect, sources=None):
    """Compares the slots of the stack's `redirect(layer, ids, source)` with the router's, and also loads and
    imbalance.
    """
    measured = []
    for layer in range(len(maps)):
        parts = dealt(batch[layer]) if sources is None else [batch[layer]]
        served = np.zeros(maps.shape[1], dtype=np.int64)
        for source, ids in enumerate(parts):
            slots = redirect(layer, ids, source)
            assert (maps[layer][slots] == ids).all()
            assert (router.redirect(layer, ids, source) == slots).all(), f"layer {layer}, source {source}"
            assert (router.redirect(layer, ids.astype(np.int32), source) == slots).all()
            served += np.bincount(slots.reshape(-1), minlength=len(served))
        loads = served.reshape(RANKS, -1).sum(axis=1)
        predicted = router.loads(layer, parts)
        assert (predicted == loads).all() and imbalance(predicted) == imbalance(loads)
        measured.append(imbalance(loads))
    return np.mean(measured)


def sglang(torch, maps, experts, a2a, algorithm, nodes):
    from sglang_rank import Rank

    layers, slots = maps.shape
    return Rank(torch, maps, a2a, algorithm, ranks=RANKS, nodes=nodes, shape=(layers, experts, slots))


def as_ranks(rank):
    """Returns a function from ids to slots on any rank, by that rank's own metadata. All metadata are made
    once.
    """
    metadata = []
    for rank.rank in range(RANKS):
        rank.location.set_global_expert_location_metadata(None, allow_overwrite=True)
        rank.place(rank.placement)
        metadata.append(rank.location.get_global_expert_location_metadata())

    def redirect(layer, ids, source):
        rank.location.set_global_expert_location_metadata(metadata[source], allow_overwrite=True)
        return rank.batch(layer, rank.torch.from_numpy(ids.copy()))[0].numpy()

    return redirect


@pytest.mark.parametrize("nodes", [1, 2])
def test_sglang_static(recorded, clean, nodes, record_property):
    plan, batch = plan_of(recorded, nodes)
    # A server starts with the map of the file.
    maps = np.array(json.loads(plan.export("sglang"))["physical_to_logical_map"])
    rank = sglang(clean, maps, plan.experts, "deepep", "static", nodes)
    router = evenkeel.StackRouter("sglang-static", maps, RANKS, nodes)
    mean = same(router, maps, batch, as_ranks(rank))
    record_property(f"sglang-static, {nodes} node(s): mean imbalance", f"{mean:.4f}")
    # The table depends on all rows of the file. Without the first row, the draws of the others differ.
    short = evenkeel.StackRouter("sglang-static", maps[1:], RANKS, nodes)
    assert any((short.redirect(0, batch[1], r) != router.redirect(1, batch[1], r)).any() for r in range(RANKS))


@pytest.mark.parametrize("nodes", [1, 2])
def test_sglang_static_after_its_own_rebalancing(recorded, clean, monkeypatch, nodes):
    """`init_by_eplb` with evenkeel's policy instead of EPLB. It knows no rank, so no replicas are collapsed
    beforehand.
    """
    plan, batch = plan_of(recorded, nodes)
    maps = plan.physical_to_logical
    rank = sglang(clean, maps, plan.experts, "deepep", "static", nodes)
    rank.options.eplb_algorithm = "auto"
    rank.shape.num_groups = 1
    monkeypatch.setenv("EVENKEEL_POLICY", "eplb")
    stacks.load("sglang.srt.eplb.eplb_algorithms")
    rank.start()
    counts = np.stack([np.bincount(layer.reshape(-1), minlength=plan.experts) for layer in batch])
    metadata = []
    for source in range(RANKS):
        monkeypatch.setattr(clean.distributed, "get_rank", lambda source=source: source, raising=False)
        metadata.append(rank.location.ExpertLocationMetadata.init_by_eplb(rank.model_config, counts[None]))
    maps = metadata[0].physical_to_logical_map.numpy()

    def redirect(layer, ids, source):
        rank.location.set_global_expert_location_metadata(metadata[source], allow_overwrite=True)
        return rank.batch(layer, clean.from_numpy(ids.copy()))[0].numpy()

    same(evenkeel.StackRouter("sglang-static", maps, RANKS, nodes, rebalanced=True), maps, batch, redirect)
    if nodes == 1:  # with two nodes, draws remain for few experts
        file, every = evenkeel.StackRouter("sglang-static", maps, RANKS), range(RANKS)
        assert any((file.redirect(0, batch[0], rank) != redirect(0, batch[0], rank)).any() for rank in every)


def test_sglang_dynamic(recorded, clean, record_property):
    """Without an all-to-all, every rank has the whole batch and obtains the same slots."""
    plan, batch = plan_of(recorded, 1)
    maps = plan.physical_to_logical
    redirect = as_ranks(sglang(clean, maps, plan.experts, "none", "dynamic", 1))
    router = evenkeel.StackRouter("sglang-dynamic", maps, RANKS)
    mean = same(router, maps, batch, redirect, sources=1)
    record_property("sglang-dynamic: mean imbalance", f"{mean:.4f}")
    assert (redirect(0, batch[0], 0) == redirect(0, batch[0], 5)).all()
    assert (router.redirect(0, batch[0], 0) == router.redirect(0, batch[0], 5)).all()


@pytest.mark.parametrize("nodes", [1, 2])
def test_sglang_random(recorded, clean, nodes, record_property):
    """SGLang's draws and evenkeel's differ as much as two samples of one distribution."""
    plan, batch = plan_of(recorded, nodes)
    maps, draws = plan.physical_to_logical, 60
    redirect = as_ranks(sglang(clean, maps, plan.experts, "deepep", "dynamic", nodes))
    clean.manual_seed(0)
    routers = [evenkeel.StackRouter("sglang-random", maps, RANKS, nodes, seed=seed) for seed in range(draws)]
    measured = []
    for layer in range(0, len(maps), 4):
        parts = dealt(batch[layer])
        theirs = np.zeros((draws, maps.shape[1]), dtype=np.int64)
        for counts in theirs:
            for source, ids in enumerate(parts):
                slots = redirect(layer, ids, source)
                assert (maps[layer][slots] == ids).all()
                counts += np.bincount(slots.reshape(-1), minlength=len(counts))
        theirs = theirs.reshape(draws, RANKS, -1).sum(axis=2)
        ours = np.stack([router.loads(layer, parts) for router in routers]).astype(np.int64)
        assert (ours.sum(axis=1) == batch[layer].size).all()
        means = ours.mean(axis=0), theirs.mean(axis=0)
        error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / draws)
        assert (np.abs(means[0] - means[1]) <= 5 * error + 1e-9).all(), (means, error)
        peaks = ours.max(axis=1) / ours.mean(axis=1), theirs.max(axis=1) / theirs.mean(axis=1)
        error = np.sqrt((peaks[0].var() + peaks[1].var()) / draws)
        assert abs(peaks[0].mean() - peaks[1].mean()) <= 5 * error, (peaks[0].mean(), peaks[1].mean(), error)
        measured.append([peak.mean() for peak in peaks])
    ours, theirs = np.mean(measured, axis=0)
    record_property(f"sglang-random, {nodes} node(s): mean imbalance, ours and SGLang's", f"{ours:.4f} {theirs:.4f}")


def vllm_mapping(torch, triton, maps, experts):
    """Returns `BaseRouter._apply_eplb_mapping` on the state of `compute_logical_maps`, with the real kernel.
    """
    router = stacks.take(
        "vllm.model_executor.layers.fused_moe.router.base_router",
        "_eplb_map_and_record_i32_kernel",
        "_eplb_map_and_record_triton",
        "eplb_map_to_physical_and_record",
        "BaseRouter._apply_eplb_mapping",
        torch=torch,
        tl=triton.language,
        triton=triton,
        dbo_current_ubatch_id=lambda: 0,
    )
    kernel = router._eplb_map_and_record_i32_kernel
    hints = typing.get_type_hints(kernel)
    kernel.__annotations__ = {name: hint for name, hint in hints.items() if hint is triton.language.constexpr}
    router._eplb_map_and_record_i32_kernel = triton.jit(kernel)
    state = stacks.take("vllm.distributed.eplb.eplb_state", "compute_logical_maps", torch=torch, PIN_MEMORY=False)
    places, counts = state.compute_logical_maps(torch.from_numpy(maps.copy()), experts)
    views = torch.zeros(maps.shape, dtype=torch.int32)

    def redirect(layer, ids, source):
        one = types.SimpleNamespace(
            expert_load_view=views[layer],
            logical_to_physical_map=places[layer],
            logical_replica_count=counts[layer],
            should_record_tensor=torch.ones((), dtype=torch.bool),
            num_unpadded_tokens_tensors=[torch.tensor(len(ids))],
        )
        router_self = types.SimpleNamespace(eplb_state=one)
        return router._apply_eplb_mapping(router_self, torch.from_numpy(ids.copy())).numpy()

    return redirect, views


def test_vllm(recorded, clean, monkeypatch, record_property):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton", reason="no triton")
    plan, batch = plan_of(recorded, 1)
    maps = plan.physical_to_logical
    redirect, views = vllm_mapping(clean, triton, maps, plan.experts)
    router = evenkeel.StackRouter("vllm", maps, RANKS)
    mean = same(router, maps, batch, redirect)
    record_property("vllm: mean imbalance", f"{mean:.4f}")
    # vLLM itself recorded the load that evenkeel predicted.
    for layer in range(len(maps)):
        recorded_by_vllm = views[layer].numpy().reshape(RANKS, -1).sum(axis=1)
        assert (recorded_by_vllm == router.loads(layer, dealt(batch[layer]))).all()
    padded = batch[0][:40].copy()
    padded[7:9, 1:] = -1
    assert (router.redirect(0, padded) == redirect(0, padded, 0)).all()


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_vllm_ascend(recorded, clean, monkeypatch, tmp_path, tp_size, record_property):
    """From evenkeel's file to every rank's table, by vllm-ascend's own functions. `.npu()` is the CPU here.
    """
    plan, batch = plan_of(recorded, 1)
    file = tmp_path / "map.json"
    file.write_text(plan.export("vllm-ascend"))
    devices = [layer["device_list"] for layer in json.loads(file.read_text())["layer_list"]]
    maps = np.array([[device["device_expert"] for device in layer] for layer in devices]).reshape(len(devices), -1)
    monkeypatch.setattr(clean.Tensor, "npu", lambda tensor: tensor, raising=False)
    utils = stacks.take(
        "vllm_ascend.eplb.core.eplb_utils",
        "expert_file_to_tensor",
        "init_eplb_config",
        "generate_log2phy_map",
        torch=clean,
        json=json,
        defaultdict=defaultdict,
        logger=types.SimpleNamespace(warning=lambda *_: None),
    )
    # Torch before 2 accepts no int32 as an index.
    read = utils.expert_file_to_tensor
    utils.expert_file_to_tensor = lambda *given: (read(*given)[0].long(), read(*given)[1])
    config = types.SimpleNamespace(expert_map_path=file, dynamic_eplb=True, num_redundant_experts=0)
    tables = {}
    for layer in range(len(maps)):
        for rank in range(RANKS):
            moe = types.SimpleNamespace(num_experts=plan.experts, ep_size=RANKS, ep_rank=rank)
            tables[layer, rank] = utils.init_eplb_config(config, layer, moe, tp_size=tp_size)[2]
    router = evenkeel.StackRouter("vllm-ascend", maps, RANKS, tp_size=tp_size)
    redirect = lambda layer, ids, source: tables[layer, source][clean.from_numpy(ids.copy())].numpy()
    mean = same(router, maps, batch, redirect)
    record_property(f"vllm-ascend, tp_size {tp_size}: mean imbalance", f"{mean:.4f}")


def trtllm_kernel(replicas, ids, rank, threads=256, per_thread=4, warp=32):
    """Restates `moeComputeRouteKernel` with `offsetByEpRank`: positions in the order of arbitration by warp
    0.
    """
    flat = ids.reshape(-1)
    slots = np.full(flat.shape, -1, dtype=np.int64)
    for block in range(-(-len(flat) // (threads * per_thread))):
        shared = defaultdict(int)
        for step in range(threads // warp * per_thread):
            before = dict(shared)
            lanes = defaultdict(list)
            for lane in range(warp):
                at = block * threads * per_thread + step * warp + lane
                if at < len(flat) and flat[at] >= 0:
                    lanes[flat[at]].append(at)
            for expert, positions in lanes.items():
                shared[expert] += len(positions)
                for in_group, at in enumerate(positions):
                    offset = before.get(expert, 0) + in_group + block + rank
                    slots[at] = replicas[expert][offset % len(replicas[expert])]
    return slots.reshape(ids.shape)


def test_trtllm(recorded, record_property):
    plan, batch = plan_of(recorded, 1)
    maps = plan.physical_to_logical
    replicas = [[np.flatnonzero(row == expert) for expert in range(plan.experts)] for row in maps]
    router = evenkeel.StackRouter("trtllm", maps, RANKS)
    mean = same(router, maps, batch, lambda layer, ids, source: trtllm_kernel(replicas[layer], ids, source))
    record_property("trtllm: mean imbalance", f"{mean:.4f}")
    # Without attention data parallelism all ranks route the whole batch, in several blocks and without an
    # offset.
    assert batch[0].size > 2 * 1024
    whole = trtllm_kernel(replicas[0], batch[0], 0)
    assert (router.redirect(0, batch[0]) == whole).all()


def test_what_is_no_batch_is_refused():
    maps = np.array([[0, 1, 2, 0], [0, 1, 2, 2]])
    router = evenkeel.StackRouter("vllm", maps, 2)
    assert (router.stack, router.ranks, router.experts) == ("vllm", 2, 3)
    assert router.redirect(1, np.array([2, -1, 2])).tolist() == [2, -1, 2]
    assert router.redirect(0, np.zeros((0, 3), dtype=np.int32)).shape == (0, 3)
    for call, words in [
        (lambda: evenkeel.StackRouter("sglang", maps, 2), "sglang-static"),
        (lambda: evenkeel.StackRouter("vllm", maps, 3), r"maps\[0\]: 4 slots do not divide over 3 ranks"),
        (lambda: evenkeel.StackRouter("vllm", maps, 2, nodes=4), "nodes 4"),
        (lambda: evenkeel.StackRouter("vllm", maps, 2, experts=4), "expert 3 has no replica"),
        (lambda: evenkeel.StackRouter("vllm", maps[:0], 2), "a placement per layer"),
        (lambda: router.redirect(2, np.array([[0]])), "layer 2"),
        (lambda: router.redirect(0, np.array([[0, 3]])), "expert id 3"),
        (lambda: router.redirect(0, np.zeros((2, 2))), "int32 or int64"),
        (lambda: router.redirect(0, np.zeros((1, 1, 1), dtype=np.int64)), r"\[rows, k\]"),
        (lambda: router.redirect(0, np.array([[0]]), source=2), "source 2"),
        (lambda: router.loads(0, [np.array([[0]])] * 3), "source 2"),
        (lambda: router.loads(0, [np.array([[0]]), np.array([[0, 1]])]), "2 ids per row: expected 1"),
    ]:
        with pytest.raises(evenkeel.Error, match=words):
            call()

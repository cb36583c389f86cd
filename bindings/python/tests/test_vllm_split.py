"""The exact split of every batch inside vLLM: its own router, state and runner's method with our mapping.

Real parts are `BaseRouter` with `select_experts`, `EplbLayerState`, and the commit of plans to the maps
(`_commit_eplb_maps`, `_commit_eplb_maps_for_layer`, `compute_logical_maps`). `MoERunner._apply_quant_method`
and the properties that determine the path of its tokens are real too. Their modules import Triton and the
whole configuration, so the parts run from their source, and the router's imports have stand-ins. On a CPU
vLLM's own mapping returns the logical ids.
"""

import types
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pytest
import stacks
from conftest import counts_of, run_ranks

import evenkeel

ROUTER = "vllm.model_executor.layers.fused_moe.router"
RUNNER = "vllm.model_executor.layers.fused_moe.runner.moe_runner"


class Vllm:
    """One rank with two layers whose maps share one tensor each, as in `EplbState`."""

    def __init__(self, torch, placements, all_to_all=False, group=None):
        self.torch = torch
        self.state = stacks.take(
            "vllm.distributed.eplb.eplb_state",
            "EplbLayerState",
            "compute_logical_maps",
            "_pad_out_tensor",
            "_commit_eplb_maps",
            "_commit_eplb_maps_for_layer",
            torch=torch,
            dataclass=dataclass,
            PIN_MEMORY=False,
            gpu_sync_allowed=nullcontext,
        )
        stacks.stand_in("vllm.platforms", current_platform=types.SimpleNamespace(
            is_cuda_alike=lambda: False, is_xpu=lambda: False))  # fmt: skip
        stacks.stand_in("vllm.triton_utils", tl=None, triton=None)
        stacks.stand_in("vllm.utils.gpu_sync_debug", gpu_sync_allowed=nullcontext)
        stacks.stand_in("vllm.v1.worker.ubatching", dbo_current_ubatch_id=lambda: 0)
        stacks.stand_in("vllm.model_executor.layers.fused_moe.config", RoutingMethodType=object)
        group = group or types.SimpleNamespace(world_size=8, rank_in_group=3)
        stacks.stand_in(
            "vllm.distributed.parallel_state", get_ep_group=lambda: group, get_node_count=lambda: 1
        )
        self.router = stacks.load(f"{ROUTER}.base_router")
        order = types.SimpleNamespace(NO_OVERLAP=0)
        self.runner = stacks.take(
            RUNNER, "MoERunner._apply_quant_method", "MoERunner.do_naive_dispatch_combine", SharedExpertsOrder=order
        )
        members = {
            "_apply_quant_method": self.runner._apply_quant_method,
            "do_naive_dispatch_combine": property(self.runner.do_naive_dispatch_combine),
            "_maybe_apply_shared_experts": lambda *_: None,
        }
        self.runner.MoERunner = type("MoERunner", (), members)
        self.config = types.SimpleNamespace(
            moe_parallel_config=types.SimpleNamespace(use_all2all_kernels=all_to_all),
            dp_size=2 if all_to_all else 1,
            is_sequence_parallel=False,
        )
        self.internal = True  # kernels that dispatch by themselves

        physical, experts, layers = placements.shape[1], 16, len(placements)
        full = lambda *shape: torch.full(shape, -1, dtype=torch.int64)
        self.model_state = types.SimpleNamespace(
            physical_to_logical_map=full(layers, physical),
            physical_to_logical_map_buffer=full(layers, physical),
            logical_to_physical_map=full(layers, experts, physical - experts + 1),
            logical_replica_count=torch.zeros((layers, experts), dtype=torch.int64),
        )
        self.loads = torch.zeros((layers, physical), dtype=torch.int32)
        self.recording = torch.ones((), dtype=torch.bool)
        self.unpadded = torch.tensor(1 << 20)
        self.commit(placements)

    def commit(self, placements):
        """Commits all layers, as after a re-planning."""
        with self.torch.inference_mode():
            self.state._commit_eplb_maps(self.model_state, self.torch.from_numpy(placements.copy()))

    def commit_layer(self, placement, layer):
        """Commits one layer, as during a migration."""
        with self.torch.inference_mode():
            self.state._commit_eplb_maps_for_layer(self.model_state, self.torch.from_numpy(placement.copy()), layer)

    def layer(self, index):
        """Returns a layer's runner with its router. A batch is a call with logical ids."""
        state = self.state.EplbLayerState(
            should_record_tensor=self.recording, num_unpadded_tokens_tensors=[self.unpadded]
        )
        state.set_layer_state(
            index, self.loads, self.model_state.logical_to_physical_map, self.model_state.logical_replica_count
        )
        torch = self.torch

        class Router(self.router.BaseRouter):
            routing_method_type = None

            def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
                return torch.ones(router_logits.shape), router_logits

        runner = self.runner.MoERunner()
        runner.router = Router(2, 24, state)
        runner.moe_config = self.config
        runner._quant_method = types.SimpleNamespace(topk_indices_dtype=None, supports_internal_mk=self.internal)
        runner._shared_experts = None
        runner.routed_experts = types.SimpleNamespace(
            quant_method=types.SimpleNamespace(is_monolithic=False), forward_modular=lambda **given: given["topk_ids"]
        )

        def batch(ids):
            with torch.inference_mode():
                return runner._apply_quant_method(ids, ids, None)[1]

        return batch


@pytest.fixture
def maps(ring):
    homes = np.arange(16).reshape(8, 2)
    back = np.concatenate([homes, np.roll(homes[:, 1], 1)[:, None]], axis=1).reshape(-1)
    return np.stack([ring, back])


def ids_of(torch, seed, dtype="int32", tokens=64):
    rng = np.random.default_rng(seed)
    ids = rng.choice(16, (tokens, 2), p=rng.dirichlet(np.full(16, 0.3)))
    ids[rng.random(ids.shape) < 0.05] = -1
    return torch.from_numpy(ids).to(getattr(torch, dtype))


def expected(placement, ids):
    counts = np.zeros((8, 16), dtype=np.int64)
    counts[0] = counts_of(ids, 16)
    planner = evenkeel.Planner(placement, 8)
    planner.split(counts)
    return planner.redirect(ids.numpy(), 0)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_ranks_with_the_same_tokens(exact, maps, dtype):
    vllm = Vllm(exact, maps)
    evenkeel.vllm.register()
    for index in range(2):
        ids, batch = ids_of(exact, index, dtype), vllm.layer(index)
        out = batch(ids)
        assert out.dtype == ids.dtype and out.shape == ids.shape and (out.numpy() == expected(maps[index], ids)).all()
        assert (vllm.loads[index].numpy() == counts_of(out, 24)).all(), "loads are recorded"
        assert batch(ids[:0]).shape == (0, 2)


def test_tokens_that_a_plain_dispatch_has_spread(exact, maps):
    vllm = Vllm(exact, maps, all_to_all=True)
    evenkeel.vllm.register()
    vllm.internal = False
    ids = ids_of(exact, 8)
    assert (vllm.layer(0)(ids).numpy() == expected(maps[0], ids)).all(), "routed after it: all ranks have the same"
    vllm.config.dp_size = 1
    assert (vllm.layer(0)(ids) == ids).all(), "whose they are is not certain: vLLM's own mapping"


def test_loads_are_recorded_as_vllm_does(exact, maps):
    vllm = Vllm(exact, maps)
    evenkeel.vllm.register()
    ids, batch = ids_of(exact, 5), vllm.layer(0)
    vllm.unpadded.fill_(20)
    out = batch(ids)
    assert (vllm.loads[0].numpy() == counts_of(out[:20], 24)).all(), "padding is not"
    vllm.recording.fill_(False)
    before = vllm.loads.clone()
    batch(ids)
    assert (vllm.loads == before).all(), "nor is what vLLM does not want recorded"


def test_new_placements_are_picked_up(exact, maps):
    vllm = Vllm(exact, maps)
    evenkeel.vllm.register()
    ids = ids_of(exact, 6)
    batches = [vllm.layer(0), vllm.layer(1)]
    for batch in batches:
        batch(ids)
    vllm.commit(maps[::-1])
    for index, batch in enumerate(batches):
        assert (batch(ids).numpy() == expected(maps[1 - index], ids)).all()
    vllm.commit_layer(maps[0], 0)
    for batch in batches:
        assert (batch(ids).numpy() == expected(maps[0], ids)).all()


def test_maps_are_read_only_when_written(exact, maps):
    from evenkeel._vllm_split import Placements

    vllm, placements = Vllm(exact, maps), Placements()
    rows = vllm.model_state.logical_to_physical_map
    first = placements.of(rows[1], 24)
    assert (first == maps[1]).all() and placements.of(rows[1], 24) is first
    vllm.commit_layer(maps[0], 1)
    assert (placements.of(rows[1], 24) == maps[0]).all() and (placements.of(rows[0], 24) == maps[0]).all()
    with exact.inference_mode():
        assert (placements.of(rows[1].clone(), 24) == maps[0]).all(), "of a kind that counts no writes: read each time"


def test_what_stays_vllms_own(exact, maps):
    vllm = Vllm(exact, maps)
    evenkeel.vllm.register()
    name = "eplb_map_to_physical_and_record"
    once = getattr(vllm.router, name)
    evenkeel.vllm.register()
    assert getattr(vllm.router, name) is once, "hooked in once"
    # Outside a runner the owner of the tokens is unknown.
    ids = ids_of(exact, 7)
    rows = vllm.model_state
    answer = once(ids, vllm.loads[0], rows.logical_to_physical_map[0], rows.logical_replica_count[0], vllm.recording)
    assert (answer == ids).all() and not vllm.loads.any()


def test_modules_that_had_imported_the_name(exact, maps):
    vllm = Vllm(exact, maps)
    name = "eplb_map_to_physical_and_record"
    holder = stacks.stand_in("vllm.holder", **{name: getattr(vllm.router, name)})
    evenkeel.vllm.register()
    assert getattr(holder, name) is getattr(vllm.router, name) and hasattr(getattr(holder, name), "__wrapped__")


def test_a_vllm_of_another_make_is_refused(exact, maps):
    vllm = Vllm(exact, maps)
    del vllm.router.eplb_map_to_physical_and_record
    with pytest.raises(evenkeel.Error, match="eplb_map_to_physical_and_record.*0.33"):
        evenkeel.vllm.register()


def one_of_four(rank, store, maps, answers):
    """Runs a rank with its own tokens in its own process."""
    import os

    import torch
    import torch.distributed as dist

    os.environ["EVENKEEL_SPLIT"] = "exact"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4, timeout=timedelta(seconds=60))

    @torch.inference_mode(False)  # gloo's threads write outside of it
    def all_gather(own, dim):
        parts = [torch.empty(own.shape, dtype=own.dtype) for _ in range(4)]
        dist.all_gather(parts, own.clone())
        return torch.cat(parts, dim)

    group = types.SimpleNamespace(world_size=4, rank_in_group=rank, all_gather=all_gather)
    vllm = Vllm(torch, maps, all_to_all=True, group=group)
    evenkeel.vllm.register()
    out = []
    for layer in (0, 1, 0):
        ids = ids_of(torch, 10 * layer + rank, tokens=32 * rank)
        out.append((ids.numpy(), vllm.layer(layer)(ids).numpy()))
    answers.put((rank, out))
    answers.close()
    answers.join_thread()
    dist.barrier()


def test_four_ranks_with_tokens_of_their_own(exact, maps, tmp_path):
    all_ranks = run_ranks(4, one_of_four, tmp_path / "store", maps)
    for batch, layer in enumerate((0, 1, 0)):
        mine = [all_ranks[rank][batch] for rank in range(4)]
        planner = evenkeel.Planner(maps[layer], 4)
        split = planner.split(np.stack([counts_of(ids, 16) for ids, _ in mine]))
        served = sum(counts_of(slots, 24) for _, slots in mine)
        assert (served == split.quotas).all()

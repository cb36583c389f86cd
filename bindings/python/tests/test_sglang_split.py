"""The exact split of every batch inside SGLang, hooked in by its own registry. `sglang_rank.py` lists its
real parts.
"""

import os
import sys
from datetime import timedelta

import numpy as np
import pytest
import stacks
from conftest import counts_of, run_ranks

import evenkeel


@pytest.fixture
def maps(ring):
    """Returns three layers: replicas along a ring, along the reverse ring, and two experts with many
    replicas.
    """
    homes = np.arange(16).reshape(8, 2)
    back = np.concatenate([homes, np.roll(homes[:, 1], 1)[:, None]], axis=1).reshape(-1)
    few = np.concatenate([homes, (np.arange(8) % 2)[:, None] * 9], axis=1).reshape(-1)
    return np.stack([ring, back, few])


def ids_of(torch, seed, dtype="int32", tokens=64):
    rng = np.random.default_rng(seed)
    ids = rng.choice(16, (tokens, 2), p=rng.dirichlet(np.full(16, 0.3)))
    return torch.from_numpy(ids).to(getattr(torch, dtype))


def expected(placement, counts, ids, source):
    planner = evenkeel.Planner(placement, len(counts))
    split = planner.split(counts)
    return planner.redirect(ids.numpy(), source), split


def alone(ids):
    counts = np.zeros((8, 16), dtype=np.int64)
    counts[0] = counts_of(ids, 16)
    return counts


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_ranks_with_the_same_tokens(exact, maps, dtype):
    from sglang_rank import Rank

    answers = []
    for rank in (0, 5):
        sglang = Rank(exact, maps, rank=rank).start()
        for layer in range(3):
            ids = ids_of(exact, layer, dtype)
            out, recorded = sglang.batch(layer, ids.clone())
            slots, split = expected(maps[layer], alone(ids), ids, 0)
            assert out.dtype == ids.dtype and out.shape == ids.shape and (out.numpy() == slots).all()
            assert (counts_of(out, 24) == split.quotas).all() and split.peak == split.rank_loads.max()
            assert recorded is out, "SGLang records what comes out"
            answers.append(out.numpy().tobytes())
    assert answers[:3] == answers[3:], "all ranks agree"


def test_a_new_placement_is_picked_up(exact, maps):
    from sglang_rank import Rank

    sglang = Rank(exact, maps).start()
    ids = ids_of(exact, 1)
    before, _ = sglang.batch(0, ids.clone())
    sglang.place(maps[::-1])  # EPLB writes into the running maps
    after, _ = sglang.batch(0, ids.clone())
    assert (after.numpy() == expected(maps[2], alone(ids), ids, 0)[0]).all() and (before != after).any()
    assert (maps[2][after.numpy()] == ids.numpy()).all()


def test_padding_shared_experts_and_no_tokens(exact, maps):
    from sglang_rank import Rank

    sglang = Rank(exact, maps).start()
    ids = ids_of(exact, 2)
    rows = exact.tensor(40)
    out, _ = sglang.batch(0, ids.clone(), rows)
    assert (out[40:] == -1).all() and (out[:40].numpy() == expected(maps[0], alone(ids[:40]), ids[:40], 0)[0]).all()
    # The last column belongs to the shared expert, which EPLB does not place.
    wide = exact.cat([ids, exact.full((64, 1), 99, dtype=ids.dtype)], dim=1)
    out, recorded = sglang.batch(0, wide.clone(), shared=1)
    assert (out[:, 2] == 99).all() and (recorded.numpy() == expected(maps[0], alone(ids), ids, 0)[0]).all()
    assert sglang.batch(0, ids[:0])[0].shape == (0, 2)
    assert (sglang.batch(0, exact.full((4, 2), -1, dtype=exact.int32))[0] == -1).all()


def test_inside_a_compiled_function(exact, maps):
    """The hook stays out of compiled functions. SGLang compiles the caller of the dispatch on CUDA, and its
    remaining code still runs.
    """
    if not hasattr(getattr(exact, "compiler", None), "disable"):
        pytest.skip(f"torch compiles nothing ({exact.__version__})")
    from sglang_rank import Rank

    sglang = Rank(exact, maps).start()
    compiled = exact.compile(sglang.topk._biased_grouped_topk_postprocess, dynamic=True, backend="eager")
    for tokens in (64, 33, 7):
        ids = ids_of(exact, tokens, tokens=tokens)
        rows, info = sglang.topk.resolve_routing_inputs(
            layer_id=1, is_draft=False, num_token_non_padded=exact.tensor(tokens - 2)
        )
        out = compiled(ids.clone(), info, rows)
        kept = ids[: tokens - 2]
        assert (out[: tokens - 2].numpy() == expected(maps[1], alone(kept), kept, 0)[0]).all()
        assert (out[tokens - 2 :] == -1).all()


def test_what_stays_sglangs_own(exact, maps, caplog):
    from sglang_rank import Rank

    # An all-to-all of each rank's own tokens, under an algorithm that does not bring all ranks together.
    sglang = Rank(exact, maps, a2a="deepep", algorithm="static", rank=3).start()
    ids = ids_of(exact, 3, "int64")  # an index type that torch of 2022 accepts
    out, _ = sglang.batch(1, ids.clone())
    table = sglang.location.get_global_expert_location_metadata().logical_to_rank_dispatch_physical_map[1]
    assert (out == table[ids]).all() and "lp" in caplog.text
    # Without EPLB there is no info, and the ids stay. A draft model behaves alike.
    sglang.options.ep_dispatch_algorithm = None
    assert (sglang.batch(1, ids.clone())[0] == ids).all()


def test_off_unless_asked(clean, maps, monkeypatch):
    from sglang_rank import Rank

    sglang = Rank(clean, maps).start()
    assert not sglang.registry._hooks
    monkeypatch.setenv("EVENKEEL_SPLIT", "roughly")
    with pytest.raises(evenkeel.Error, match="roughly"):
        evenkeel.sglang.register()


def test_modules_that_had_imported_the_name(exact, maps):
    """SGLang's registry puts the hook into every module that holds the function."""
    from sglang_rank import Rank

    sglang = Rank(exact, maps)
    holder = stacks.stand_in(
        "sglang.srt.layers.moe.hash_topk", topk_ids_logical_to_physical=sglang.dispatch.topk_ids_logical_to_physical
    )
    sglang.start()
    assert holder.topk_ids_logical_to_physical is sglang.dispatch.topk_ids_logical_to_physical
    assert sglang.topk.topk_ids_logical_to_physical is sglang.dispatch.topk_ids_logical_to_physical
    assert sglang.solvers.LPLBSolver is evenkeel._sglang_split.ExactSolver is sglang.setup.LPLBSolver


class Coordinator:
    """Stand-in for SGLang's `GroupCoordinator`, whose file imports the whole stack."""

    def __init__(self, torch, rank, ranks):
        self.torch, self.rank_in_group, self.world_size = torch, rank, ranks

    def all_gather(self, own, dim):
        parts = [self.torch.empty_like(own) for _ in range(self.world_size)]
        self.torch.distributed.all_gather(parts, own)
        return self.torch.cat(parts, dim)


def one_of_eight(rank, store, maps, answers):
    """Runs a rank with its own tokens. Rank 6 has none in layer 1, and rank 2 has a padded batch."""
    import torch
    import torch.distributed as dist

    os.environ["EVENKEEL_SPLIT"] = "exact"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=8, timeout=timedelta(seconds=60))
    from sglang_rank import Rank

    sglang = Rank(torch, maps, "deepep", "lp", Coordinator(torch, rank, 8), rank=rank).start()
    out = []
    for layer in (0, 1, 2, 0):
        if (rank, layer) == (6, 1):
            sglang.idle(layer)
            out.append((np.zeros((0, 2), dtype=np.int32), np.zeros((0, 2), dtype=np.int32)))
        else:
            ids = ids_of(torch, 100 * layer + rank)
            rows = torch.tensor(10) if rank == 2 else None
            slots = sglang.batch(layer, ids.clone(), rows)[0]
            kept = ids if rows is None else ids[:10]
            assert (slots[len(kept) :] == -1).all()
            out.append((kept.numpy(), slots[: len(kept)].numpy()))
    answers.put((rank, out))
    answers.close()
    answers.join_thread()
    dist.barrier()


def test_eight_ranks_with_tokens_of_their_own(exact, maps, tmp_path):
    all_ranks = run_ranks(8, one_of_eight, tmp_path / "store", maps)
    for batch, layer in enumerate((0, 1, 2, 0)):
        mine = [all_ranks[rank][batch] for rank in range(8)]
        counts = np.stack([counts_of(ids, 16) for ids, _ in mine])
        planner = evenkeel.Planner(maps[layer], 8)
        split = planner.split(counts)
        served = np.zeros(24, dtype=np.uint64)
        for source, (ids, slots) in enumerate(mine):
            assert slots.dtype == ids.dtype and (slots == planner.redirect(ids, source)).all()
            served += counts_of(slots, 24)
        assert (served == split.quotas).all(), "every quota is met to the token"

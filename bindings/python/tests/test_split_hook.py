"""Tests the shared part of all stacks' hooks: one layer's batches split on the current placement."""

import numpy as np
import pytest
from conftest import counts_of

import evenkeel
from evenkeel._split_hook import ExactSplit, Group, wanted

torch = pytest.importorskip("torch", reason="no torch")


def ids_of(seed, shape, dtype):
    return torch.from_numpy(np.random.default_rng(seed).integers(-1, 16, shape)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
@pytest.mark.parametrize("shape", [(64, 4), (7,), (3, 5, 2)])
def test_shape_type_and_quotas_are_kept(ring, dtype, shape):
    split, ids = ExactSplit(), ids_of(0, shape, dtype)
    out = split.redirect("layer", ring, 16, Group(8), ids)
    assert out.dtype == dtype and out.shape == ids.shape
    assert ((out == -1) == (ids == -1)).all()
    kept = (ids >= 0).numpy()
    assert (ring[out.numpy()[kept]] == ids.numpy()[kept]).all()
    counts = np.zeros((8, 16), dtype=np.int64)
    counts[0] = counts_of(ids, 16)
    assert (counts_of(out, 24) == evenkeel.Planner(ring, 8).split(counts).quotas).all()


def test_what_is_no_expert_becomes_none(ring):
    ids = torch.tensor([[0, 16], [-5, 3], [1 << 20, -1]])
    out = ExactSplit().redirect("layer", ring, 16, Group(8), ids)
    assert ((out == -1) == torch.tensor([[False, True], [True, False], [True, True]])).all()


def test_views_are_read_as_they_are(ring):
    wide = ids_of(1, (32, 6), torch.int32)
    split = ExactSplit()
    out = split.redirect("layer", ring, 16, Group(8), wide[:, 1:5])
    assert (out == split.redirect("layer", ring, 16, Group(8), wide[:, 1:5].contiguous())).all()


def test_one_copy_each_is_left_to_the_stack():
    ids = ids_of(2, (8, 2), torch.int32)
    assert ExactSplit().redirect("layer", np.arange(16), 16, Group(8), ids) is None
    spare = np.concatenate([np.arange(16).reshape(8, 2), np.full((8, 1), -1)], axis=1).reshape(-1)
    assert ExactSplit().redirect("layer", spare, 16, Group(8), ids) is None


def test_layers_have_placements_of_their_own_that_may_change(ring):
    split, ids = ExactSplit(), ids_of(3, (64, 2), torch.int64).clamp(min=0)
    other = np.roll(ring.reshape(8, 3), 1, axis=1).reshape(-1)
    for layer, placement in [(0, ring), (1, other), (0, ring), (0, other), (1, ring)]:
        out = split.redirect(layer, placement, 16, Group(8), ids)
        assert (placement[out.numpy()] == ids.numpy()).all()
    # The number of ranks changes: 24 slots on 8 ranks, then on 4.
    assert (ring[split.redirect(0, ring, 16, Group(4), ids).numpy()] == ids.numpy()).all()


def test_gathered_counts_make_every_source_meet_its_share(ring):
    batches = [ids_of(seed, (16 * (seed % 3), 2), torch.int32) for seed in range(8)]
    counts = torch.tensor(np.stack([counts_of(ids, 16) for ids in batches]).astype(np.int32))
    brought = []

    def gather(own):
        brought.append(own)
        return counts

    served = np.zeros(24, dtype=np.uint64)
    split = ExactSplit()
    for rank, ids in enumerate(batches):
        out = split.redirect("layer", ring, 16, Group(8, rank, 2, gather), ids)
        served += counts_of(out, 24)
    assert (served == evenkeel.Planner(ring, 8).split(counts.numpy()).quotas).all()
    # Ranks without tokens contributed zeros, since the others wait for them.
    assert len(brought) == 8 and all((own == row).all() and own.dtype == torch.int32 for own, row in zip(brought, counts))


def test_a_placement_that_does_not_divide_is_refused(ring):
    with pytest.raises(evenkeel.Error, match="do not divide over 7 ranks"):
        ExactSplit().redirect("layer", ring, 16, Group(7), ids_of(0, (4, 2), torch.int32))


def test_the_variable(monkeypatch):
    for value, answer in [("", False), ("off", False), ("exact", True)]:
        monkeypatch.setenv("EVENKEEL_SPLIT", value)
        assert wanted() is answer
    monkeypatch.setenv("EVENKEEL_SPLIT", "even")
    with pytest.raises(evenkeel.Error, match="expected exact or off"):
        wanted()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_same_slots_on_a_gpu(ring, dtype):
    host, device = ExactSplit(), ExactSplit()
    counts = torch.tensor(np.random.default_rng(9).integers(0, 40, (8, 16)).astype(np.int32))
    for seed, tokens in [(0, 64), (1, 20000), (2, 1)]:
        ids = ids_of(seed, (tokens, 2), dtype)
        own = torch.tensor(counts_of(ids, 16).astype(np.int32))

        def gather(given):
            assert (given.cpu() == own).all()
            everyone = counts.clone()
            everyone[3] = own
            return everyone.to(given.device)

        for group in (Group(8), Group(8, 3, 1, gather)):
            expected = host.redirect("layer", ring, 16, group, ids)
            assert (device.redirect("layer", ring, 16, group, ids.cuda()).cpu() == expected).all()

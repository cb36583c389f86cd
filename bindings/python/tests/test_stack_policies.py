"""The stacks' public tests for placement policies, restated from their assertions, on evenkeel's policies.

vLLM: `tests/distributed/test_eplb_algo.py` (the tests of a policy; the rest of the file is on vLLM's own
bookkeeping). SGLang: `test/registered/unit/eplb/test_balanced_packing.py`. TensorRT-LLM: the cases of its
replication test.
"""

import numpy as np
import pytest
import stacks

import evenkeel
from evenkeel._plugin import Settings
from evenkeel.eplb import rebalance_experts

EPLB_EXAMPLE = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
SIXTEEN = [[50, 100, 75, 120, 90, 60, 80, 110, 40, 70, 95, 85, 65, 55, 45, 35]]


@pytest.fixture(params=["eplb", "recourse"])
def vllm(request, clean):
    """Returns a policy on vLLM's own base class: its placement, and vLLM's own count of replicas."""
    torch = clean
    base = stacks.load("vllm.distributed.eplb.policy.abstract").AbstractEplbPolicy
    state = stacks.take("vllm.distributed.eplb.eplb_state", "compute_logical_maps", torch=torch)
    policy = evenkeel.vllm.policy_class(base, Settings(request.param, None))

    def rebalance(weight, *shape):
        weight = torch.tensor(weight)
        placed = policy.rebalance_experts(weight, *shape)
        _, copies = state.compute_logical_maps(placed, weight.shape[-1])
        # Every test of the file asserts this.
        assert placed.shape == (len(weight), shape[0]) and copies.shape == weight.shape
        assert (placed >= 0).all() and (placed < weight.shape[-1]).all()
        assert (copies >= 1).all() and (copies.sum(dim=1) == shape[0]).all()
        return placed.tolist(), copies.tolist()

    rebalance.name = request.param
    return rebalance


def test_basic_rebalance(vllm):
    placed, copies = vllm(EPLB_EXAMPLE, 16, 4, 2, 8)
    if vllm.name == "eplb":
        assert placed == [
            [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
            [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
        ]
        assert copies == [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]


def test_single_gpu_case(vllm):
    placed, _ = vllm([[10, 20, 30, 40]], 4, 1, 1, 1)
    assert set(placed[0]) == {0, 1, 2, 3}


def test_equal_weights(vllm):
    _, copies = vllm([[50] * 8], 8, 2, 2, 4)
    assert copies == [[1] * 8]


def test_extreme_weight_imbalance(vllm):
    _, copies = vllm([[1000, 1, 1, 1, 1, 1, 1, 1]], 12, 2, 2, 4)
    assert copies[0][0] > copies[0][1]


def test_multiple_layers(vllm):
    vllm([[10, 20, 30, 40, 50, 60], [60, 50, 40, 30, 20, 10], [25] * 6], 8, 2, 2, 4)


def test_parameter_validation(vllm):
    vllm([[10, 20, 30, 40]], 8, 3, 2, 4)  # groups that do not divide over nodes
    # vLLM's own policy ends in an AssertionError here.
    with pytest.raises(evenkeel.Error, match="7 slots|do not divide"):
        vllm([[10, 20, 30, 40]], 7, 2, 2, 4)


def test_small_scale_hierarchical(vllm):
    _, copies = vllm([[100, 50, 200, 75, 150, 25, 300, 80]], 12, 4, 2, 4)
    assert copies[0][6] >= 2


def test_global_load_balance_fallback(vllm):
    vllm([[10, 20, 30, 40, 50, 60]], 8, 3, 2, 4)


def test_device_compatibility(vllm):
    vllm([[10, 20, 30, 40]], 6, 2, 1, 2)


def test_additional_cases(vllm):
    vllm(SIXTEEN, 24, 8, 4, 8)
    _, copies = vllm([[200, 150, 100, 50, 25, 12], [12, 25, 50, 100, 150, 200]], 10, 3, 1, 2)
    assert copies[0][0] >= 2 and copies[1][5] >= 2


def pack(weight, packs):
    """Packs items without replicas: (pack, place in it) of each, as SGLang's `balanced_packing`."""
    weight = np.asarray(weight, dtype=np.float32)
    n = weight.shape[1]
    placed, where, copies = rebalance_experts(weight, n, 1, 1, packs)
    assert (copies == 1).all() and placed.shape == weight.shape
    return np.divmod(where[:, :, 0], n // packs)


@pytest.mark.parametrize(
    "shape, packs",
    [((3, 8), 4), ((2, 6), 3), ((4, 8), 4), ((2, 8), 4), ((2, 6), 6), ((1, 4), 2), ((16, 8), 4)],
    ids=["output_shapes", "pack_index_range", "equal_items", "rank_in_pack_range", "one_each", "single_layer", "many_layers"],
)
@pytest.mark.parametrize("weights", ["random", "uniform"])
def test_balanced_packing_invariants(shape, packs, weights):
    weight = np.random.default_rng(0).random(shape) if weights == "random" else np.ones(shape)
    per_pack = shape[1] // packs
    index, place = pack(weight, packs)
    assert index.shape == place.shape == shape
    for layer in range(shape[0]):
        assert (np.bincount(index[layer], minlength=packs) == per_pack).all()
        assert len(set(zip(index[layer], place[layer]))) == shape[1]
        assert place[layer].min() == 0 and place[layer].max() == per_pack - 1
    again = pack(weight.copy(), packs)
    assert (again[0] == index).all() and (again[1] == place).all()


def test_balanced_packing_balance_property():
    index, _ = pack([[9, 1, 1, 1]], 2)
    assert np.bincount(index[0], weights=[9, 1, 1, 1]).max() == 10


@pytest.mark.parametrize(
    "slots_per_rank, ranks, load, copies",
    [
        (2, 2, [1, 2, 3, 4], [1, 1, 1, 1]),
        (3, 2, [0, 0, 0, 0], [2, 2, 1, 1]),
        (4, 2, [1, 4, 2, 1], [1, 4, 2, 1]),
        (3, 3, [10, 5, 2, 15, 8], [2, 1, 1, 3, 2]),
        (2, 2, [0, 10, 0], [1, 2, 1]),
    ],
)
def test_tensorrt_llm_replication(slots_per_rank, ranks, load, copies):
    _, _, counts = rebalance_experts(np.array([load]), slots_per_rank * ranks, 1, 1, ranks, policy="eplb:trtllm")
    assert counts.tolist() == [copies]

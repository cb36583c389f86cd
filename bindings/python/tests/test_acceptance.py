"""Runs the README's script: from a dump of SGLang to files that the stacks' own readers accept.

SGLang's reader is `compute_initial_expert_location_metadata` of its wheel. The test sets the values that a
server publishes. vllm-ascend's reader is its function `expert_file_to_tensor`, run from its source.
TensorRT-LLM's reader is restated. Its configuration refuses unknown keys, and expects whole numbers and one
row of `num_slots` experts for every layer.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import stacks

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "bindings/python/examples/plan_sglang_dump.py"
REAL = os.environ.get("EVENKEEL_REAL_TRACES")
RANKS = 8


def run(dump, folder):
    answer = subprocess.run([sys.executable, SCRIPT, dump, folder], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(params=["made here", "made here, summed", "real"])
def planned(request, tmp_path):
    """Returns a dump and the folder with the script's files: (folder, layers of the model, experts)."""
    if request.param == "real":
        if REAL is None:
            pytest.skip("no real traces")
        dump = pathlib.Path(REAL) / "deepseek-r1-sglang-dumps/expert_distribution_fp4_8k1k_compressed.pt"
        layers, experts = None, 256
    else:
        torch = pytest.importorskip("torch", reason="no torch")
        layers, experts = 5, 32
        rng = np.random.default_rng(0)
        counts = rng.poisson(rng.lognormal(3, 1, (1, layers, experts)), (20, layers, experts)).astype(np.int32)
        counts[:, :2] = 0  # dense layers
        counts[15:] = 0  # unused rows of the ring
        counts = counts if request.param == "made here" else counts.sum(axis=0)
        about = {"rank": 0, "logical_count": torch.from_numpy(counts), "average_utilization_rate_over_window": None}
        dump = tmp_path / "expert_distribution_recorder_1760000000.pt"
        torch.save(about, dump)
    said = run(dump, tmp_path)
    assert f"{experts} experts on {RANKS} ranks" in said and "busiest rank over average: 1." in said
    return tmp_path, layers, experts


def test_the_readme_shows_the_script():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert SCRIPT.read_text() in blocks
    assert len(SCRIPT.read_text().splitlines()) <= 12


def test_sglangs_loader_takes_it(planned, clean):
    from sglang_rank import Rank

    folder, layers, experts = planned
    rows = json.loads((folder / "init.json").read_text())["physical_to_logical_map"]
    layers = layers or len(rows)
    for a2a in ("none", "deepep"):
        sglang = Rank(clean, None, a2a=a2a, algorithm="dynamic" if a2a == "none" else "static")
        sglang.shape.num_layers, sglang.shape.num_logical_experts = layers, experts
        sglang.options.ep_num_redundant_experts = RANKS
        sglang.options.init_expert_location = str(folder / "init.json")
        metadata = sglang.location.compute_initial_expert_location_metadata(sglang.model_config, moe_ep_rank=3)
        assert metadata.physical_to_logical_map.tolist() == rows and metadata.num_layers == layers
        assert metadata.num_logical_experts == experts and metadata.num_local_physical_experts == experts // RANKS + 1
        # Every expert must be in the slots that the file states.
        for layer in range(layers):
            for expert in range(experts):
                copies = metadata.logical_to_all_physical(layer, expert)
                assert copies and all(rows[layer][slot] == expert for slot in copies)
        assert (metadata.logical_to_all_physical_map_num_valid >= 1).all()


def strict_trtllm(text, experts, ranks, moe_layers):
    """Checks the requirements of TensorRT-LLM's `MoeLoadBalancerConfig` and of its use."""
    fields = {}
    for line in text.splitlines():
        if line.startswith("  "):
            layer, row = line.strip().split(": ")
            assert isinstance(fields["initial_global_assignments"], dict)
            fields["initial_global_assignments"][int(layer)] = json.loads(row)
        else:
            key, _, value = line.partition(":")
            assert key not in fields, "a key twice"
            fields[key] = json.loads(value) if value.strip() else {}
    assert set(fields) <= {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}, "unknown keys are refused"
    slots, rows = fields["num_slots"], fields["initial_global_assignments"]
    assert type(slots) is int and slots >= experts and slots % ranks == 0
    assert type(fields.get("layer_updates_per_iter", 0)) is int
    assert set(rows) == set(moe_layers), "every layer has to be there"
    for row in rows.values():
        assert all(type(expert) is int for expert in row) and len(row) == slots and set(row) == set(range(experts))
    return rows


def test_tensorrt_llm_takes_it(planned):
    folder, layers, experts = planned
    text = (folder / "balancer.yaml").read_text()
    moe_layers = range(2, layers) if layers else range(3, 61)
    rows = strict_trtllm(text, experts, RANKS, moe_layers)
    sglang = json.loads((folder / "init.json").read_text())["physical_to_logical_map"]
    # Each file is planned for its stack's split. The shape is the same, the placement may differ.
    assert all(len(sglang[layer]) == len(row) and set(sglang[layer]) == set(row) for layer, row in rows.items())
    yaml = pytest.importorskip("yaml", reason="no pyyaml")
    assert yaml.safe_load(text)["initial_global_assignments"] == rows


def test_vllm_ascends_reader_takes_it(planned, clean):
    folder, layers, experts = planned
    utils = stacks.take(
        "vllm_ascend.eplb.core.eplb_utils",
        "expert_file_to_tensor",
        torch=clean,
        json=json,
        logger=types.SimpleNamespace(warning=lambda *_: None),
    )
    trtllm = strict_trtllm(
        (folder / "balancer.yaml").read_text(), experts, RANKS, range(2, layers) if layers else range(3, 61)
    )
    for position in range(len(trtllm)):  # MoE layers only
        table, physical = utils.expert_file_to_tensor(folder / "map.json", position)
        assert physical == experts + RANKS and table.shape == (RANKS, physical // RANKS)
        assert set(table.reshape(-1).tolist()) == set(range(experts))
        assert all(len(set(row)) == len(row) for row in table.tolist()), "no expert twice on a device"
    assert utils.expert_file_to_tensor(folder / "map.json", len(trtllm)) == (None, experts + RANKS)
    with pytest.raises(ValueError):
        utils.expert_file_to_tensor(folder / "map.json", len(trtllm) + 1)

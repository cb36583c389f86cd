"""Advice on deployments."""

import json

import numpy as np
import pytest

import evenkeel


def trace(skewed, experts=128, layers=3):
    loads = np.random.default_rng(1).integers(200, 260, (10, layers, experts))
    if skewed:
        loads[:, :, 5] = 20_000
    return evenkeel.Trace.from_loads(loads)


def test_the_table_has_a_row_per_deployment():
    advice = evenkeel.advise(trace(False), "qwen3-30b-a3b", "h100", "2..8", (2000, 500), framework="vllm")
    table = advice.table
    assert {len(column) for column in table.values()} == {len(table["tokens_per_s_per_gpu"])}
    assert table["tokens_per_s_per_gpu"] == sorted(table["tokens_per_s_per_gpu"], reverse=True)
    assert sum(table["is_advised"]) == 1
    assert set(advice.compared) >= {"name", "attention_ms", "imbalance_ms", "step_ms"}
    assert advice.text.startswith("Not worth it") and not advice.is_worth_it and advice.plan is None
    assert advice.gain <= advice.error and str(advice) == advice.text and "Advice" in repr(advice)
    assert {command["stack"] for command in advice.launch} == {"sglang", "vllm", "trtllm", "dynamo"}
    json.dumps(advice.document)


def test_skewed_loads_are_planned():
    arguments = (trace(True), "qwen3-30b-a3b", "h100", [8], (8000, 10))
    advice = evenkeel.advise(*arguments)
    assert advice.is_worth_it and advice.gain > advice.error
    plan = advice.plan or advice.prefill_plan
    assert plan is not None and json.loads(plan.export("sglang"))
    assert evenkeel.advise(*arguments, plan=False).plan is None
    assert evenkeel.advise(*arguments, plan=False).document == advice.document


def test_a_config_json_is_a_model(tmp_path):
    config = {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "intermediate_size": 6144, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    of_file = evenkeel.advise(trace(False), str(path), "h100", 4, (1000, 100), plan=False)
    known = evenkeel.advise(trace(False), "qwen3-30b-a3b", "h100", 4, (1000, 100), plan=False)
    assert of_file.table == known.table


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "deepseek-v3"}, "256 experts per layer, the trace 128"),
        ({"gpu": "h300"}, "unknown GPU"),
        ({"gpus": "0..4"}, "numbers of GPUs"),
        ({"context": (0, 5)}, "context 0:5"),
        ({"framework": "llama.cpp"}, "expected sglang"),
        ({"serving": "both"}, "expected disaggregated"),
        ({"kv_dtype": "int3"}, "expected bf16"),
        ({"tpot_ms": 0.001}, "the fastest takes"),
        ({"drafts": (1.0, 2.0)}, "as many accepted"),
    ],
)
def test_questions_without_an_answer_say_why(change, message):
    arguments = {"model": "qwen3-30b-a3b", "gpu": "h100", "gpus": 8, "context": (1000, 100), **change}
    with pytest.raises(evenkeel.Error, match=message):
        evenkeel.advise(trace(False), **arguments)

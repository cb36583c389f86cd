#!/usr/bin/env python3
"""Print what NVIDIA's aiconfigurator predicts for 20 fixed deployments.

One JSON line per deployment: all inputs, the time of one decode step and of
one prefill, tokens per second and GPU, memory per GPU, and every operation
with its arguments and its milliseconds.

    python3 compare_aiconfigurator.py > deployments.jsonl

With --digest the operations are grouped into the parts of a step, in the
format of crates/advise/src/tests/aiconfigurator.json:

    python3 compare_aiconfigurator.py --digest > aiconfigurator.json

The first run makes a virtual environment in its own folder and installs the
package from PyPI. Nothing else is downloaded: the model shapes and the tables
of measured kernels come with the package.
"""
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, "venv")
PACKAGES = ["aiconfigurator==0.12.0", "aiconfigurator-core==0.12.0"]
VERSIONS = {"sglang": "0.5.14", "trtllm": "1.3.0rc20", "vllm": "0.24.0"}

DSV3 = "deepseek-ai/DeepSeek-V3"
Q235F = "Qwen/Qwen3-235B-A22B-FP8"
Q235 = "Qwen/Qwen3-235B-A22B"
Q30 = "Qwen/Qwen3-30B-A3B"
Q30F = "Qwen/Qwen3-30B-A3B-FP8"
MIX = "mistralai/Mixtral-8x7B-v0.1"

# name, model, gpu, framework, (tp, pp, dp, moe_tp, moe_ep), DeepEP?,
# decode (sequences per rank, context), prefill (sequences per rank, length)
DEPLOYMENTS = [
    ("dsv3-h200-sglang-ep8", DSV3, "h200_sxm", "sglang", (1, 1, 8, 1, 8), True, (64, 4096), (1, 4096)),
    ("dsv3-h200-sglang-ep16", DSV3, "h200_sxm", "sglang", (1, 1, 16, 1, 16), True, (128, 4096), (2, 4096)),
    ("dsv3-h200-sglang-ep32-b128", DSV3, "h200_sxm", "sglang", (1, 1, 32, 1, 32), True, (128, 2048), (4, 4096)),
    ("dsv3-h200-sglang-ep32-b256", DSV3, "h200_sxm", "sglang", (1, 1, 32, 1, 32), True, (256, 4096), (1, 4096)),
    ("dsv3-h100-sglang-ep16", DSV3, "h100_sxm", "sglang", (1, 1, 16, 1, 16), True, (32, 4096), (1, 8192)),
    ("dsv3-h100-sglang-ep32", DSV3, "h100_sxm", "sglang", (1, 1, 32, 1, 32), True, (64, 4096), (2, 4096)),
    ("dsv3-h200-sglang-tp8", DSV3, "h200_sxm", "sglang", (8, 1, 1, 8, 1), False, (16, 4096), (1, 4096)),
    ("dsv3-h200-trtllm-dp8-ep8", DSV3, "h200_sxm", "trtllm", (1, 1, 8, 1, 8), False, (64, 4096), (1, 2048)),
    ("dsv3-h200-trtllm-tp8-ep8", DSV3, "h200_sxm", "trtllm", (8, 1, 1, 1, 8), False, (64, 4096), (1, 8192)),
    ("dsv3-b200-trtllm-dp8-ep8", DSV3, "b200_sxm", "trtllm", (1, 1, 8, 1, 8), False, (128, 4096), (1, 2048)),
    ("q235-h200-trtllm-tp4-ep4", Q235F, "h200_sxm", "trtllm", (4, 1, 1, 1, 4), False, (64, 4096), (1, 8192)),
    ("q235-h200-vllm-dp4-ep4", Q235F, "h200_sxm", "vllm", (1, 1, 4, 1, 4), False, (64, 4096), (1, 4096)),
    ("q235-h100-trtllm-tp8-etp2-ep4", Q235F, "h100_sxm", "trtllm", (8, 1, 1, 2, 4), False, (128, 4096), (2, 4096)),
    ("q235-b200-sglang-tp8-bf16", Q235, "b200_sxm", "sglang", (8, 1, 1, 8, 1), False, (64, 4096), (1, 4096)),
    ("q30-h100-trtllm-tp1-bf16", Q30, "h100_sxm", "trtllm", (1, 1, 1, 1, 1), False, (32, 2048), (1, 4096)),
    ("q30-h100-sglang-tp2-bf16", Q30, "h100_sxm", "sglang", (2, 1, 1, 2, 1), False, (128, 4096), (2, 4096)),
    ("q30-h200-trtllm-dp4-ep4", Q30F, "h200_sxm", "trtllm", (1, 1, 4, 1, 4), False, (128, 4096), (1, 4096)),
    ("mixtral-h100-sglang-tp4-bf16", MIX, "h100_sxm", "sglang", (4, 1, 1, 4, 1), False, (64, 4096), (1, 4096)),
    ("mixtral-h200-vllm-tp2-pp2-bf16", MIX, "h200_sxm", "vllm", (2, 2, 1, 2, 1), False, (32, 4096), (1, 8192)),
    ("mixtral-b200-trtllm-tp2-ep2-bf16", MIX, "b200_sxm", "trtllm", (2, 1, 1, 1, 2), False, (128, 4096), (1, 8192)),
]


def enter_environment():
    """Make the virtual environment if it is missing, then run in it."""
    python = os.path.join(VENV, "bin", "python")
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        return
    if not os.path.exists(python):
        subprocess.check_call([sys.executable, "-m", "venv", VENV], stdout=sys.stderr)
        subprocess.check_call([python, "-m", "pip", "install", "-q", *PACKAGES], stdout=sys.stderr)
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


def find_shape(name):
    """Give a name the tool can load without the network.

    It downloads Mixtral's shape although the file is in the package, so the
    file is copied to a folder of its own.
    """
    import aiconfigurator_core

    if not name.startswith("mistralai/"):
        return name
    folder = os.path.join(HERE, "shapes", name.replace("/", "--"))
    source = os.path.join(os.path.dirname(aiconfigurator_core.__file__), "model_configs",
                          name.replace("/", "--") + "_config.json")
    os.makedirs(folder, exist_ok=True)
    shutil.copy(source, os.path.join(folder, "config.json"))
    return folder


def build_model(name, gpu, framework, layout, deep_ep, database):
    """Build the tool's list of operations for one layout, routing balanced."""
    from aiconfigurator.sdk.config import ModelConfig
    from aiconfigurator.sdk.models import get_model
    from aiconfigurator_core.sdk import common
    from aiconfigurator_core.sdk.models.helpers import resolve_context_fmha_by_data

    tp, pp, dp, moe_tp, moe_ep = layout
    config = ModelConfig(
        tp_size=tp, pp_size=pp, attention_dp_size=dp, moe_tp_size=moe_tp, moe_ep_size=moe_ep,
        nextn=0, workload_distribution="balanced", system=gpu,
        num_gpus_per_node=database.system_spec["node"]["num_gpus_per_node"],
    )
    if deep_ep:  # as the tool's own search does for large expert parallelism
        config.moe_comm_backend = {"context": "deepep_ht", "generation": "deepep_ll"}
        config.fmha_quant_mode = common.FMHAQuantMode.fp8_block
        config.kvcache_quant_mode = common.KVCacheQuantMode.fp8
    else:
        resolve_context_fmha_by_data(config, name, database, framework, is_context_role=True)
    return get_model(name, config, framework)


def describe_model(name):
    """List the shape of a model as the tool reads it."""
    from aiconfigurator_core.sdk.models import _get_model_info

    info = _get_model_info(name)
    raw = info["raw_config"]
    keys = {"hidden_size": "hidden_size", "heads": "n", "kv_heads": "n_kv", "head_dim": "d", "layers": "layers",
            "experts": "num_experts", "top_k": "topk", "moe_intermediate": "moe_inter_size",
            "dense_intermediate": "inter_size", "vocab": "vocab", "shared_experts": "num_shared_experts"}
    shape = {ours: info[theirs] for ours, theirs in keys.items()}
    shape["dense_layers_in_checkpoint"] = raw.get("first_k_dense_replace", 0)
    for key in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        if raw.get(key):
            shape[key] = raw[key]
    return shape


def describe_query(kind, spec, tokens, batch, length, is_context, blackwell):
    """Say which table an operation reads, and at which point."""
    if kind == "Gemm":
        m = tokens // max(1, spec["scale_num_tokens"])
        return {"table": "gemm_perf", "m": m, "n": spec["n"], "k": spec["k"], "dtype": spec["quant_mode"]}
    if kind == "Embedding":
        return {"table": "formula", "bytes": tokens * spec["hidden_size"] * 2}
    if kind == "Elementwise":
        return {"table": "formula", "bytes": tokens * spec["bytes_per_token"] / max(1, spec["scale_num_tokens"])}
    if kind in ("ContextAttention", "GenerationAttention"):
        table = "context_attention_perf" if is_context else "generation_attention_perf"
        return {"table": table, "batch": batch, "length": length, "heads": spec["n"], "kv_heads": spec["n_kv"],
                "head_dim": spec["head_size"], "window": spec["window_size"], "kv_dtype": spec["kv_cache_dtype"],
                "kernels": spec.get("lane_order")}
    if kind in ("ContextMla", "GenerationMla", "MlaModuleContext", "MlaModuleGeneration",
                "WideEpContextMla", "WideEpGenerationMla"):
        tables = {"ContextMla": "context_mla_perf", "GenerationMla": "generation_mla_perf",
                  "MlaModuleContext": "mla_context_module_perf", "MlaModuleGeneration": "mla_generation_module_perf",
                  "WideEpContextMla": "wideep_context_mla_perf", "WideEpGenerationMla": "wideep_generation_mla_perf"}
        return {"table": tables[kind], "batch": batch, "length": length, "heads": spec["num_heads"],
                "kv_dtype": spec["kv_cache_dtype"], "attention_dtype": spec.get("fmha_quant_mode"),
                "gemm_dtype": spec.get("gemm_quant_mode"), "kernel": spec.get("attn_backend")}
    if kind == "MlaBmm":
        return {"table": "mla_bmm_perf", "tokens": tokens, "heads": spec["num_heads"], "dtype": spec["quant_mode"],
                "before_attention": spec["is_pre"]}
    if kind == "Moe":
        return {"table": "moe_perf", "tokens": tokens * max(1, spec["attention_dp_size"]),
                "hidden": spec["hidden_size"], "intermediate": spec["inter_size"], "top_k": spec["topk"],
                "experts": spec["num_experts"], "moe_tp": spec["moe_tp_size"], "moe_ep": spec["moe_ep_size"],
                "dtype": spec["quant_mode"], "routing": spec["workload_distribution"]}
    if kind == "MoeExpertCompute":
        table = "wideep_context_moe_perf" if is_context else "wideep_generation_moe_perf"
        return {"table": table, "tokens": tokens * max(1, spec["attention_dp_size"]), "moe_ep": spec["moe_ep_size"],
                "slots": spec["num_slots"], "dtype": spec["quant_mode"],
                "routing": spec["workload_distribution"] + " (the table has 'uniform' and uses it instead)"}
    if kind == "MoeAllToAll":
        table = "wideep_deepep_normal_perf" if spec["comm_backend"] == "deepep_ht" else "wideep_deepep_ll_perf"
        return {"table": table, "phase": spec["phase"], "tokens": tokens // max(1, spec["attention_tp_size"]),
                "hidden": spec["hidden_size"], "top_k": spec["topk"], "experts": spec["num_experts"],
                "nodes": spec["node_num"], "sms": spec["sms"]}
    if kind == "MoeDispatch":
        return describe_dispatch(spec, tokens, blackwell)
    if kind == "CustomAllReduce":
        return {"table": "custom_allreduce_perf", "gpus": spec["tp_size"], "elements": tokens * spec["hidden_size"]}
    if kind == "Nccl":
        return {"table": "nccl_perf", "collective": spec["operation"], "gpus": spec["num_gpus"],
                "elements": tokens * spec["hidden_size"], "dtype": spec["dtype"]}
    if kind == "P2P":
        return {"table": "formula", "bytes": tokens * spec["hidden_size"] * 2, "pp": spec["pp_size"]}
    return {"table": "unknown"}


def describe_dispatch(spec, tokens, blackwell):
    """Say which collectives carry tokens to the experts and back.

    The list below is proved by running the collectives alone: the script
    stops if their sum is not the tool's own figure.
    """
    gpus = spec["moe_tp_size"] * spec["moe_ep_size"]
    dp = max(1, spec["attention_dp_size"])
    tp = max(1, gpus // dp)
    elements = tokens * spec["hidden_size"]
    before = spec["pre_dispatch"]
    gather = {"table": "nccl_perf", "collective": "all_gather" if before else "reduce_scatter", "gpus": gpus,
              "elements": elements * dp}
    reduce = {"table": "custom_allreduce_perf", "gpus": gpus, "elements": elements}
    if spec["backend"] == "trtllm" and blackwell and dp > 1:
        share = {"fp8": 0.5, "fp8_block": 0.5, "nvfp4": 0.25 + 1 / 32}.get(spec["moe_quant"], 1.0)
        if before:  # tokens travel in the experts' own dtype there
            gather["elements"] = int(gather["elements"] * share)
        parts = [gather]
    elif spec["backend"] == "vllm":
        parts = ([reduce] if tp > 1 else []) + ([gather] if dp > 1 else [])
    elif tp > 1 and dp > 1 and spec["backend"] == "sglang":
        inner = {"table": "nccl_perf", "collective": "reduce_scatter" if before else "all_gather", "gpus": tp,
                 "elements": elements}
        parts = [inner, gather] if before else [gather, inner]
    elif tp > 1:
        parts = [reduce]
    elif dp > 1:
        parts = [gather]
    else:
        parts = []
    return {"table": "collectives", "parts": parts}


def evaluate(handle, kind, spec, is_context, batch, length, tokens):
    """Ask the tool for one operation alone: milliseconds and where they came from."""
    row = handle.evaluate_ops_json(json.dumps([{kind: spec}]), is_context=is_context, batch_size=batch, s=length,
                                   prefix=0, imbalance_correction_scale=1.0, x=tokens)[0]
    return row[1], row[3]


def list_operations(handle, ops, is_context, batch, length, blackwell):
    """Evaluate every operation, with the members of overlapped groups apart."""
    from aiconfigurator_core.sdk.engine import build_ops_json

    rows = []

    def add(item, group):
        (kind, spec), = item.items()
        if kind == "Overlap":
            for member in spec["group_a"]:
                add(member, "main stream")
            for member in spec["group_b"]:
                add(member, "side stream")
            return
        tokens = batch * length if is_context else batch
        if spec.get("name", "").endswith("logits_gemm"):
            tokens = batch
        if kind == "Fallback":
            (primary_kind, primary), = spec["primary"].items()
            try:
                evaluate(handle, primary_kind, primary, is_context, batch, length, tokens)
                add(spec["primary"], group)
            except Exception:  # the tool does the same: no row, then the finer list
                for member in spec["fallback"]:
                    add(member, group)
            return
        ms, source = evaluate(handle, kind, spec, is_context, batch, length, tokens)
        query = describe_query(kind, spec, tokens, batch, length, is_context, blackwell)
        repeats = spec["scale_factor"]
        rows.append({"name": spec["name"], "kind": kind, "group": group, "repeats": repeats, "ms": round(ms, 5),
                     "us_each": round(1000 * ms / repeats, 3) if repeats else 0.0, "source": source, "query": query})

    for item in json.loads(build_ops_json(ops)):
        add(item, "")
    return rows


def add_times(rows):
    """Add the operations up: one after another, except the two streams, where the slower one counts."""
    total = sum(row["ms"] for row in rows if not row["group"])
    streams = [sum(row["ms"] for row in rows if row["group"] == name) for name in ("main stream", "side stream")]
    return total + max(streams)


ATTENTION_WORDS = ("attention", "mla", "qkv", "proj_gemm", "downscale", "q_b", "kv_b", "bmm")


def part_of(row):
    """Say to which part of a step an operation belongs."""
    name, kind = row["name"].lower(), row["kind"]
    if kind in ("MoeDispatch", "MoeAllToAll") or "moe_dispatch" in name or "combine" in name:
        return "exchange"
    if kind in ("Moe", "MoeExpertCompute"):
        return "experts"
    return "attention" if any(word in name for word in ATTENTION_WORDS) else "dense"


def group_parts(rows):
    """Add the operations of each part up, in milliseconds. The main stream hides those of the side stream."""
    parts = dict.fromkeys(("attention", "dense", "experts", "exchange"), 0.0)
    for row in rows:
        if row["group"] != "side stream":
            parts[part_of(row)] += row["ms"]
    return {part: round(ms, 3) for part, ms in parts.items()}


def digest_deployment(found):
    """Shorten the result of a deployment to its inputs, times and parts."""
    layout, dtypes, decode, prefill = (found[key] for key in ("layout", "dtypes", "decode", "prefill"))
    return {
        "name": found["name"], "model": found["model"], "gpu": found["gpu"].removesuffix("_sxm"),
        "framework": found["framework"], "gemm": dtypes["gemm"], "experts": dtypes["moe"],
        "kv_cache": dtypes["kv_cache"], "tp": layout["tp"], "pp": layout["pp"], "dp": layout["attention_dp"],
        "moe_tp": layout["moe_tp"], "moe_ep": layout["moe_ep"], "deepep": layout["deepep"],
        "decode": {"batch": decode["batch_per_rank"], "context": decode["context"], "ms": decode["tpot_ms"],
                   "parts": group_parts(decode["operations"])},
        "prefill": {"prompts": prefill["sequences_per_rank"], "tokens": prefill["length"], "ms": prefill["ttft_ms"],
                    "parts": group_parts(prefill["operations"])},
    }


def format_digest(deployments):
    """Write the digests as one JSON document with a line per deployment."""
    package, version = PACKAGES[0].split("==")
    head = json.dumps({"package": package, "version": version, "routing": "balanced"}, separators=(",", ":"))
    lines = ",\n".join(json.dumps(deployment) for deployment in deployments)
    return f'{head[:-1]},"deployments":[\n{lines}\n]}}'


def check_dispatch(handle, rows):
    """Stop if the collectives named for a dispatch do not add up to the tool's figure."""
    for row in rows:
        if row["kind"] != "MoeDispatch":
            continue
        total = 0.0
        for part in row["query"]["parts"]:
            if part["table"] == "custom_allreduce_perf":
                spec = {"name": "check", "scale_factor": 1.0, "hidden_size": 1, "tp_size": part["gpus"],
                        "quant": "half", "seq_split": 1}
                kind = "CustomAllReduce"
            else:
                spec = {"name": "check", "scale_factor": 1.0, "hidden_size": 1.0, "num_gpus": part["gpus"],
                        "dtype": "half", "operation": part["collective"], "seq_split": 1}
                kind = "Nccl"
            ms = evaluate(handle, kind, spec, True, 1, 1, part["elements"])[0]
            part["us"] = round(1000 * ms, 3)
            total += ms * row["repeats"]
        if abs(total - row["ms"]) > 1e-3 * max(1.0, row["ms"]):
            raise SystemExit(f"{row['name']}: {total} ms by parts, {row['ms']} ms by the tool")


def describe_memory(summary, gib):
    """List memory per GPU in GiB."""
    memory = {key: round(value, 3) for key, value in summary.get_memory().items()}
    memory["capacity"] = round(gib, 1)
    return memory


def estimate(deployment):
    """Run the tool on one deployment."""
    from aiconfigurator.sdk.backends.factory import get_backend
    from aiconfigurator.sdk.config import RuntimeConfig
    from aiconfigurator.sdk.perf_database import get_database_view
    from aiconfigurator_core.sdk.engine import _probe_handle_for

    name, model_name, gpu, framework, layout, deep_ep, (batch, context), (sequences, length) = deployment
    database = get_database_view(gpu, framework, VERSIONS[framework], database_mode="SILICON",
                                 allow_missing_data=False)
    path = find_shape(model_name)
    model = build_model(path, gpu, framework, layout, deep_ep, database)
    backend = get_backend(framework)
    handle = _probe_handle_for(database, None)
    tp, pp, dp, moe_tp, moe_ep = layout
    gpus = tp * pp * dp
    capacity = database.system_spec["gpu"]["mem_capacity"] / 2**30

    # One decode step over a context of exactly `context` tokens: the tool asks for isl + 1.
    decode = backend.run_static(model, database, RuntimeConfig(batch_size=batch, isl=context - 1, osl=2), "static_gen")
    tpot = sum(decode.get_generation_latency_dict().values())
    prefill = backend.run_static(model, database, RuntimeConfig(batch_size=sequences, isl=length, osl=1), "static_ctx")
    ttft = sum(prefill.get_context_latency_dict().values())

    blackwell = database.system_spec["gpu"]["sm_version"] == 100
    decode_rows = list_operations(handle, model.generation_ops, False, batch, context, blackwell)
    prefill_rows = list_operations(handle, model.context_ops, True, sequences, length, blackwell)
    for rows, whole in ((decode_rows, tpot), (prefill_rows, ttft)):
        if abs(add_times(rows) - whole) > 1e-3 * whole:
            raise SystemExit(f"{name}: the operations add up to {add_times(rows)} ms, the tool says {whole} ms")
        check_dispatch(handle, rows)

    config = model.config
    return {
        "name": name,
        "model": model_name,
        "shape": describe_model(path),
        "gpu": gpu,
        "framework": framework,
        "framework_version": VERSIONS[framework],
        "dtypes": {"gemm": config.gemm_quant_mode.name, "moe": config.moe_quant_mode.name,
                   "kv_cache": config.kvcache_quant_mode.name, "attention": config.fmha_quant_mode.name,
                   "communication": config.comm_quant_mode.name},
        "layout": {"tp": tp, "pp": pp, "attention_dp": dp, "moe_tp": moe_tp, "moe_ep": moe_ep, "gpus": gpus,
                   "deepep": deep_ep},
        "routing": "balanced",
        "decode": {
            "batch_per_rank": batch, "batch_in_all": batch * dp, "context": context,
            "tpot_ms": round(tpot, 4), "tokens_per_s_per_gpu": round(1000 * batch * dp * pp / tpot / gpus, 2),
            "memory_gib": describe_memory(decode, capacity), "operations": decode_rows,
        },
        "prefill": {
            "sequences_per_rank": sequences, "length": length, "tokens_per_rank": sequences * length,
            "tokens_in_all": sequences * length * dp,
            "ttft_ms": round(ttft, 4),
            "tokens_per_s_per_gpu": round(1000 * sequences * length * dp * pp / ttft / gpus, 2),
            "memory_gib": describe_memory(prefill, capacity), "operations": prefill_rows,
        },
    }


def main():
    enter_environment()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wanted = set(sys.argv[1:]) - {"--digest"}
    found = (estimate(deployment) for deployment in DEPLOYMENTS if not wanted or deployment[0] in wanted)
    if "--digest" in sys.argv[1:]:
        print(format_digest(map(digest_deployment, found)))
        return
    for deployment in found:
        print(json.dumps(deployment), flush=True)


if __name__ == "__main__":
    main()

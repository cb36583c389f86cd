#!/usr/bin/env python3
"""Tests of compare_aiconfigurator.py: `python3 scripts/test_compare_aiconfigurator.py`."""

import json
import pathlib
import unittest

import compare_aiconfigurator as compare

DIGEST = pathlib.Path(__file__).resolve().parent.parent / "crates/advise/src/tests/aiconfigurator.json"


def row(name, kind, ms, group=""):
    return {"name": name, "kind": kind, "ms": ms, "group": group}


class Digest(unittest.TestCase):
    def test_operations_belong_to_parts(self):
        for name, kind, part in [
            ("generation_moe_pre_dispatch", "MoeDispatch", "exchange"),
            ("generation_moe_dispatch_ll", "Elementwise", "exchange"),
            ("context_moe_combine", "MoeAllToAll", "exchange"),
            ("generation_moe", "Moe", "experts"),
            ("context_moe_compute", "MoeExpertCompute", "experts"),
            ("generation_attention", "GenerationAttention", "attention"),
            ("generation_mla", "MlaModuleGeneration", "attention"),
            ("generation_bmm_pre", "MlaBmm", "attention"),
            ("context_qkv_gemm", "Gemm", "attention"),
            ("context_q_b_proj_gemm", "Gemm", "attention"),
            ("generation_downscale_gemm", "Gemm", "attention"),
            ("context_router_gemm", "Gemm", "dense"),
            ("context_shared_ffn1_gemm", "Gemm", "dense"),
            ("generation_logits_gemm", "Gemm", "dense"),
            ("context_embedding", "Embedding", "dense"),
        ]:
            self.assertEqual(compare.part_of(row(name, kind, 1.0)), part, name)

    def test_the_side_stream_is_hidden(self):
        rows = [row("moe", "Moe", 2.0, "main stream"), row("shared_ffn1_gemm", "Gemm", 1.0, "side stream"),
                row("qkv_gemm", "Gemm", 0.5), row("attention", "GenerationAttention", 0.25)]
        parts = {"attention": 0.75, "dense": 0.0, "experts": 2.0, "exchange": 0.0}
        self.assertEqual(compare.group_parts(rows), parts)

    def test_the_format_is_that_of_the_committed_digest(self):
        text = DIGEST.read_text()
        document = json.loads(text)
        self.assertEqual(compare.format_digest(document["deployments"]) + "\n", text)
        self.assertEqual([one["name"] for one in document["deployments"]], [one[0] for one in compare.DEPLOYMENTS])

    def test_a_result_is_shortened_to_the_keys_of_the_committed_digest(self):
        committed = json.loads(DIGEST.read_text())["deployments"][0]
        phase = {"operations": [row("moe", "Moe", 2.0)]}
        layout = {"tp": 1, "pp": 1, "attention_dp": 8, "moe_tp": 1, "moe_ep": 8, "gpus": 8, "deepep": True}
        found = compare.digest_deployment({
            "name": "one", "model": "two", "gpu": "h200_sxm", "framework": "sglang", "layout": layout,
            "dtypes": {"gemm": "fp8_block", "moe": "fp8_block", "kv_cache": "fp8"},
            "decode": {"batch_per_rank": 64, "context": 4096, "tpot_ms": 45.4, **phase},
            "prefill": {"sequences_per_rank": 1, "length": 4096, "ttft_ms": 434.8, **phase},
        })
        self.assertEqual(found["gpu"], committed["gpu"])
        self.assertEqual(list(found), list(committed))
        for key in ("decode", "prefill"):
            self.assertEqual(list(found[key]), list(committed[key]))
            self.assertEqual(list(found[key]["parts"]), list(committed[key]["parts"]))


if __name__ == "__main__":
    unittest.main()

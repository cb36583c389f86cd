"""Times EPLB's call against the published implementations, on the same weights and with the same results.

    make stacks
    EVENKEEL_STACKS=.tools/stacks/modules .tools/stacks/venv/bin/python bindings/python/benches/eplb.py

The shape is 58 layers of 256 experts, 288 slots on 32 GPUs in 4 nodes, 8 expert groups. The figures are
medians of calls that alternate.
"""

import pathlib
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import stacks
import torch

import evenkeel

SHAPE = (288, 8, 4, 32)


def main():
    vllm = stacks.load("vllm.distributed.eplb.policy.default").DefaultEplbPolicy
    sglang = stacks.load("sglang.srt.eplb.eplb_algorithms.deepseek")
    weight = torch.from_numpy(np.random.default_rng(0).lognormal(3, 1, (58, 256)).astype(np.float32))
    calls = {
        "evenkeel": lambda: evenkeel.eplb.rebalance_experts(weight, *SHAPE)[0],
        "vLLM 0.33.0": lambda: vllm.rebalance_experts(weight, *SHAPE),
        "SGLang 0.5.23 (DeepSeek's)": lambda: sglang.rebalance_experts(weight, *SHAPE, enable_hierarchical=True)[0],
    }
    answers = {name: call() for name, call in calls.items()}
    times = {name: [] for name in calls}
    for _ in range(9):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    for name, answer in answers.items():
        same = "same answer" if torch.equal(answer, answers["evenkeel"]) else "another answer"
        print(f"{name:28} {statistics.median(times[name]) * 1e3:8.2f} ms   {same}")


if __name__ == "__main__":
    main()

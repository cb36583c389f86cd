#!/usr/bin/env python3
"""Prints the table of traces/README.md, which compares the synthetic presets with their recordings.

    cargo build --release && python3 scripts/measure_fit.py

EVENKEEL_REAL_TRACES names the folder with the recorded traces. A recording is averaged over five seeds of
`--order shuffled`. The synthetic trace has the seed of the sample. Only Python's standard library is used.
"""

import json
import os
import pathlib
import subprocess
import tempfile

EVENKEEL = pathlib.Path(__file__).resolve().parent.parent / "target/release/evenkeel"
TRACES = os.environ.get("EVENKEEL_REAL_TRACES", "")

# preset, its recording, ranks, batch option, (batch, synthetic steps) twice, options of the committed sample
FITS = [
    ("gptoss20b-decode", "gptoss20b-decode", 8, "--decode-batch", [(64, 790), (16, 3160)], ["--seed", "1", "--layers", "16"]),
    ("deepseek-v2-lite-prefill", "deepseek-v2-lite-domains", 16, "--batch-tokens", [(512, 48), (256, 97)], ["--seed", "2"]),
]


def excess(trace, ranks, options):
    """Returns the mean excess of eplb + even and of lplb:ring + exact, with one redundant slot per rank."""
    command = [EVENKEEL, "simulate", trace, "--ranks", ranks, "--redundant", ranks, "--policies", "eplb,lplb:ring", "--json"]
    done = subprocess.run([str(word) for word in command + options], capture_output=True, text=True, check=True)
    rows = {(r["policy"], r["split"]): r["excess"]["mean"] for r in json.loads(done.stdout)["results"]}
    return rows["eplb", "even"], rows["lplb:ring", "exact"]


def main():
    print("| preset | ranks | batch | eplb + even: recorded | synthetic | ratio | ring + exact: recorded | synthetic | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for preset, recording, ranks, flag, sizes, sample in FITS:
        for batch, steps in sizes:
            recorded = [
                excess(f"{TRACES}/{recording}", ranks, [flag, batch, "--order", "shuffled", "--seed", seed]) for seed in range(5)
            ]
            real = [sum(column) / len(recorded) for column in zip(*recorded)]
            with tempfile.TemporaryDirectory() as folder:
                made = f"{folder}/synthetic.csv.zst"
                command = [EVENKEEL, "trace", "synth", "--like", preset, *sample, flag, batch, "--steps", steps, "-o", made]
                subprocess.run([str(word) for word in command], capture_output=True, check=True)
                ours = excess(made, ranks, [])
            cells = [f"{r:.4f} | {o:.4f} | {o / r:.2f}" for r, o in zip(real, ours)]
            print(f"| `{preset}` | {ranks} | {batch} | {cells[0]} | {cells[1]} |")


main()

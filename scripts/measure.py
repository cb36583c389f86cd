#!/usr/bin/env python3
"""Prints the tables of docs/results.md. Each loops over one `evenkeel simulate --json` command.

    cargo build --release --features highs && python3 scripts/measure.py [TABLE ...]

EVENKEEL_REAL_TRACES names the folder with the recorded traces. Only Python's standard library is used.
"""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVENKEEL = ROOT / "target/release/evenkeel"
TRACES = os.environ.get("EVENKEEL_REAL_TRACES", "")

RING, CUBE, HYPER = "lplb:ring", "lplb:cube", "lplb:hypercube"
COLUMNS = [("contiguous", "even"), ("eplb", "even"), ("eplb", "exact"), (RING, "exact"), (CUBE, "exact"), (HYPER, "exact")]

DECODE64 = "--decode-batch 64"
TABLES = {
    # name: (heading, folder, options, experts, ranks)
    "gptoss-decode64-shuffled": ("gpt-oss-20b, decode, 64 requests in flight, shuffled", "gptoss20b-decode", f"{DECODE64} --order shuffled", 32, [8, 16, 32]),
    "gptoss-decode64-recorded": ("gpt-oss-20b, decode, 64 requests in flight, recorded order", "gptoss20b-decode", f"{DECODE64} --order recorded", 32, [8, 16, 32]),
    "gptoss-decode16-recorded": ("gpt-oss-20b, decode, 16 requests in flight, recorded order", "gptoss20b-decode", "--decode-batch 16 --order recorded", 32, [8, 16]),
    "gptoss-prefill512-shuffled": ("gpt-oss-20b, 512-token batches, shuffled", "gptoss20b-decode", "--batch-tokens 512 --order shuffled", 32, [8, 16, 32]),
    "dsv2-prefill512-shuffled": ("DeepSeek-V2-Lite, 512-token prefill batches, sequences shuffled", "deepseek-v2-lite-domains", "--batch-tokens 512 --order shuffled", 64, [8, 16, 32, 64]),
    "dsv2-prefill512-recorded": ("DeepSeek-V2-Lite, 512-token prefill batches, domains one after another", "deepseek-v2-lite-domains", "--batch-tokens 512 --order recorded", 64, [8, 16, 32, 64]),
    "dsv2-decode16-shuffled": ("DeepSeek-V2-Lite, 16 sequences in flight, shuffled", "deepseek-v2-lite-domains", "--decode-batch 16 --order shuffled", 64, [8, 16]),
    "r1-fp4-resampled": ("DeepSeek-R1 (fp4 dumps), **over-dispersed resamples of totals**", "deepseek-r1-sglang-dumps", "--resample 40 --top-k 8 --batch-tokens 2048", 256, [8, 16, 32, 64]),
    "gemma-resampled": ("Gemma-4-26B, **over-dispersed resamples of totals**", "gemma4-26b-families", "--step-column family --resample 60 --top-k 8 --batch-tokens 2048", 128, [8, 16, 32, 64]),
}


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout)


def fits(policy, ranks, per_rank, experts):
    """Returns whether this shape admits a policy."""
    if policy in ("contiguous", "eplb"):
        return True
    if per_rank > experts // ranks or experts % ranks:
        return False
    return {RING: per_rank >= 1, CUBE: per_rank >= 2 and ranks % 8 == 0, HYPER: per_rank >= 2 and ranks % 16 == 0}[policy]


def table(name):
    heading, folder, options, experts, ranks_list = TABLES[name]
    print(f"### {heading}\n")
    print(f"`python3 scripts/measure.py {name}`, which for every row runs\n")
    print(f"    evenkeel simulate $EVENKEEL_REAL_TRACES/{folder} {options} \\")
    print("        --ranks RANKS --redundant SLOTS --policies ... --splits even,exact --json\n")
    print("| ranks x slots | bound | " + " | ".join(f"{p} + {s}" for p, s in COLUMNS) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for ranks in ranks_list:
        for per_rank in [0, 1, 2, 4]:
            policies = [p for p in dict.fromkeys(p for p, _ in COLUMNS) if fits(p, ranks, per_rank, experts)]
            command = [EVENKEEL, "simulate", f"{TRACES}/{folder}", *options.split(), "--experts", experts]
            command += ["--ranks", ranks, "--redundant", ranks * per_rank]
            command += ["--policies", ",".join(policies), "--splits", "even,exact", "--json"]
            out = run([str(word) for word in command])
            cells = {(r["policy"], r["split"]): r for r in out["results"]}
            show = lambda key: "" if key not in cells else "{mean:.3f} ({p95:.3f})".format(**cells[key]["imbalance"])
            bound = next(iter(cells.values()))["lower_bound"]["mean"]
            print(f"| {ranks} x {experts // ranks}+{per_rank} | {bound:.3f} | " + " | ".join(map(show, COLUMNS)) + " |")
            sys.stdout.flush()
    print()


def main():
    names = sys.argv[1:] or list(TABLES)
    for name in names:
        if name not in TABLES:
            sys.exit(f"unknown table {name}: expected {', '.join(TABLES)}")
        table(name)


main()

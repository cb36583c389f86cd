#!/usr/bin/env python3
"""Prints the tables of docs/placement.md: `recourse` and the other policies on recorded traces.

    cargo build --release && python3 scripts/measure_placement.py [TABLE ...]

TABLE is stationary, shuffles, once, shifting, resampled, totals, nodes, moves, budget, even or relaxation.
EVENKEEL_REAL_TRACES names the folder with the recorded traces. Every row comes from `evenkeel .. --json`
commands, which the head of the table states. Only Python's standard library is used.
"""

import csv
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVENKEEL = pathlib.Path(os.environ.get("EVENKEEL", ROOT / "target/release/evenkeel"))
TRACES = os.environ.get("EVENKEEL_REAL_TRACES", "")

# name: (folder, batches, experts, routed tokens per batch, steps between two plans)
ROWS = {
    "gpt-oss, decode 16": ("gptoss20b-decode", "--decode-batch 16", 32, 16 * 4, 512),
    "gpt-oss, decode 32": ("gptoss20b-decode", "--decode-batch 32", 32, 32 * 4, 256),
    "gpt-oss, decode 64": ("gptoss20b-decode", "--decode-batch 64", 32, 64 * 4, 128),
    "dsv2-lite, prefill 256": ("deepseek-v2-lite-domains", "--batch-tokens 256", 64, 256 * 6, 8),
    "dsv2-lite, prefill 512": ("deepseek-v2-lite-domains", "--batch-tokens 512", 64, 512 * 6, 4),
}
COUNTS = {
    "DeepSeek-R1, resampled": ("deepseek-r1-sglang-dumps", "--resample 40 --top-k 8 --batch-tokens 2048", 256, 2048 * 8, 0),
    "Gemma-4-26B, resampled": ("gemma4-26b-families", "--step-column family --resample 60 --top-k 8 --batch-tokens 2048", 128, 2048 * 8, 0),
}
# Re-planning is replayed on every sixth layer, which bounds the time of the run.
SIXTH = "--layers 0,6,12,18"
CLUSTERS = [(8, 1), (16, 1), (16, 2), (32, 1)]
RECOURSE = ("recourse:exact", "exact")
# Budget of the tables in recorded order, below the default.
LESS = "recourse:exact:iterations=80000"


def graphs(ranks, per_rank, experts):
    """Returns LPLB's replica graphs that fit the shape."""
    if per_rank > experts // ranks:
        return []
    names = ["ring", "ring:4"] + ([f"ring:{ranks}"] if ranks > 8 else [])
    if per_rank >= 2:
        names += ["cube", "hypercube", "torus:4x4"] if ranks == 16 else ["cube"]
    names.append(f"designed:{per_rank}")
    return [f"lplb:{name}" for name in names]


def simulate(folder, options, policies, ranks, per_rank, experts, *more):
    study = ["replay"] if "--replan-every" in more else []
    command = [EVENKEEL, "simulate", *study, f"{TRACES}/{folder}", *options.split(), "--experts", experts, "--ranks", ranks]
    command += ["--redundant", ranks * per_rank, "--policies", ",".join(policies), "--splits", "even,exact", *more]
    return run(command[2:])


def cell(result):
    return "{mean:.3f} ({p95:.3f})".format(**result["imbalance"])


class Sums:
    """Excess summed over rows, and the rows in which `recourse` misses its target."""

    def __init__(self):
        self.sums, self.rows, self.best, self.misses, self.hindsight = {}, 0, 0.0, [], 0.0

    def add(self, name, cells, token):
        """Adds one row, results by (policy, split). Returns the cells to print."""
        mine, others = cells[RECOURSE], {k: c for k, c in cells.items() if not k[0].startswith(("recourse", "hindsight"))}
        self.rows += 1
        for key, result in cells.items():
            # A designed graph has a column per redundant slot of a rank, so that it fits every shape.
            kinds = [("lplb:designed:D", key[1]) if key[0].startswith("lplb:designed") else key]
            if key[0].startswith("lplb") and key[1] == "exact":
                kinds.append(("best lplb in each row", "exact"))
            for kind in kinds:
                per_row = self.sums.setdefault(kind, {})
                per_row[name] = min(per_row.get(name, math.inf), result["excess"]["mean"])
        self.best += min(c["excess"]["mean"] for c in others.values())
        mean = min(others.items(), key=lambda other: other[1]["imbalance"]["mean"])
        p95 = min(others.items(), key=lambda other: other[1]["imbalance"]["p95"])
        says = []
        if mine["imbalance"]["mean"] > 1.001 * mean[1]["imbalance"]["mean"]:
            says.append(f"mean above {' + '.join(mean[0])} by {mine['imbalance']['mean'] - mean[1]['imbalance']['mean']:.4f}")
        if mine["imbalance"]["p95"] > p95[1]["imbalance"]["p95"] + token + 1e-9:
            says.append(f"p95 above {' + '.join(p95[0])} by {mine['imbalance']['p95'] - p95[1]['imbalance']['p95']:.4f}")
        if says:
            self.misses.append(f"{name}: {'; '.join(says)}")
        return mean, "; ".join(says) or "lowest"

    def print(self):
        print(f"\nSums of the mean excess over {self.rows} rows:\n")
        print("| policy | split | sum | recourse's share of it |\n|---|---|---|---|")
        mine = sum(self.sums[RECOURSE].values())
        rows = [(k, sum(v.values())) for k, v in self.sums.items() if len(v) == self.rows]
        for (policy, split), total in sorted(rows, key=lambda row: row[1]):
            print(f"| {policy} | {split} | {total:.4f} | {mine / total:.3f} |")
        print(f"| best other policy in each row | | {self.best:.4f} | {mine / self.best:.3f} |")
        others = [(total, key) for key, total in rows if not key[0].startswith(("recourse", "hindsight", "best"))]
        single, (policy, split) = min(others)
        print(f"\nThe best single other policy is `{policy}` with the {split} split: recourse has {mine / single:.3f} of its sum.")
        print(f"\nRows that miss: {len(self.misses)}\n")
        for miss in self.misses:
            print(f"- {miss}")
        print()


def columns(cells, best):
    keys = [("contiguous", "even"), ("eplb", "even"), ("eplb", "exact")]
    graph = min((c["imbalance"]["mean"], k) for k, c in cells.items() if k[0].startswith("lplb") and k[1] == "exact") if any(
        k[0].startswith("lplb") for k in cells) else None
    shown = [cell(cells[key]) for key in keys]
    shown.append(f"{cell(cells[graph[1]])} {graph[1][0][5:]}" if graph else "")
    shown.append(f"**{cell(cells[RECOURSE])}**")
    return shown


def planned_once(rows, order, sums, recourse="recourse:exact"):
    print(f"    evenkeel simulate $EVENKEEL_REAL_TRACES/FOLDER BATCHES {order} \\")
    print(f"        --ranks RANKS --redundant SLOTS --policies contiguous,eplb,lplb:..,{recourse} --splits even,exact --hindsight --json\n")
    print("| trace | ranks x redundant | contiguous + even | eplb + even | eplb + exact | best lplb + exact | recourse + exact | hindsight | excess of recourse, hindsight | verdict |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, (folder, options, experts, tokens, _) in rows.items():
        for ranks, per_rank in CLUSTERS:
            policies = ["contiguous", "eplb", *graphs(ranks, per_rank, experts), recourse]
            out = simulate(folder, f"{options} {order}", policies, ranks, per_rank, experts, "--hindsight")
            cells = {(r["policy"].split(":it")[0], r["split"]): r for r in out["results"]
                     if not (r["policy"].startswith("hindsight") and (r["policy"], r["split"]) != ("hindsight", "exact"))}
            shape = f"{ranks} x {per_rank}"
            best, verdict = sums.add(f"{name}, {shape}", cells, ranks / tokens)
            limit = cells[("hindsight", "exact")]
            excess = f"{cells[RECOURSE]['excess']['mean']:.4f}, {limit['excess']['mean']:.4f}"
            print("| " + " | ".join([name, shape, *columns(cells, best), cell(limit), excess, verdict]) + " |", flush=True)
    sums.print()


def stationary():
    print("### Stationary: requests and sequences shuffled\n\n`python3 scripts/measure_placement.py stationary`: for every row\n")
    planned_once(ROWS, "--order shuffled", Sums())


def shuffles():
    """Prints the tables of two more shuffles."""
    print("### Stationary: two more shuffles\n\n`python3 scripts/measure_placement.py shuffles`: as above, with `--seed 1` and `--seed 2`\n")
    for seed in (1, 2):
        planned_once(ROWS, f"--order shuffled --seed {seed}", Sums())


def once():
    print("### Shifting, planned once: requests and domains in recorded order\n\n`python3 scripts/measure_placement.py once`: for every row\n")
    planned_once(ROWS, "--order recorded", Sums())


def resampled():
    print("### Totals only: **over-dispersed resamples**, in no sum above\n\n`python3 scripts/measure_placement.py resampled`: for every row\n")
    planned_once(COUNTS, "", Sums())


DUMPS = ["1k1k", "1k8k", "8k1k"]
FAMILIES = ["fixed_mmlu", "heldout_ppl", "performance_512", "representative_conversation"]


def select_families(names, path):
    """Writes the rows of some families of gemma4-26b-families."""
    with open(f"{TRACES}/gemma4-26b-families/counts.csv") as file:
        lines = file.readlines()
    with open(path, "w") as file:
        file.writelines([lines[0], *(line for line in lines[1:] if line.split(",")[0] in names)])


def totals():
    """Prints the table of plans from the totals of some workloads, judged on another workload."""
    print("### Totals of other workloads: leave one out\n\n`python3 scripts/measure_placement.py totals`: for every row, with batches of B tokens,\n")
    print("    evenkeel simulate TOTALS.. --resample 128 (24 for B = 65536) --top-k 8 --batch-tokens B --judge HELD_OUT --layers LAYERS \\")
    print("        --ranks RANKS --redundant SLOTS --policies eplb,lplb:..,recourse:exact --splits exact --json\n")
    print("Mean imbalance on batches of the workload that was held out, and on the totals that were planned on.\n")
    print("| held out | B | ranks x redundant | eplb | best lplb | recourse | verdict | on the totals: eplb | recourse |")
    print("|---|---|---|---|---|---|---|---|---|")
    sums, worse, above, rows = {}, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for held in FAMILIES:
            known, unknown = f"{folder}/without-{held}.csv", f"{folder}/{held}.csv"
            select_families([name for name in FAMILIES if name != held], known)
            select_families([held], unknown)
            cases.append((f"Gemma-4-26B {held}", [known], unknown, ["--step-column", "family"], 128, "1,4,7,10,13,16,19,22,25,28"))
        for held in DUMPS:
            path = lambda dump: f"{TRACES}/deepseek-r1-sglang-dumps/expert_distribution_fp4_{dump}_compressed.pt"
            cases.append((f"DeepSeek-R1 {held}", [path(dump) for dump in DUMPS if dump != held], path(held), [], 256, "4,12,20,28,36,44,52,60"))
        for name, known, unknown, options, experts, layers in cases:
            for batch in (2048, 8192, 65536):
                for ranks, per_rank in CLUSTERS:
                    policies = ["eplb", *graphs(ranks, per_rank, experts), "recourse:exact"]
                    shape = ["--layers", layers, "--ranks", ranks, "--redundant", ranks * per_rank, "--splits", "exact"]
                    # Large batches take long to draw, and differ little.
                    draw = ["--resample", 24 if batch == 65536 else 128, "--top-k", 8, "--batch-tokens", batch]
                    out = run([*known, *options, *draw, "--judge", unknown, *shape, "--policies", ",".join(policies)])
                    cells = {r["policy"]: r["imbalance"]["mean"] for r in out["results"]}
                    # The same plan on a single batch of all tokens, with EPLB placed on exactly these.
                    plan, flat = f"{folder}/recourse.json", f"{folder}/flat.csv"
                    run([*known, *options, *draw, *shape[:6], "--policy", "recourse:exact", "-o", plan], "plan")
                    write_sum(known, options, layers, flat)
                    on = run([flat, "--resample", 0, "--judge", flat, *shape, "--policies", "eplb", "--placement", plan])
                    fit = {r["policy"].split(".")[0]: r["imbalance"]["mean"] for r in on["results"]}
                    mine, graph = cells["recourse:exact"], min((v, k) for k, v in cells.items() if k.startswith("lplb"))
                    best = min(v for k, v in cells.items() if k != "recourse:exact")
                    says = "lowest" if mine <= best else f"above by {100 * (mine / best - 1):.1f} %"
                    rows, worse, above = rows + 1, worse + (mine > 1.003 * best), above + (fit["recourse"] > fit["eplb"] + 1e-4)
                    for policy, value in cells.items():
                        kind = "lplb:designed:D" if policy.startswith("lplb:designed") else policy
                        per_row = sums.setdefault((name.split()[0], kind), [])
                        per_row.append(value - 1)
                    print(f"| {name} | {batch} | {ranks} x {per_rank} | {cells['eplb']:.4f} | {graph[0]:.4f} {graph[1][5:]} | **{mine:.4f}** | {says} | {fit['eplb']:.4f} | {fit['recourse']:.4f} |", flush=True)
    print(f"\n{rows} rows; recourse is above the lowest by more than 0.3 % in {worse}, and above EPLB on the totals in {above}.\n")
    print("Sums of the mean excess over all rows of a model:\n\n| model | policy | sum |\n|---|---|---|")
    most = max(map(len, sums.values()))
    for (model, policy), values in sorted(sums.items(), key=lambda item: (item[0][0], sum(item[1]))):
        if len(values) >= most * 3 // 4:
            print(f"| {model} | {policy} | {sum(values):.4f} |")
    print()


def nodes():
    """Prints the table of traffic between nodes."""
    print("### Traffic between nodes at equal peaks\n\n`python3 scripts/measure_placement.py nodes`: for every row\n")
    print("    evenkeel simulate traffic $EVENKEEL_REAL_TRACES/FOLDER BATCHES --layers 0,6,12,18 --order shuffled --ranks RANKS \\")
    print("        --redundant SLOTS --nodes NODES --groups NODES --policies contiguous,eplb,recourse:exact --placement FLAT --splits exact --json\n")
    print("FLAT is `recourse:exact` planned on the same batches without `--nodes`. Rows to other nodes per token and layer, a row for")
    print("every visited node, with the split of lowest peak and least traffic. In brackets: mean imbalance.\n")
    print("| trace | ranks x redundant | nodes | contiguous | eplb, hierarchical | recourse without nodes | recourse | saved |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gpt-oss, decode 64", "dsv2-lite, prefill 512"):
            trace, options, experts, _, _ = ROWS[name]
            batches = [f"{TRACES}/{trace}", *options.split(), "--experts", experts, *SIXTH.split(), "--order", "shuffled"]
            for ranks, per_rank in CLUSTERS:
                shape = ["--ranks", ranks, "--redundant", ranks * per_rank]
                planned = run([*batches, *shape, "--policies", "eplb", "--splits", "exact"])["trace"]["planned_steps"]
                write_first_steps(batches, planned, f"{folder}/first.csv")
                run([f"{folder}/first.csv", *shape, "--policy", "recourse:exact", "-o", f"{folder}/flat.json"], "plan")
                for count in (2, 4):
                    policies = ["--policies", "contiguous,eplb,recourse:exact", "--placement", f"{folder}/flat.json"]
                    out = run(["traffic", *batches, *shape, "--nodes", count, "--groups", count, *policies, "--splits", "exact"])
                    means = {r["policy"]: r["imbalance"]["mean"] for r in out["results"]}
                    rows = {r["policy"]: r["copies"]["to_nodes"] / r["copies"]["tokens"] for r in out["locality"] if r["split"] == "peak, traffic"}
                    cells = [f"{rows[p]:.3f} ({means[p]:.3f})" for p in ("contiguous", "eplb", "flat.json", "recourse:exact")]
                    saved = f"{100 * (1 - rows['recourse:exact'] / rows['flat.json']):.1f} %"
                    print("| " + " | ".join([name, f"{ranks} x {per_rank}", str(count), *cells, saved]) + " |", flush=True)
    print()


def write_first_steps(batches, steps, path):
    """Writes the first steps of recorded batches."""
    with tempfile.TemporaryDirectory() as folder:
        every = f"{folder}/batches.csv"
        subprocess.run([str(word) for word in (EVENKEEL, "trace", "convert", *batches, "-o", every)], capture_output=True, check=True)
        with open(every, newline="") as file:
            header, *rows = csv.reader(file)
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(header)
        out.writerows(row for row in rows if int(row[0]) < steps)


def write_sum(known, options, layers, path):
    """Writes the sum of all steps of some totals as a trace with one step."""
    sums = {}
    with tempfile.TemporaryDirectory() as folder:
        one = f"{folder}/steps.csv"
        command = [EVENKEEL, "trace", "convert", *known, *options, "--layers", layers, "-o", one]
        subprocess.run([str(word) for word in command], capture_output=True, check=True)
        with open(one, newline="") as file:
            header, *rows = csv.reader(file)
    for _, layer, expert, tokens in rows:
        key = (int(layer), int(expert))
        sums[key] = sums.get(key, 0) + int(tokens)
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(header)
        out.writerows([0, *key, tokens] for key, tokens in sorted(sums.items()))


def run(words, command="simulate"):
    """Runs a command of evenkeel and returns its document."""
    done = subprocess.run([str(word) for word in (EVENKEEL, command, *words, "--json")], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} {' '.join(map(str, words))}\n{done.stderr}")
    return json.loads(done.stdout)


def shifting():
    print("### Shifting, planned again: requests and domains in recorded order\n")
    print("`python3 scripts/measure_placement.py shifting`: for every row, with K = 8192 decoded or 2048 prefill tokens,\n")
    print("    evenkeel simulate replay $EVENKEEL_REAL_TRACES/FOLDER BATCHES --layers 0,6,12,18 --order recorded --replan-every K --window auto \\")
    print("        --ranks RANKS --redundant SLOTS --policies contiguous,eplb,lplb:..,recourse:exact:iterations=80000 --splits even,exact --json\n")
    print("| trace | ranks x redundant | contiguous + even | eplb + even | eplb + exact | best lplb + exact | recourse + exact | moves per plan: eplb, recourse | verdict |")
    print("|---|---|---|---|---|---|---|---|---|")
    sums = Sums()
    for name, (folder, options, experts, tokens, every) in ROWS.items():
        for ranks, per_rank in CLUSTERS:
            policies = ["contiguous", "eplb", *graphs(ranks, per_rank, experts), LESS]
            out = simulate(folder, f"{options} {SIXTH} --order recorded", policies, ranks, per_rank, experts, "--replan-every", every)
            again = [r for r in out["replan"]["rows"] if r["planned_again"] == "yes"]
            cells = {(r["policy"].split(":it")[0], r["split"]): r for r in again}
            shape = f"{ranks} x {per_rank}"
            best, verdict = sums.add(f"{name}, {shape}", cells, ranks / tokens)
            moves = f"{cells[('eplb', 'exact')]['moves_per_replan']:.0f}, {cells[RECOURSE]['moves_per_replan']:.0f}"
            print("| " + " | ".join([name, shape, *columns(cells, best), moves, verdict]) + " |", flush=True)
    sums.print()


def moves():
    print("### Imbalance against moves\n\n`python3 scripts/measure_placement.py moves`: for every row\n")
    print("    evenkeel simulate replay $EVENKEEL_REAL_TRACES/FOLDER BATCHES --layers 0,6,12,18 --order recorded --replan-every K --max-moves 1,2,4,8 \\")
    print("        --ranks RANKS --redundant SLOTS --policies eplb,recourse:exact:iterations=80000 --splits exact --json\n")
    print("Mean imbalance (moves of one layer in one re-planning). The tenth: the least limit at which `recourse` is no worse than")
    print("`eplb` without a limit, and its moves as a share of `eplb`'s.\n")
    limits = [1, 2, 4, 8]
    print("| trace | ranks x redundant | policy | " + " | ".join(f"<= {n}" for n in limits) + " | no limit | never | oracle | the tenth |")
    print("|---|---|---|" + "---|" * (len(limits) + 4))
    for name in ["gpt-oss, decode 64", "dsv2-lite, prefill 512"]:
        folder, options, experts, _, every = ROWS[name]
        for ranks, per_rank in [(8, 1), (16, 1), (32, 1)]:
            more = ["--replan-every", every, "--max-moves", ",".join(map(str, limits))]
            out = simulate(folder, f"{options} {SIXTH} --order recorded", ["eplb", LESS], ranks, per_rank, experts, *more)
            rows = [r for r in out["replan"]["rows"] if r["split"] == "exact"]
            layers = len(out["trace"]["layers"])
            find = lambda policy, again, most=None: next(
                r for r in rows if (r["policy"].split(":")[0], r["planned_again"], r["max_moves"]) == (policy, again, most))
            eplb = find("eplb", "yes")
            for policy in ["eplb", "recourse"]:
                show = lambda r: f"{r['imbalance']['mean']:.3f} ({r['moves_per_replan'] / layers:.1f})"
                curve = [find(policy, "yes", n) for n in limits] + [find(policy, "yes")]
                cells = [show(r) for r in curve] + [f"{find(policy, end)['imbalance']['mean']:.3f}" for end in ("never", "oracle")]
                good = [r for r in curve if r["imbalance"]["mean"] <= eplb["imbalance"]["mean"]] if policy == "recourse" else []
                tenth = f"<= {good[0]['max_moves']}: {100 * good[0]['moves'] / eplb['moves']:.1f} %" if good else ""
                print("| " + " | ".join([name, f"{ranks} x {per_rank}", policy, *cells, tenth]) + " |", flush=True)
    print()


def budget():
    print("### Imbalance against iterations\n\n`python3 scripts/measure_placement.py budget`: shuffled, for every row\n")
    print("    evenkeel simulate $EVENKEEL_REAL_TRACES/FOLDER BATCHES --layers 0,6,12,18 --order shuffled \\")
    print("        --ranks RANKS --redundant SLOTS --policies recourse:exact:iterations=N,.. --splits exact --json\n")
    budgets = [500, 2000, 8000, 32000, 128000]
    print("Mean imbalance (planning time of one layer, ms, on one of two shared x86 cores).\n")
    print("| trace | ranks x redundant | " + " | ".join(f"{n}" for n in budgets) + " | default |")
    print("|---|---|" + "---|" * (len(budgets) + 1))
    for name in ["gpt-oss, decode 64", "dsv2-lite, prefill 512"]:
        folder, options, experts, _, _ = ROWS[name]
        for ranks, per_rank in [(8, 1), (16, 1), (32, 1)]:
            policies = [f"recourse:exact:iterations={n}" for n in budgets] + ["recourse:exact"]
            out = simulate(folder, f"{options} {SIXTH} --order shuffled", policies, ranks, per_rank, experts)
            layers = len(out["trace"]["layers"])
            found = {r["policy"]: r for r in out["results"] if r["split"] == "exact"}
            cells = [f"{found[p]['imbalance']['mean']:.4f} ({found[p]['plan_ms'] / layers:.0f})" for p in policies]
            print(f"| {name} | {ranks} x {per_rank} | " + " | ".join(cells) + " |", flush=True)
    print()


# Shapes of the table under the even split: ranks and redundant slots per rank.
EVEN_CLUSTERS = [(ranks, per_rank) for ranks in (8, 16, 32, 64) for per_rank in (1, 2)]
EVEN_COUNTS = {
    f"DeepSeek-R1 {dump}, {name}": (
        f"deepseek-r1-sglang-dumps/expert_distribution_fp4_{dump}_compressed.pt",
        f"--resample 100 --top-k 8 {size} --layers 3,11,19,27,35,43,51,59", 256, tokens * 8)
    for dump in ("1k1k", "1k8k", "8k1k")
    for name, size, tokens in (("prefill 4096", "--batch-tokens 4096", 4096), ("decode 64", "--decode-batch 64", 64))
} | {
    f"Gemma-4-26B, {name}": (
        "gemma4-26b-families", f"--step-column family --resample 100 --top-k 8 {size} --layers 0,4,8,12,16,20,24,28", 128, tokens * 8)
    for name, size, tokens in (("prefill 2048", "--batch-tokens 2048", 2048), ("decode 64", "--decode-batch 64", 64))
}


def even():
    print("### Under the even split\n\n`python3 scripts/measure_placement.py even`: for every row\n")
    print("    evenkeel simulate $EVENKEEL_REAL_TRACES/FOLDER BATCHES --ranks RANKS --redundant SLOTS \\")
    print("        --policies eplb,recourse:exact,recourse,recourse:even --splits even,exact --hindsight --json\n")
    print("Recorded tokens are shuffled (`--order shuffled`), all layers. Totals are resampled: 100 batches, on every eighth (DeepSeek-R1) or")
    print("fourth layer.")
    print("A row is *above* where the mean under the even split is more than 0.2 % above EPLB's, or the 95th percentile by more than")
    print("0.2 % and one token.\n")
    print("| trace | ranks x redundant | eplb + even | recourse:even + even | recourse + even | hindsight + even | "
          "eplb + exact | recourse:exact + exact | recourse + exact | above |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    tokens = {name: (folder, f"{options} --order shuffled", experts, count) for name, (folder, options, experts, count, _) in ROWS.items()}
    for title, rows in (("per-token traces", tokens), ("totals, resampled", EVEN_COUNTS)):
        sums, above = {}, []
        for name, (folder, options, experts, routed) in rows.items():
            for ranks, per_rank in EVEN_CLUSTERS:
                # 32 experts on 64 ranks need a number of slots that divides, which is half a slot per rank
                # off.
                redundant = ranks * per_rank - experts % ranks if experts % ranks else ranks * per_rank
                command = [EVENKEEL, "simulate", f"{TRACES}/{folder}", *options.split(), "--experts", experts, "--ranks", ranks,
                           "--redundant", redundant, "--policies", "eplb,recourse:exact,recourse,recourse:even", "--splits",
                           "even,exact", "--json", "--hindsight"]
                done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
                cells = {(r["policy"], r["split"]): r for r in json.loads(done.stdout)["results"]}
                eplb, token = cells["eplb", "even"]["imbalance"], ranks / routed
                misses = [
                    f"{policy} by {figure - allowed:.4f} ({kind})"
                    for policy in ("recourse:even", "recourse")
                    for kind, figure, allowed in (
                        ("mean", cells[policy, "even"]["imbalance"]["mean"], 1.002 * eplb["mean"]),
                        ("p95", cells[policy, "even"]["imbalance"]["p95"], 1.002 * eplb["p95"] + token))
                    if figure > allowed + 1e-9
                ]
                for key, result in cells.items():
                    sums[key] = sums.get(key, 0.0) + result["excess"]["mean"]
                shape = f"{ranks} x {redundant / ranks:g}"
                above += [f"{name}, {shape}: {miss}" for miss in misses]
                shown = [("eplb", "even"), ("recourse:even", "even"), ("recourse", "even"), ("hindsight:even", "even"),
                         ("eplb", "exact"), ("recourse:exact", "exact"), ("recourse", "exact")]
                print("| " + " | ".join([name, shape, *(cell(cells[key]) for key in shown), "; ".join(misses)]) + " |", flush=True)
        print(f"\nSums of the mean excess over the rows of {title}, and shares of `eplb` + even's:\n")
        print("| policy | split | sum | share |\n|---|---|---|---|")
        for (policy, split), total in sorted(sums.items(), key=lambda item: item[1]):
            print(f"| {policy} | {split} | {total:.4f} | {total / sums['eplb', 'even']:.3f} |")
        print(f"\nRows above: {len(above)}\n")
        for miss in above:
            print(f"- {miss}")
        print()


def scale_tokens(path, steps, factor, to):
    """Writes evenly spaced steps of a trace of counts, with all tokens multiplied."""
    with open(path) as lines, open(to, "w") as out:
        header, *rows = lines.read().splitlines()
        known = sorted({int(row.split(",")[0]) for row in rows})
        kept = set(known[:: max(1, len(known) // steps)])
        out.write(header + "\n")
        for step, layer, expert, tokens in (row.split(",") for row in rows):
            if int(step) in kept:
                out.write(f"{step},{layer},{expert},{int(tokens) * factor}\n")


def relaxation():
    """Prints the imbalance of mixtures of placements, which no relaxation over slot sets exceeds."""
    mixed = 8
    print("### Mixtures of placements\n\n`python3 scripts/measure_placement.py relaxation`: for every row\n")
    print("    evenkeel trace convert $EVENKEEL_REAL_TRACES/gptoss20b-decode --decode-batch REQUESTS --order shuffled --layers 3,12,21 -o BATCHES.csv")
    print("    evenkeel simulate BATCHES.csv --experts 32 --ranks RANKS --redundant SLOTS --policies recourse:exact:iterations=60000 \\")
    print("        --splits exact --hindsight --json\n")
    print(f"About 300 batches. A mixture of {mixed} placements is one placement on {mixed} times as many ranks, with as many slots on each and")
    print("all tokens multiplied. Its imbalance is the lowest of the search and of hindsight.\n")
    print("| trace | ranks x redundant | placement_bound | recourse, batches unknown | recourse, batches known | mixture |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        whole, one, many = (f"{folder}/{name}.csv" for name in ("whole", "one", "many"))
        for requests in (16, 32, 64):
            words = [f"{TRACES}/gptoss20b-decode", "--decode-batch", requests, "--order", "shuffled", "--layers", "3,12,21"]
            run(["convert", *words, "-o", whole], "trace")
            scale_tokens(whole, 300, 1, one)
            scale_tokens(whole, 300, 240 * mixed, many)
            for ranks, per_rank in CLUSTERS:
                slots = 32 // ranks + per_rank
                figures = []
                for path, count in ((one, ranks), (many, ranks * mixed)):
                    rows = run([path, "--experts", 32, "--ranks", count, "--redundant", slots * count - 32, "--policies",
                                "recourse:exact:iterations=60000", "--splits", "exact", "--hindsight"])["results"]
                    figures.append([row["imbalance"]["mean"] for row in rows])
                plan = run([one, "--experts", 32, "--ranks", ranks, "--redundant", slots * ranks - 32, "--policy",
                            "recourse:exact:iterations=60000"], "plan")
                layers = [layer["placement_bound"]["imbalance"] for layer in plan["layers"]]
                print(f"| decode {requests} | {ranks} x {per_rank} | {sum(layers) / len(layers):.4f} | {figures[0][0]:.4f} | "
                      f"{min(figures[0]):.4f} | {min(figures[1]):.4f} |", flush=True)
    print()


TABLES = {f.__name__: f for f in (stationary, shuffles, once, shifting, resampled, totals, nodes, moves, budget, even, relaxation)}


def main():
    for name in sys.argv[1:] or TABLES:
        if name not in TABLES:
            sys.exit(f"unknown table {name}: expected {', '.join(TABLES)}")
        TABLES[name]()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prints the tables of docs/replanning.md: decisions of the service against planning every batch, and against
the offline optimum. The second table is also drawn: docs/online-optimum.svg.

    python3 scripts/measure_online.py [--every FILE] [ROW ..| optimum]

Every row is one `evenkeel simulate backtest --json` command with the default keys of [decide], except that
searches have fewer iterations. EVENKEEL_REAL_TRACES names the folder with the recorded traces, EVENKEEL the
program. Synthetic traces are written to a temporary folder. FILE keeps the figures of planning every batch,
which take most of the time. DECIDE adds keys. Only Python's standard library is used.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVENKEEL = os.environ.get("EVENKEEL", str(ROOT / "target/release/evenkeel"))
TRACES = os.environ.get("EVENKEEL_REAL_TRACES", "")
POLICY = 'policy = "recourse:exact:iterations=24000"'
SYNTH = "--experts 64 --top-k 6 --layers 2 --steps 300 --batch-tokens 4096 --request-tokens 100"

# name: (trace, options of the backtest)
ROWS = {
    "domains one after another": (f"{TRACES}/deepseek-v2-lite-domains", "--batch-tokens 512 --ranks 16 --redundant 16 --layers 1,5,9,13,17,21,25 --model deepseek-v2-lite"),
    "gpt-oss-20b, recorded order": (f"{TRACES}/gptoss20b-decode", "--decode-batch 64 --ranks 8 --redundant 8 --layers 0,12"),
    "synthetic, no drift": (f"{SYNTH} --drift 0 --seed 1", "--ranks 16 --redundant 16"),
    "synthetic, slow drift": (f"{SYNTH} --drift 0.5 --drift-persistence 0.995 --seed 2", "--ranks 16 --redundant 16"),
    "synthetic, five breaks": (f"{SYNTH} --drift 0 --kinds 6 --kinds-run 0 --kinds-spread 0.8 --seed 3", "--ranks 16 --redundant 16"),
    "no drift, seed 11": (f"{SYNTH} --drift 0 --seed 11", "--ranks 16 --redundant 16"),
    "slow drift, seed 12": (f"{SYNTH} --drift 0.5 --drift-persistence 0.995 --seed 12", "--ranks 16 --redundant 16"),
    "five breaks, seed 13": (f"{SYNTH} --drift 0 --kinds 6 --kinds-run 0 --kinds-spread 0.8 --seed 13", "--ranks 16 --redundant 16"),
}

# Small enough for all placements to be enumerated: 10 sets of experts for each of 3 ranks.
SMALL = "--experts 5 --top-k 1 --layers 4 --steps 240 --batch-tokens 2048 --request-tokens 60 --drift 0.3 --drift-persistence 0.99 --kinds 4 --kinds-run 0 --kinds-spread 0.8 --seed 5"
SMALL_CLUSTER = "--ranks 3 --redundant 1"
SMALL_POLICY = 'policy = "recourse:exact:iterations=4000"'
# In balanced batches.
PRICES = [0.02, 0.1, 0.5]
CURVE_PRICES = sorted(PRICES + [0.0, 0.005, 0.01, 0.05, 0.2, 1.0, 2.0, 5.0])


def run(words):
    done = subprocess.run([EVENKEEL, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"evenkeel {' '.join(words)}\n{done.stderr}")
    return done.stdout


def backtest(trace, options, every):
    """Returns the results of a row. `every` holds the figures of planning every batch, if they are known."""
    decide = ", ".join(filter(None, [POLICY, os.environ.get("DECIDE", "")]))
    words = ["simulate", "backtest", trace, *options.split(), "--decide", decide, "--json"]
    out = json.loads(run(words + (["--skip-every-batch"] if every else [])))
    return out["online"], every or {k: v for k, v in out["every_batch"].items() if k != "series"}, out


def write_synthetic(folder, name, options):
    path = f"{folder}/{name.replace(' ', '-').replace(',', '')}.csv"
    run(["trace", "synth", *options.split(), "-o", path])
    return path


def optimum():
    """Prints and draws the offline optimum of a small instance, with the results of the service."""
    print("| | price of a move | excess | moves | cost | over the optimum |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        trace = write_synthetic(folder, "small", SMALL)
        base = ["simulate", "backtest", trace, *SMALL_CLUSTER.split(), "--json"]
        prices = ",".join(map(str, CURVE_PRICES))
        out = json.loads(run([*base, "--offline-optimum", prices, "--decide", SMALL_POLICY]))
        steps = out["online"]["steps"] * out["layers"]
        curve = {one["price"]: one for one in out["offline"]}
        cost = lambda one, price: one["excess"] * steps + price * one["moves"]
        points = [("service, default keys", None, out["online"]), ("every batch", None, out["every_batch"])]
        for price in PRICES:
            decide = f"{SMALL_POLICY}, move_cost = {price}, horizon = 64"
            points.append(("service", price, json.loads(run([*base, "--skip-every-batch", "--decide", decide]))["online"]))
    for price in PRICES:
        best = cost(curve[price], price)
        print(f"| offline optimum | {price} | {curve[price]['excess']:.4f} | {curve[price]['moves']} | {best:.2f} | 1 |")
        for name, stated, one in points:
            if stated in (None, price):
                ratio = cost(one, price) / best
                print(f"| {name} | {price} | {one['excess']:.4f} | {one['moves']} | {cost(one, price):.2f} | {ratio:.2f} |")
    draw([(one["moves"], one["excess"]) for one in curve.values()], [(name, one["moves"], one["excess"]) for name, _, one in points])


def draw(curve, points):
    """Writes docs/online-optimum.svg. The axis of moves is logarithmic."""
    width, height, left, floor = 720, 340, 56, 290
    across = lambda moves: left + (width - left - 150) * math.log10(1 + moves) / math.log10(1 + max(m for m, *_ in all_points(curve, points)))
    up = lambda excess: floor - (floor - 20) * excess / max(e for *_, e in all_points(curve, points))
    words = "Mean excess against moves: the offline optimum as a curve, the service and planning every batch as points."
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">',
           "<style>text{font:12px sans-serif;fill:#444}@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"]
    for moves in (0, 10, 100, 1000):
        if across(moves) <= width - 140:
            out.append(f'<text x="{across(moves):.0f}" y="{floor + 18}" text-anchor="middle">{moves}</text>')
    for part in range(5):
        excess = max(e for *_, e in all_points(curve, points)) * part / 4
        out.append(f'<line x1="{left}" x2="{width - 150}" y1="{up(excess):.0f}" y2="{up(excess):.0f}" stroke="#8884"/>')
        out.append(f'<text x="{left - 6}" y="{up(excess) + 4:.0f}" text-anchor="end">{excess:.3f}</text>')
    line = " ".join(f"{across(moves):.1f},{up(excess):.1f}" for moves, excess in sorted(curve))
    out.append(f'<polyline points="{line}" fill="none" stroke="#2a7" stroke-width="2"/>')
    colors = {"service": "#36c", "service, default keys": "#c33", "every batch": "#a70"}
    for name, moves, excess in points:
        out.append(f'<circle cx="{across(moves):.1f}" cy="{up(excess):.1f}" r="4" fill="{colors[name]}"><title>{name}: {moves} moves, {excess:.4f}</title></circle>')
    for at, (name, color) in enumerate([("offline optimum", "#2a7"), ("service, prices", "#36c"), ("service, defaults", "#c33"), ("every batch", "#a70")]):
        out.append(f'<rect x="{width - 140}" y="{24 + 20 * at}" width="10" height="10" fill="{color}"/>')
        out.append(f'<text x="{width - 124}" y="{33 + 20 * at}">{name}</text>')
    out.append(f'<text x="{left}" y="14">mean excess</text><text x="{(width - 150 + left) // 2}" y="{floor + 38}" text-anchor="middle">moves</text></svg>')
    (ROOT / "docs/online-optimum.svg").write_text("\n".join(out) + "\n")


def all_points(curve, points):
    return list(curve) + [(moves, excess) for _, moves, excess in points]


def main():
    words = sys.argv[1:]
    if words == ["optimum"]:
        return optimum()
    cache = pathlib.Path(words[words.index("--every") + 1]) if "--every" in words else None
    names = [word for word in words if word in ROWS] or list(ROWS)
    known = json.loads(cache.read_text()) if cache and cache.exists() else {}
    print("| trace | steps | excess, every batch | excess, online | of the excess | moves, every batch | moves, online | of the moves | gain / expected | decisions |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            trace, options = ROWS[name]
            if trace.startswith("--"):
                trace = write_synthetic(folder, name, trace)
            online, every, out = backtest(trace, options, known.get(name))
            known[name] = every
            if cache:
                cache.write_text(json.dumps(known))
            gained = f"{out['gained_ms'] / out['foreseen_ms']:.2f}" if out["foreseen_ms"] else ""
            print(f"| {name} | {online['steps']} | {every['excess']:.4f} | {online['excess']:.4f} | {online['excess'] / every['excess']:.2f} "
                  f"| {every['moves']} | {online['moves']} | {online['moves'] / max(every['moves'], 1):.3f} | {gained} | {len(out['decisions'])} |", flush=True)


if __name__ == "__main__":
    main()

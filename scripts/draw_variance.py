#!/usr/bin/env python3
"""Draws docs/batch-variance.svg: the variance of batches against their size, recorded and drawn from totals.

    cargo build --release && python3 scripts/draw_variance.py

EVENKEEL_REAL_TRACES names the folder with the recorded traces. The variance is that of the counts of a
batch over the variance of as many independent draws, as `evenkeel trace inspect` prints it. It is the median
over the layers. Totals are the sum of all steps of a recording. By domain, they are one sum for each domain,
and its batches are in recorded order. Only Python's standard library is used.
"""

import csv
import json
import math
import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVENKEEL = pathlib.Path(os.environ.get("EVENKEEL", ROOT / "target/release/evenkeel"))
TRACES = os.environ.get("EVENKEEL_REAL_TRACES", "")

PREFILL = [64, 128, 256, 512, 1024, 2048]
DECODE = [8, 16, 32, 64, 128]
# name, folder, batch option, sizes, top-k, experts, number of totals
RECORDINGS = [
    ("gpt-oss-20b", "gptoss20b-decode", "--batch-tokens", PREFILL, 4, 32, 1),
    ("DeepSeek-V2-Lite", "deepseek-v2-lite-domains", "--batch-tokens", PREFILL, 6, 64, 1),
    ("DeepSeek-V2-Lite by domain", "deepseek-v2-lite-domains", "--batch-tokens", PREFILL, 6, 64, 3),
    ("gpt-oss-20b", "gptoss20b-decode", "--decode-batch", DECODE, 4, 32, 1),
]

WIDTH, HEIGHT, TOP, FLOOR, LOW, HIGH = 860, 400, 60, 340, 0.5, 100.0
PANELS = {"--batch-tokens": (56, 400, "Prefill: tokens of a batch"), "--decode-batch": (500, 600, "Decode: requests")}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #444c56 } .title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.grid { stroke: #d8dee4 } path { fill: none; stroke-width: 2 } .drawn { stroke-dasharray: 5 4 }
.line0, .line3 { stroke: #1768ac } .line1 { stroke: #c2751d } .line2 { stroke: #6f42c1 }
text.line0, text.line1, text.line2, text.line3 { stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #9aa4af } .title { fill: #e6edf3 } .grid { stroke: #30363d }
  .line0, .line3 { stroke: #58a6ff } .line1 { stroke: #d9923b } .line2 { stroke: #bc8cff }
}
"""


def run(*words):
    done = subprocess.run([str(word) for word in (EVENKEEL, *words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def variance(*words):
    """Returns the median over the layers of the ratio that `trace inspect` prints."""
    ratios = sorted(layer["variance_ratio"] for layer in json.loads(run("trace", "inspect", *words, "--json"))["layers"])
    return ratios[len(ratios) // 2]


def write_totals(recording, experts, parts, path):
    """Writes the sums of `parts` equal parts of a recording, in recorded order."""
    with tempfile.TemporaryDirectory() as folder:
        batches = f"{folder}/batches.csv"
        run("trace", "convert", recording, "--batch-tokens", 64, "--experts", experts, "-o", batches)
        with open(batches, newline="") as file:
            rows = list(csv.reader(file))
    header, rows = rows[0], [[int(cell) for cell in row] for row in rows[1:]]
    steps = 1 + max(row[0] for row in rows)
    sums = {}
    for step, layer, expert, tokens in rows:
        key = (step * parts // steps, layer, expert)
        sums[key] = sums.get(key, 0) + tokens
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(header)
        out.writerows([*key, tokens] for key, tokens in sorted(sums.items()))


def measure():
    print("| batches | size | recorded | drawn from totals |\n|---|---|---|---|")
    lines = []
    for name, folder, option, sizes, top_k, experts, parts in RECORDINGS:
        recording = f"{TRACES}/{folder}"
        with tempfile.TemporaryDirectory() as scratch:
            totals = f"{scratch}/totals.csv"
            write_totals(recording, experts, parts, totals)
            points = []
            for size in sizes:
                # Batches of one domain after another are to be compared with the recorded order.
                order = "recorded" if parts > 1 else "shuffled"
                real = variance(recording, option, size, "--experts", experts, "--order", order)
                drawn = variance(totals, "--resample", 400, "--top-k", top_k, option, size)
                points.append((size, real, drawn))
                print(f"| {name}, {'decode' if option == '--decode-batch' else 'prefill'} | {size} | {real:.2f} | {drawn:.2f} |", flush=True)
        lines.append((name, option, points))
    return lines


def draw(lines):
    words = "Variance of batches over that of independent draws, against the size of a batch: recorded and drawn from totals."
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">',
        f"<style>{STYLE}</style>",
        '<text class="title" x="10" y="22">Variance of a batch over that of independent draws (solid: recorded, dashed: drawn from totals)</text>',
    ]
    span = math.log(HIGH / LOW)

    def y(value):
        return FLOOR - math.log(value / LOW) / span * (FLOOR - TOP)

    for left, right, title in PANELS.values():
        for tick in (1, 2, 5, 10, 20, 50, 100):
            out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            out.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
        out.append(f'<text x="{(left + right) / 2}" y="{FLOOR + 40}" text-anchor="middle">{title}</text>')
    for option, (left, right, _) in PANELS.items():
        sizes = sorted({size for _, of, points in lines if of == option for size, *_ in points})
        ratio = math.log(sizes[-1] / sizes[0])
        for size in sizes:
            out.append(f'<text x="{left + math.log(size / sizes[0]) / ratio * (right - left):.1f}" y="{FLOOR + 18}" text-anchor="middle">{size}</text>')
        for index, (name, of, points) in enumerate(lines):
            if of != option:
                continue
            for kind, column in (("recorded", 1), ("drawn", 2)):
                path = "L".join(
                    f"{left + math.log(point[0] / sizes[0]) / ratio * (right - left):.1f} {y(point[column]):.1f}" for point in points)
                out.append(f'<path class="line{index} {kind}" d="M{path}"/>')
    for at, (index, label) in enumerate([(0, "gpt-oss-20b"), (1, "DeepSeek-V2-Lite"), (2, "DeepSeek-V2-Lite by domain")]):
        out.append(f'<text class="line{index}" x="640" y="{110 + 44 * at}">{label}</text>')
        out.append(f'<path class="line{index}" d="M640 {120 + 44 * at}L700 {120 + 44 * at}"/>')
        out.append(f'<path class="line{index} drawn" d="M710 {120 + 44 * at}L770 {120 + 44 * at}"/>')
    (ROOT / "docs/batch-variance.svg").write_text("\n".join([*out, "</svg>", ""]))


if __name__ == "__main__":
    draw(measure())

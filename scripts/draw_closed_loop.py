#!/usr/bin/env python3
"""Draws docs/closed-loop.svg from the steps that the example wrote:

    cargo run --release --example closed_loop -- 16 steps.csv && python3 scripts/draw_closed_loop.py steps.csv
"""

import csv
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP = 860, 380, 52, 118, 44
FLOOR, MOVES_TOP, MOVES_FLOOR = 270, 306, 346
LINES = [("no_plan", "no plan"), ("first_plan", "first plan, kept"), ("replanned", "re-planned")]
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #444c56 } .title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.grid { stroke: #d8dee4 } path { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.no_plan { stroke: #9aa4af } .first_plan { stroke: #c2751d } .replanned { stroke: #1768ac; stroke-width: 2.4 }
.moves { fill: #1768ac } text.no_plan, text.first_plan, text.replanned { stroke: none }
text.no_plan { fill: #6b7580 } text.first_plan { fill: #a35f12 } text.replanned { fill: #1768ac; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #9aa4af } .title { fill: #e6edf3 } .grid { stroke: #30363d } .no_plan { stroke: #6e7681 }
  .first_plan { stroke: #d9923b } .replanned { stroke: #58a6ff } .moves { fill: #58a6ff }
  text.no_plan { fill: #9aa4af } text.first_plan { fill: #d9923b } text.replanned { fill: #58a6ff }
}
"""


def main():
    with open(sys.argv[1], newline="") as file:
        rows = list(csv.DictReader(file))
    series = {name: [float(row[name]) for row in rows] for name, _ in LINES}
    moved = [int(row["moved"]) for row in rows]
    top = max(max(values) for values in series.values())
    across = (WIDTH - LEFT - RIGHT) / len(rows)

    def x(step):
        return LEFT + (step + 0.5) * across

    def y(value):
        return FLOOR - (value - 1) / (top - 1) * (FLOOR - TOP)

    words = "Imbalance of every step while routing drifts: without a plan and with the first plan it rises, re-planned it stays near 1."
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">',
        f"<style>{STYLE}</style>",
        '<text class="title" x="10" y="22">Busiest rank over average, every step, while the routing drifts</text>',
    ]
    for tick in range(int((top - 1) / 0.5) + 1):
        value = 1 + tick / 2
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    ends = {}
    for name, label in LINES:
        points = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in enumerate(series[name]))
        out.append(f'<path class="{name}" d="M{points}"/>')
        ends[name] = y(sum(series[name][-5:]) / 5)
    # The labels at the ends of the lines must not overlap.
    lowest = None
    for name, label in sorted(LINES, key=lambda line: -ends[line[0]]):
        at = ends[name] if lowest is None else min(ends[name], lowest - 18)
        lowest = at
        out.append(f'<text class="{name}" x="{WIDTH - RIGHT + 8}" y="{at + 4:.1f}">{label}</text>')
    most = max(moved)
    out.append(f'<text x="{LEFT}" y="{MOVES_TOP - 8}">experts copied before the step (at most {most})</text>')
    for step, copies in enumerate(moved):
        if copies:
            height = copies / most * (MOVES_FLOOR - MOVES_TOP)
            width = max(across - 1, 1)
            out.append(
                f'<rect class="moves" x="{x(step) - width / 2:.1f}" y="{MOVES_FLOOR - height:.1f}" width="{width:.1f}"'
                f' height="{height:.1f}"/>'
            )
    out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{MOVES_FLOOR}" y2="{MOVES_FLOOR}"/>')
    for step in range(0, len(rows) + 1, 20):
        at = LEFT + step * across
        out.append(f'<text x="{at:.1f}" y="{MOVES_FLOOR + 18}" text-anchor="middle">{step}</text>')
    out.append(f'<text x="{WIDTH - RIGHT + 22}" y="{MOVES_FLOOR + 18}">step</text></svg>')
    (Path(__file__).resolve().parent.parent / "docs/closed-loop.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()

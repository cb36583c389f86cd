// The imbalance over time: mean and worst layer as lines, re-plannings as marks, and a slider for single
// steps.

import { $, count, setContent, ratio, OUTCOMES } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 240;
const [LEFT, RIGHT, TOP, BELOW] = [44, 8, 22, 22];
const ROUND = [
  [1, 2, 5, 10, 1.5, 1.1, 1.01, 1.2, 1.05], [3, 1.02, 20, 50, 100, 4], [1.002, 1.005, 1.3, 1.4, 1.6, 1.8, 2.5, 6, 8, 15, 30],
];

function svg(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/**
 * Maps ratios from 1 upwards to 0 to 1: evenly, or stretched near 1 for small differences (as in reports).
 */
function axis(top, detail) {
  top = Math.max(Number.isFinite(top) ? top : 1.01, 1.01);
  const knee = top - 1 > 8 * detail ? Math.min(Math.max(detail, 0.005), 1) : null;
  const bend = (distance) => (knee === null ? distance : Math.asinh(distance / knee));
  const at = (value) => Math.min(Math.max(bend(Math.max(value, 1) - 1) / bend(top - 1), 0), 1);
  const ticks = [];
  for (const tick of ROUND.flat()) {
    if (tick <= top && ticks.every((other) => Math.abs(at(other) - at(tick)) >= 0.12)) ticks.push(tick);
  }
  return { at, ticks };
}

export class Timeline {
  constructor() {
    this.box = $("time");
    this.slider = $("time-at");
    this.points = [];
    this.decisions = [];
    this.steps = Infinity;
    this.follows = true;
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.slider.addEventListener("input", () => {
      this.follows = Number(this.slider.value) === Number(this.slider.max);
      this.read(Number(this.slider.value));
    });
    this.box.addEventListener("pointermove", (event) => this.hover(event));
    this.box.addEventListener("pointerdown", (event) => this.hover(event));
    this.box.addEventListener("pointerleave", () => this.read(Number(this.slider.value)));
    for (const input of document.querySelectorAll('input[name="time"]')) {
      input.addEventListener("change", () => {
        this.steps = input.value === "all" ? Infinity : Number(input.value);
        this.follows = true;
        this.draw();
      });
    }
  }

  show(points, decisions) {
    Object.assign(this, { points, decisions });
    this.draw();
  }

  draw() {
    const width = this.box.clientWidth;
    if (width === 0) return;
    const last = this.points.at(-1)?.accepted ?? 0;
    const seen = this.points.filter((point) => point.accepted > last - this.steps);
    const held = this.seen?.[this.slider.valueAsNumber]?.accepted;
    this.seen = seen;
    const first = seen[0] ? seen[0].accepted - seen[0].steps + 1 : 0;
    const tops = seen.map((point) => point.max).sort((a, b) => a - b);
    const means = seen.map((point) => point.mean - 1).sort((a, b) => a - b);
    const top = (tops.at(-1) ?? 1) * 1.01;
    const scale = axis(top, means[Math.floor(means.length / 10)] ?? 0.1);
    const inner = width - LEFT - RIGHT;
    const span = Math.max(last - first, 1);
    this.x = (accepted) => LEFT + ((accepted - first) / span) * inner;
    this.y = (value) => TOP + (1 - scale.at(value)) * (HEIGHT - TOP - BELOW);
    const root = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": this.words(seen) });
    for (const tick of scale.ticks) {
      const y = this.y(tick);
      root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: tick === 1 ? "one" : "grid" }));
      root.append(svg("text", { x: LEFT - 6, y: y + 4, class: "end" }, `${tick}×`));
    }
    const ticks = Math.max(1, Math.floor(inner / 110));
    for (let at = 0; at <= ticks && seen.length > 0; at += 1) {
      const accepted = Math.round(first + (span * at) / ticks);
      const anchor = at === 0 ? "start" : at === ticks ? "end" : "middle";
      root.append(svg("text", { x: this.x(accepted), y: HEIGHT - 4, class: anchor }, count(accepted)));
    }
    this.marks(root, first);
    for (const [name, of] of [["worst", (p) => p.max], ["bound", (p) => p.bound], ["mean", (p) => p.mean]]) {
      const d = thin(seen, inner).map((point, at) => `${at ? "L" : "M"}${this.x(point.accepted).toFixed(1)} ${this.y(of(point)).toFixed(1)}`);
      if (d.length === 1) d.push("h1");
      root.append(svg("path", { d: d.join(""), class: `line ${name}` }));
    }
    this.cursor = svg("line", { y1: TOP - 4, y2: HEIGHT - BELOW, class: "cursor" });
    this.dot = svg("circle", { r: 4, class: "dot" });
    root.append(this.cursor, this.dot);
    this.box.replaceChildren(root);
    this.slider.max = Math.max(seen.length - 1, 0);
    let at = seen.length - 1;
    if (!this.follows && held !== undefined) {
      const same = seen.findIndex((point) => point.accepted >= held);
      if (same >= 0) at = same;
    }
    this.slider.value = at;
    this.read(at);
  }

  /** Draws the decisions above the lines, with a flag for each one that changed the plan. */
  marks(root, first) {
    const within = this.decisions.filter((decision) => decision.accepted >= first);
    const crowded = within.length > 60;
    const flags = within.filter((decision) => decision.outcome === "applied").map((decision) => this.x(decision.accepted));
    for (const decision of within) {
      const x = this.x(decision.accepted);
      const applied = decision.outcome === "applied";
      if (crowded && !applied) continue;
      const group = svg("g", { class: `flag ${decision.outcome}` });
      if (applied) {
        group.append(svg("line", { x1: x, x2: x, y1: TOP - 4, y2: HEIGHT - BELOW }));
        group.append(svg("path", { d: `M${x} ${TOP - 4}l-4 -7h8z` }));
      } else {
        group.append(svg("circle", { cx: x, cy: TOP - 8, r: 2.5 }));
      }
      // Add the number if there is room before the next flag and the edge.
      if (applied && x + 24 < this.box.clientWidth && flags.every((other) => other <= x || other > x + 24)) {
        group.append(svg("text", { x: x + 6, y: TOP - 7, class: "start" }, String(decision.plan)));
      }
      group.append(svg("title", {}, `decision ${decision.number}: ${OUTCOMES[decision.outcome] ?? decision.outcome}`));
      root.append(group);
    }
  }

  words(seen) {
    if (seen.length === 0) return "No step yet.";
    const [begin, end] = [seen[0], seen.at(-1)];
    const applied = this.decisions.filter((decision) => decision.outcome === "applied" && decision.accepted >= begin.accepted);
    return `Imbalance from step ${begin.accepted} to ${end.accepted}: mean ${ratio(begin.mean)} at first, ${ratio(end.mean)} now; ` +
      `re-planned ${applied.length} times. The slider below reads single steps.`;
  }

  hover(event) {
    if (!this.seen?.length) return;
    const x = event.clientX - this.box.getBoundingClientRect().left;
    let best = 0;
    this.seen.forEach((point, at) => {
      if (Math.abs(this.x(point.accepted) - x) < Math.abs(this.x(this.seen[best].accepted) - x)) best = at;
    });
    this.read(best, false);
  }

  /** Shows the values at a point, and marks it. */
  read(at, spoken = true) {
    const point = this.seen?.[at];
    for (const node of [this.cursor, this.dot]) if (node) node.style.display = point ? "" : "none";
    if (!point) return setContent($("time-reading"), "\u00a0");
    const x = this.x(point.accepted);
    for (const [name, value] of [["x1", x], ["x2", x]]) this.cursor.setAttribute(name, value);
    this.dot.setAttribute("cx", x);
    this.dot.setAttribute("cy", this.y(point.mean));
    const which = point.steps > 1 ? `${count(point.steps)} steps to the ${count(point.accepted)}th` : `step ${point.step}, the ${count(point.accepted)}th`;
    const here = this.decisions.find((decision) => decision.accepted > point.accepted - point.steps && decision.accepted <= point.accepted);
    const decided = here ? `; decision ${here.number}: ${OUTCOMES[here.outcome] ?? here.outcome}` : "";
    const plan = point.plan === 0 ? "no plan" : `plan ${point.plan}`;
    const words = `${which}: mean ${ratio(point.mean)}, worst layer ${ratio(point.max)}, least possible ${ratio(point.bound)}, ${plan}${decided}`;
    setContent($("time-reading"), words);
    if (spoken) this.slider.setAttribute("aria-valuetext", words);
  }
}

/**
 * Returns about one point per pixel. It has the means of its neighbours but the maximum of their worst
 * layers, so that no peak is lost.
 */
function thin(points, pixels) {
  const each = Math.ceil(points.length / Math.max(pixels, 1));
  if (each <= 1) return points;
  const groups = [];
  for (let at = 0; at < points.length; at += each) {
    const group = points.slice(at, at + each);
    groups.push({
      ...group.at(-1),
      mean: group.reduce((sum, point) => sum + point.mean, 0) / group.length,
      bound: group.reduce((sum, point) => sum + point.bound, 0) / group.length,
      max: Math.max(...group.map((point) => point.max)),
    });
  }
  return groups;
}

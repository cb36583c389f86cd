// The heat map of rank loads: layers down, ranks across, drawn on one canvas in the colours of evenkeel's
// reports. A grid of one cell lies over it, at the position of the pointer or the arrow keys. Screen readers
// read its text.

import { $, el, fixed, setContent, ratio } from "./format.js";

/** Upper ends of all colour steps but the last, as in reports. */
const STEPS = [0.5, 0.8, 0.9, 0.97, 1.03, 1.1, 1.25, 1.5, 2, 4];
/** Margins in pixels: above, for layer numbers, for each layer's imbalance, and for rank numbers. */
const [ABOVE, LEFT, RIGHT, BELOW] = [5, 36, 58, 20];

/** A heat map. `show` takes `{ layer, imbalance, ranks: [load over mean] }` for every layer. */
export class Heatmap {
  constructor() {
    this.box = $("heat");
    this.canvas = $("heat-canvas");
    this.grid = $("heat-grid");
    this.now = null;
    this.after = null;
    this.at = null;
    this.flip = false;
    legend();
    new ResizeObserver(() => this.draw()).observe(this.box);
    for (const query of ["(prefers-color-scheme: dark)", "print", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.draw());
    }
    this.grid.addEventListener("pointermove", (event) => this.point(event));
    this.grid.addEventListener("pointerdown", (event) => this.point(event));
    this.grid.addEventListener("pointerleave", () => document.activeElement === this.grid || this.leave());
    this.grid.addEventListener("focus", () => this.now && !this.at && this.go(0, 0));
    this.grid.addEventListener("blur", () => this.leave());
    this.grid.addEventListener("keydown", (event) => this.key(event));
  }

  /**
   * Shows a map. If `after` is given, the left `share` (0 to 1) shows the loads before and the rest those
   * after. `ranks` and `ranksAfter` name the columns. `node` is the number of ranks in a node, or 0 if there
   * is one node.
   */
  show({ now, after = null, share = 1, ranks, ranksAfter = ranks, node = 0 }) {
    Object.assign(this, { now, after, share, ranks, ranksAfter, node });
    const worst = now.reduce((most, line) => (line.imbalance > (most?.imbalance ?? 0) ? line : most), null);
    const words = worst
      ? `Heat map: ${now.length} layers down, ${ranks.length} ranks across. Worst is layer ${worst.layer}, whose busiest rank ` +
        `has ${ratio(worst.imbalance)} times the average load.`
      : "Heat map: no tokens yet.";
    if (this.canvas.getAttribute("aria-label") !== words) this.canvas.setAttribute("aria-label", words);
    this.grid.setAttribute("aria-rowcount", now.length);
    this.grid.setAttribute("aria-colcount", ranks.length);
    if (!this.grid.firstChild) this.cell("layers down, ranks across", 0, 0);
    this.draw();
    if (this.at) this.go(this.at.row, this.at.column, true);
  }

  lineHeight() {
    const rows = this.now.length;
    return rows <= 12 ? 24 : rows <= 24 ? 18 : rows <= 40 ? 13 : rows <= 72 ? 9 : 7;
  }

  draw() {
    if (!this.now || this.box.clientWidth === 0) return;
    const style = getComputedStyle(this.box);
    const colour = (name) => style.getPropertyValue(name).trim();
    const shades = Array.from({ length: STEPS.length + 1 }, (_, step) => colour(`--h${step}`));
    const [width, line] = [this.box.clientWidth - LEFT - RIGHT, this.lineHeight()];
    const height = this.now.length * line;
    const scale = Math.max(1, window.devicePixelRatio || 1);
    const { canvas } = this;
    const size = [Math.round(this.box.clientWidth * scale), Math.round((ABOVE + height + BELOW) * scale)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    canvas.style.height = `${ABOVE + height + BELOW}px`;
    const g = canvas.getContext("2d");
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, this.box.clientWidth, ABOVE + height + BELOW);
    g.translate(0, ABOVE);
    const edge = this.after ? LEFT + width * this.share : LEFT + width;
    const part = (lines, from, to) => {
      if (to <= from) return;
      g.save();
      g.beginPath();
      g.rect(from, 0, to - from, height);
      g.clip();
      lines.forEach((row, y) => {
        const columns = row.ranks.length;
        const idle = !(row.imbalance > 0);
        for (let x = 0; x < columns; x += 1) {
          const [a, b] = [Math.round((x * width) / columns), Math.round(((x + 1) * width) / columns)];
          if (idle) continue;
          const gap = b - a > 5 && line > 6 ? 1 : 0;
          g.fillStyle = shades[step(row.ranks[x])];
          g.fillRect(LEFT + a, y * line, b - a - gap, line - (line > 6 ? 1 : 0));
        }
      });
      g.restore();
    };
    part(this.now, LEFT, edge);
    if (this.after) part(this.after, edge, LEFT + width);
    this.labels(g, colour, width, height, line, style.fontFamily);
    this.imbalances(g, shades, LEFT + width, line);
    if (this.after) {
      g.fillStyle = colour("--ink");
      g.fillRect(Math.min(edge, LEFT + width - 1) - 1, 0, 2, height + 4);
    }
  }

  labels(g, colour, width, height, line, family) {
    g.fillStyle = colour("--soft");
    g.font = `12px ${family}`;
    g.textAlign = "right";
    g.textBaseline = "middle";
    const every = Math.ceil(15 / line);
    this.now.forEach((row, y) => {
      if (y % every === 0) g.fillText(String(row.layer), LEFT - 6, (y + 0.5) * line);
    });
    g.textAlign = "center";
    const names = this.ranks;
    const most = Math.max(1, Math.floor(width / 34));
    const apart = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].find((step) => names.length / step <= most) ?? 1024;
    names.forEach((name, x) => {
      const middle = LEFT + ((x + 0.5) * width) / names.length;
      if (x % apart === 0) g.fillText(String(name), middle, height + 12);
      if (this.node > 0 && x > 0 && Math.floor(name / this.node) !== Math.floor(names[x - 1] / this.node)) {
        g.fillRect(Math.round(LEFT + (x * width) / names.length) - 1, height, 1, 6);
      }
    });
  }

  /** Draws each layer's imbalance on the right: the mean of its peaks, which the mean loads of ranks hide. */
  imbalances(g, shades, right, line) {
    g.textAlign = "left";
    (this.after ?? this.now).forEach((row, y) => {
      if (!(row.imbalance > 0)) return;
      const text = g.fillStyle;
      g.fillStyle = shades[step(row.imbalance)];
      g.fillRect(right + 7, y * line, 8, line - (line > 6 ? 1 : 0));
      g.fillStyle = text;
      if (y % Math.ceil(15 / line) === 0) g.fillText(ratio(row.imbalance), right + 20, (y + 0.5) * line);
    });
    g.fillText("peak", right + 20, this.now.length * line + 12);
  }

  point(event) {
    if (!this.now) return;
    const area = this.grid.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / (this.now.length * this.lineHeight())];
    if (x < 0 || x >= 1 || y < 0 || y >= 1) return this.leave();
    const row = Math.floor(y * this.now.length);
    this.go(row, Math.floor(x * this.lines(row, x).ranks.length));
  }

  /** Returns the map at a place. */
  lines(row, x) {
    return (this.after && x > this.share ? this.after : this.now)[row];
  }

  key(event) {
    if (!this.now) return;
    const [rows, columns] = [this.now.length, this.ranks.length];
    const { row, column } = this.at ?? { row: 0, column: 0 };
    const to = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [row, 0], End: [row, columns - 1], PageUp: [row - 10, column], PageDown: [row + 10, column],
    }[event.key];
    if (event.key === "Escape") return this.leave();
    if (!to || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.go(Math.min(Math.max(to[0], 0), rows - 1), Math.min(Math.max(to[1], 0), columns - 1));
  }

  /** Moves the mark, and shows the value at its place. */
  go(row, column, quiet = false) {
    const line = this.now[row];
    if (!line) return this.leave();
    this.at = { row, column };
    const load = (one, names) => (one?.imbalance > 0 && one.ranks[column] !== undefined ? `${fixed(one.ranks[column], 3)}×${names}` : "no tokens");
    const what = this.after ? `${load(line, " before")}, ${load(this.after[row], " after")}` : `${load(line, "")}`;
    const words = `layer ${line.layer}, rank ${this.ranks[column] ?? column}: ${what}`;
    if (!quiet || this.said !== words) this.cell(words, row, column);
    const [mark, tip] = [$("heat-mark"), $("heat-tip")];
    const [width, height] = [this.box.clientWidth - LEFT - RIGHT, this.lineHeight()];
    const each = width / this.ranks.length;
    mark.hidden = tip.hidden = false;
    mark.style.left = `${LEFT + column * each}px`;
    mark.style.top = `${ABOVE + row * height}px`;
    mark.style.width = `${Math.max(each, 3)}px`;
    mark.style.height = `${height}px`;
    setContent(tip, words);
    const middle = LEFT + (column + 0.5) * each;
    const half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(middle - half, 0), Math.max(this.box.clientWidth - 2 * half, 0))}px`;
    tip.style.top = row * height > 34 ? `${ABOVE + row * height - 32}px` : `${ABOVE + (row + 1) * height + 6}px`;
  }

  /** Replaces the one cell. Two ids alternate, so that screen readers notice the change. */
  cell(words, row, column) {
    this.said = words;
    this.flip = !this.flip;
    const id = this.flip ? "heat-cell-a" : "heat-cell-b";
    const cell = el("div", { role: "gridcell", id, "aria-colindex": column + 1, class: "unseen" }, words);
    this.grid.replaceChildren(el("div", { role: "row", "aria-rowindex": row + 1 }, cell));
    this.grid.setAttribute("aria-activedescendant", id);
  }

  leave() {
    this.at = null;
    $("heat-mark").hidden = $("heat-tip").hidden = true;
  }
}

export function step(value) {
  const at = STEPS.findIndex((end) => end >= value);
  return at < 0 ? STEPS.length : at;
}

/** Explains the colours in words. */
function legend() {
  const swatches = [...STEPS, Infinity].map((_, at) => el("i", { class: `f${at}` }));
  const ends = STEPS.map((end) => el("span", null, String(end)));
  setContent($("scale"), el("p", { class: "ends" }, el("span", null, "waits"), el("span", null, "average"), el("span", null, "works too much")),
    el("p", { class: "swatches", "aria-hidden": "true" }, ...swatches), el("p", { class: "steps", "aria-hidden": "true" }, ...ends));
}

/** Returns the layers as rows of a table. */
export function layerRows(lines, ranks) {
  return lines.map(({ layer, imbalance, ranks: loads }) => {
    if (!(imbalance > 0)) return el("tr", null, el("th", { scope: "row" }, String(layer)), el("td", { colspan: "5" }, "no tokens"));
    let [high, low] = [0, 0];
    loads.forEach((load, at) => {
      if (load > loads[high]) high = at;
      if (load < loads[low]) low = at;
    });
    const cells = [ratio(imbalance), String(ranks[high]), fixed(loads[high], 3), String(ranks[low]), fixed(loads[low], 3)];
    return el("tr", null, el("th", { scope: "row" }, String(layer)), ...cells.map((text) => el("td", null, text)));
  });
}

// The figures of a view, by Observable Plot: intervals, a heat map, loss curves.

import { axisX, axisY, cell, dot, gridX, gridY, line, link, plot, ruleX, ruleY, text } from "@observablehq/plot";
import { levelText, runs } from "./data.js";
import { format, number, signed } from "./view.js";

const SYMBOLS = ["circle", "square", "triangle", "diamond2", "star", "cross", "wye", "hexagon"];
const NAMED = ["of-runs", "zero"]; // marks that are told apart from others of their kind
const APART = 14; // pixels between the marks of two colours at one level
const COLOURS = 8; // of the style sheet: --c0 to --c7
export const colourOf = (code) => (code < 0 ? "var(--c0)" : `var(--c${code % COLOURS})`);
export const symbolOf = (code) => (code < 0 ? SYMBOLS[0] : SYMBOLS[(code + Math.floor(code / COLOURS)) % SYMBOLS.length]);

const FONT = { fontSize: "12px", fontFamily: "inherit", overflow: "visible", color: "var(--ink)", background: "none" };
const widest = (labels) => Math.max(...labels.map((l) => l.length), 1);

// Whether the levels stand along the bottom: numbers do, names are easier to read beside rows.
const upright = (factor) => factor.numbers !== null && factor.levels.length <= 16;

export function drawn(panel, view, options) {
  return marked(options.show === "heat" ? heat(panel, view, options) : intervals(panel, view, options));
}

// A group of SVG has no role that takes a label, and the whole figure has one of its own.
function marked(svg) {
  for (const group of svg.querySelectorAll("g[aria-label]")) {
    const name = group.getAttribute("class");
    group.dataset.mark = NAMED.includes(name) ? name : group.getAttribute("aria-label");
    group.removeAttribute("aria-label");
  }
  return svg;
}

function range(panels) {
  let low = Infinity, high = -Infinity;
  for (const panel of panels) for (const g of panel.groups) {
    for (const v of [g.low, g.high, g.estimate, g.raw?.estimate]) if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  }
  return [low, high];
}

export function describe(group, view) {
  const { data, chosen, reference } = view;
  const parts = ["x", "colour"].filter((n) => chosen[n] >= 0).map((n) => `${data.factors[chosen[n]].name} ${levelText(data.factors[chosen[n]], group[n])}`);
  const value = (reference ? signed : number)(group.estimate);
  const ends = Number.isFinite(group.low) ? ` (${number(group.low)} to ${number(group.high)})` : "";
  const beside = Number.isFinite(group.raw?.estimate) ? `, of ${runs(data)} ${(reference ? signed : number)(group.raw.estimate)}` : "";
  return `${parts.join(", ")}: ${value}${ends}${beside}, ${group.runs.size} ${runs(data, group.runs.size)}`;
}

function intervals(panel, view, options) {
  const { width, onPick, dots } = options;
  const { data, chosen, reference } = view;
  const factor = data.factors[chosen.x], up = upright(factor);
  const levels = [...new Set(panel.groups.map((g) => g.x))].sort((a, b) => a - b);
  const colours = [...new Set(panel.groups.map((g) => g.colour))].sort((a, b) => a - b);
  const row = Math.max(20, APART * colours.length + 8); // pixels of a level beside which names stand
  const apart = Math.min(0.8 / colours.length, APART / (up ? (width - 60) / levels.length : row)); // in levels
  const there = new Map(levels.map((x) => [x, colours.filter((c) => panel.groups.some((g) => g.x === x && g.colour === c && Number.isFinite(g.estimate)))]));
  const at = (g) => { const own = there.get(g.x); return levels.indexOf(g.x) + (own.indexOf(g.colour) - (own.length - 1) / 2) * apart; };
  const groups = panel.groups.filter((g) => Number.isFinite(g.estimate)).map((g) => ({ ...g, at: at(g), group: g }));
  const whole = groups.filter((g) => Number.isFinite(g.low));
  const labels = levels.map((code) => levelText(factor, code));
  const pos = up ? "x" : "y", val = up ? "y" : "x";
  const channel = (p, v) => ({ [pos]: p, [val]: v });
  const ends = { [`${pos}1`]: "at", [`${pos}2`]: "at", [`${val}1`]: "low", [`${val}2`]: "high" };
  const room = Math.min(7 * widest(labels) + 16, Math.max(60, width * 0.42));
  const short = (i) => { const l = labels[i] ?? ""; const most = Math.floor((room - 14) / 6.6); return l.length > most && !up ? `${l.slice(0, most - 1)}…` : l; };
  const crowded = up && (7 * widest(labels) + 6) * labels.length > width - 60;
  const title = unitOf(view, panel);
  const height = up ? 258 + (crowded ? 7 * widest(labels) : 0) : 62 + (levels.length + 0.2) * row;
  const position = { domain: [-0.6, levels.length - 0.4], ticks: levels.map((_, i) => i), tickFormat: short, label: null, reverse: false, grid: false };
  const value = { label: title, labelArrow: "none", nice: true, grid: true, domain: domain(panel, view, options), zero: false };
  const marks = [
    up ? gridY({ stroke: "var(--rule)", strokeOpacity: 1 }) : gridX({ stroke: "var(--rule)", strokeOpacity: 1 }),
    reference ? (up ? ruleY : ruleX)([0], { stroke: "var(--ink)", strokeWidth: 1.5, strokeDasharray: "5 3", className: "zero" }) : null,
    dots ? runMarks(panel, view, at, up) : null,
    up && levels.length > 1 ? line(groups, { ...channel("at", "estimate"), z: "colour", stroke: (g) => colourOf(g.colour), strokeOpacity: 0.45, strokeWidth: 1.2 }) : null,
    link(whole, { ...ends, stroke: (g) => colourOf(g.colour), strokeWidth: 2 }),
    ...colours.map((code) => dot(groups.filter((g) => g.colour === code), {
      ...channel("at", "estimate"), fill: colourOf(code), symbol: symbolOf(code), r: 4, stroke: "var(--card)", strokeWidth: 1,
      title: (g) => describe(g, view), className: "picks",
    })),
    dot(groups.filter((g) => Number.isFinite(g.raw?.estimate)), {
      ...channel("at", (g) => g.raw.estimate), stroke: (g) => colourOf(g.colour), symbol: (g) => symbolOf(g.colour), r: 4,
      strokeWidth: 1.5, className: "of-runs", pointerEvents: "none",
    }),
  ];
  const svg = plot({
    width, height, style: FONT, className: "explorer-plot",
    marginLeft: up ? 46 : room, marginRight: 14, marginTop: 28, marginBottom: up ? (crowded ? 14 + 7 * widest(labels) : 28) : 34,
    [pos]: { ...position, tickRotate: crowded ? -90 : 0, tickSize: 0 }, [val]: value,
    symbol: { type: "identity" }, color: { type: "identity" }, marks,
  });
  picking(svg, groups, colours, onPick);
  return svg;
}

// What a value is counted in: points, or as a table from elsewhere has it.
function unitOf({ data, reference }, panel) {
  if (!data.table) return reference ? "difference, points" : "points";
  const { unit, difference } = data.table;
  return reference ? `difference, ${panel.why ? unit : difference}` : unit;
}

// The ends of the axis of values: of one panel, or of all where they share it.
function domain(panel, view, { one, dots }) {
  const of = one ? view.panels : [panel];
  let [low, high] = one ? (view.range ??= range(of)) : range(of);
  if (dots && !view.reference) {
    for (const own of of) for (const g of own.groups) for (const r of g.runs) {
      const value = meanOf(view.data, r, own.tasks);
      if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    }
  }
  if (!(high > low)) return Number.isFinite(low) ? [low - 1, low + 1] : [0, 1];
  const pad = (high - low) * 0.04;
  return view.reference ? [Math.min(low - pad, 0), Math.max(high + pad, 0)] : [low - pad, high + pad];
}

// The mean score of a run over the tasks that it has of some; NaN where it has none.
function meanOf(data, run, tasks) {
  let sum = 0, count = 0;
  for (const t of tasks) {
    const score = data.scores[run * data.tasks.length + t];
    if (!Number.isNaN(score)) { sum += score; count += 1; }
  }
  return sum / count;
}

// Every run as a point, all of one panel in one path: thousands of elements would be slow.
function runMarks(panel, view, at, up) {
  if (view.reference) return null;
  const by = new Map();
  for (const g of panel.groups) for (const r of g.runs) {
    const value = meanOf(view.data, r, panel.tasks);
    if (!Number.isFinite(value)) continue;
    if (!by.has(g.colour)) by.set(g.colour, []);
    by.get(g.colour).push([at(g) + 0.05, value]);
  }
  return (_, { x, y }, __, ___, context) => {
    const group = context.document.createElementNS("http://www.w3.org/2000/svg", "g");
    group.setAttribute("aria-hidden", "true");
    for (const [colour, points] of by) {
      const path = context.document.createElementNS("http://www.w3.org/2000/svg", "path");
      const inside = points.map(([p, v]) => (up ? [x(p), y(v)] : [x(v), y(p)]));
      path.setAttribute("d", inside.map(([a, b]) => `M${a.toFixed(1)},${b.toFixed(1)}h0`).join(""));
      path.setAttribute("stroke", colourOf(colour));
      path.setAttribute("stroke-width", 3);
      path.setAttribute("stroke-linecap", "round");
      path.setAttribute("opacity", 0.35);
      group.append(path);
    }
    return group;
  };
}

function picking(svg, groups, colours, onPick) {
  const marks = [...svg.querySelectorAll("g[aria-label=dot]")];
  colours.forEach((code, k) => {
    const own = groups.filter((g) => g.colour === code);
    [...(marks[k]?.children ?? [])].forEach((mark, i) => {
      if (!own[i]) return;
      mark.style.cursor = "pointer";
      mark.addEventListener("click", () => onPick(own[i].group));
    });
  });
}

function heat(panel, view, { width, onPick, one }) {
  const { data, chosen, reference } = view;
  const second = chosen.colour >= 0;
  const rows = [...new Set(panel.groups.map((g) => g.x))].sort((a, b) => a - b);
  const columns = [...new Set(panel.groups.map((g) => g.colour))].sort((a, b) => a - b);
  const rowText = (code) => levelText(data.factors[chosen.x], code);
  const columnText = (code) => (second ? levelText(data.factors[chosen.colour], code) : "all");
  const room = Math.min(7 * widest(rows.map(rowText)) + 14, width * 0.4);
  const groups = panel.groups.filter((g) => Number.isFinite(g.estimate));
  const [low, high] = one ? (view.heat ??= estimates(view.panels)) : estimates([panel]);
  const far = Math.max(Math.abs(low), Math.abs(high), 1e-9);
  const step = Math.max(20, (width - room - 10) / Math.max(columns.length, 1));
  const turned = 7 * widest(columns.map(columnText)) > step;
  const digits = Math.max(0, format.digits - (step > 38 ? 1 : 2));
  const share = (v) => (reference ? (v / far + 1) / 2 : (v - low) / (high - low || 1));
  const svg = plot({
    width, height: 34 + (turned ? 6.5 * widest(columns.map(columnText)) : 12) + rows.length * 24, style: FONT, className: "explorer-plot",
    marginLeft: room, marginRight: 6, marginBottom: 6, marginTop: turned ? 16 + 6.5 * widest(columns.map(columnText)) : 28, padding: 0.04,
    x: { domain: columns, axis: null }, y: { domain: rows, axis: null },
    color: { type: "linear", scheme: reference ? "PuOr" : "Cividis", domain: reference ? [-far, far] : [low, high] },
    marks: [
      axisX({ anchor: "top", tickFormat: columnText, tickSize: 0, tickRotate: turned ? -90 : 0, label: null }),
      axisY({ tickFormat: rowText, tickSize: 0, label: null }),
      cell(groups, { x: "colour", y: "x", fill: "estimate", title: (g) => describe(g, view), className: "picks" }),
      step > 26 ? text(groups, {
        x: "colour", y: "x", text: (g) => (reference ? signed : number)(g.estimate, digits), pointerEvents: "none",
        fill: (g) => { const s = share(g.estimate); return reference ? (s < 0.25 || s > 0.8 ? "#fff" : "#111") : (s < 0.52 ? "#fff" : "#111"); }, fontSize: 11,
      }) : null,
    ],
  });
  const marks = svg.querySelector("g[aria-label=cell]")?.children ?? [];
  [...marks].forEach((mark, i) => { mark.style.cursor = "pointer"; mark.addEventListener("click", () => onPick(groups[i])); });
  return svg;
}

function estimates(panels) {
  const all = panels.flatMap((p) => p.groups.map((g) => g.estimate)).filter(Number.isFinite);
  return all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
}

// Loss curves: series is a list of { label, points: [[step, value]], colour, faint }.
export function curves(series, width, title) {
  const points = series.flatMap((s, i) => s.points.map(([step, value]) => ({ step, value, z: i })));
  return marked(plot({
    width, height: 230, style: FONT, className: "explorer-plot", marginLeft: 46, marginTop: 26, marginBottom: 34,
    x: { label: "step", labelArrow: "none" }, y: { label: title, labelArrow: "none", grid: true, nice: true },
    color: { type: "identity" },
    marks: [
      line(points, {
        x: "step", y: "value", z: "z", stroke: (d) => series[d.z].colour,
        strokeOpacity: (d) => (series[d.z].faint ? 0.45 : 1), strokeWidth: 1.6,
      }),
    ],
  }));
}

// The explorer of a report's page: choose factors, filter, look into a cell, send the view.

import { colourOf, describe, drawn, symbolOf } from "./chart.js";
import { cellsOf, levelText, runs, unpack } from "./data.js";
import { Drawer } from "./drawer.js";
import { Panel } from "./model.js";
import { byColumn, decode, encode, unknown, valid } from "./state.js";
import { Table, element } from "./table.js";
import { critical } from "./student.js";
import { format, number, view } from "./view.js";

const SHOWN = 12; // panels, until all are asked for
const NARROWEST = 330; // pixels of a panel where several stand side by side
const MOST_COLOURS = 8; // levels of the colour that is chosen at first
const NS = "http://www.w3.org/2000/svg";

function defaultsOf(data) {
  const free = data.factors.filter((f) => f.part !== "replicate" && !data.strata.includes(f.column));
  const order = ["plw", "adapter", "masking", "rank"];
  const rank = (f) => (order.includes(f.column) ? order.indexOf(f.column) : order.length);
  const [x, ...rest] = [...free].sort((a, b) => rank(a) - rank(b)).concat(data.factors);
  const colour = rest.find((f) => f !== x && free.includes(f) && f.levels.length <= MOST_COLOURS);
  return { x: x.column, colour: colour?.column ?? "none", panel: "none", scores: "kinds", show: "intervals", ref: "", where: byColumn() };
}

class Explorer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.critical = critical;
    format.digits = data.table?.digits ?? format.digits;
    this.cells = cellsOf(data);
    this.models = data.models.map((m) => new Panel(data, m));
    this.defaults = defaultsOf(data);
    const asked = decode(location.hash);
    this.state = valid(asked ?? {}, data, this.defaults);
    this.every = false;
    this.picked = null;
    this.build();
    this.drawer = new Drawer(this, (run, beside) => {
      this.state.cell = run === null ? "" : data.keys[run];
      this.state.beside = run === null || beside === null ? "" : data.keys[beside];
      this.remember();
    });
    this.update();
    this.openCell();
    this.miss(asked);
    addEventListener("hashchange", () => this.follow());
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (Math.abs(root.clientWidth - width) < 8) return;
      width = root.clientWidth;
      clearTimeout(this.resized);
      this.resized = setTimeout(() => { this.paint(); this.drawer.draw(); }, 120);
    }).observe(root);
  }

  follow() {
    const asked = decode(location.hash);
    if (!asked || location.hash === encode(this.state)) return;
    this.state = valid(asked, this.data, this.defaults);
    this.picked = null;
    this.update();
    this.root.scrollIntoView();
    this.openCell();
    this.miss(asked);
  }

  // Say what an address asks for that is not here, and take it out of the address.
  miss(asked) {
    const lost = asked ? unknown(asked, this.data, this.defaults) : [];
    this.lost.hidden = !lost.length;
    this.lost.textContent = lost.length ? `The address asks for ${lost.join(", ")}, which this page does not have.` : "";
    if (lost.length) this.remember();
  }

  openCell() {
    const run = this.data.keys.indexOf(this.state.cell ?? "");
    const beside = this.data.keys.indexOf(this.state.beside ?? "");
    if (run >= 0) this.drawer.show(run, beside < 0 ? null : beside);
    else this.drawer.close();
  }

  // The address follows the state once anything was chosen; the first look leaves it alone.
  remember() { history.replaceState(history.state, "", encode(this.state)); }

  choose(change) {
    this.lost.hidden = true;
    this.state = valid({ ...this.state, ...change }, this.data, this.defaults);
    this.picked = null;
    this.remember();
    this.update();
  }

  build() {
    const { data } = this;
    const factors = data.factors.map((f) => [f.column, f.name]);
    const select = (name, label) => {
      const own = element("select", { id: `explore-${name}`, onchange: () => this.choose({ [name]: own.value }) });
      this.selects[name] = own;
      return element("label", {}, label, own);
    };
    this.selects = {};
    this.fixed = {
      x: factors, colour: [["none", "one colour"], ...factors], panel: [["none", "no further panels"], ...factors],
      scores: [["kinds", "kinds of tasks, a model each"], ["tasks", "each task"],
        ...[...new Map(data.tasks.map((t) => [`kind:${t.group}`, `only: ${t.title}`]))], ...data.tasks.map((t) => [`task:${t.name}`, `only: ${t.name}`])],
      show: [["intervals", "means with intervals"], ["heat", "heat map"]],
    };
    const dots = element("input", { type: "checkbox", id: "explore-dots", onchange: () => this.choose({ dots: dots.checked ? "1" : "" }) });
    this.dots = dots;
    const one = element("input", { type: "checkbox", id: "explore-one", onchange: () => this.choose({ one: one.checked ? "1" : "" }) });
    this.one = one;
    this.filters = element("div", { className: "filters" });
    const filter = element("details", { className: "filter" }, this.filterHead = element("summary", { textContent: "Filter" }), this.filters);
    const copied = element("span", { className: "count", role: "status" });
    this.link = element("button", { type: "button", textContent: "Copy link to this view", onclick: async () => {
      this.remember();
      try { await navigator.clipboard.writeText(location.href); copied.textContent = "copied"; } catch { copied.textContent = "the link is in the address bar"; }
    } });
    const reset = element("button", { type: "button", textContent: "Reset", onclick: () => { this.state = { ...this.defaults, where: byColumn() }; this.lost.hidden = true; this.picked = null; this.remember(); this.update(); } });
    const form = element("form", { className: "controls", onsubmit: (e) => e.preventDefault(), aria: { label: "what the figures show" } },
      select("x", "Factor"), select("colour", "Colour"), select("panel", "Panels"), ...(data.tasks.length > 1 ? [select("scores", "Scores")] : []), select("show", "Figure"), select("ref", "Difference from"),
      element("label", { className: "check" }, dots, `every ${runs(data, 1)}`), element("label", { className: "check" }, one, "one scale"));
    this.lost = element("p", { className: "warning", role: "status", hidden: true });
    this.status = element("p", { className: "explore-status", role: "status" });
    this.legend = element("div", { className: "explore-legend" });
    this.charts = element("div", { className: "panels" });
    this.more = element("button", { type: "button", className: "all", onclick: () => { this.every = true; this.paint(); } });
    this.numbers = new Table({ name: "view", caption: "The numbers of this view", columns: [], rows: [], onRow: (row) => this.pick(row.group) });
    this.chip = element("p", { className: "chip", hidden: true });
    this.list = new Table({ name: "cells", caption: "Cells: one opens in full", columns: this.cellColumns(), rows: this.cells.list, onRow: (cell) => this.drawer.show(cell.runs[0]) });
    this.root.replaceChildren(this.lost, form, filter, element("div", { className: "tools" }, this.link, reset, copied), this.status, this.legend, this.charts, this.more, this.numbers.node, this.chip, this.list.node);
  }

  fillControls() {
    const { state, data } = this;
    const options = (select, list, value) => select.replaceChildren(...list.map(([v, t]) => element("option", { value: v, textContent: t, selected: v === value })));
    for (const [name, list] of Object.entries(this.fixed)) {
      if (!this.selects[name]) continue; // one score: there is nothing to choose
      const taken = { colour: [state.x], panel: [state.x, state.colour] }[name] ?? [];
      options(this.selects[name], list.filter(([v]) => v === "none" || !taken.includes(v)), state[name]);
    }
    const against = ["x", "colour"].flatMap((name) => {
      const factor = data.factors.find((f) => f.column === state[name]);
      return factor ? factor.levels.map((level, code) => [`${name}:${level}`, `${factor.name} ${levelText(factor, code)}`]) : [];
    });
    options(this.selects.ref, [["", "nothing: means"], ...against], state.ref);
    this.dots.checked = Boolean(state.dots);
    this.one.checked = Boolean(state.one);
    this.fillFilters();
  }

  fillFilters() {
    const { state, data } = this, active = Object.keys(state.where);
    this.filterHead.textContent = active.length ? `Filter: ${active.map((c) => { const f = data.factors.find((g) => g.column === c); return `${f.name} ${state.where[c].map((l) => l || "none").join(", ")}`; }).join("; ")}` : "Filter";
    if (!this.boxes) {
      this.boxes = new Map();
      this.filters.replaceChildren(...data.factors.filter((f) => f.levels.length > 1).map((f) => element("fieldset", {}, element("legend", { textContent: f.name }),
        ...f.levels.map((level, code) => {
          const box = element("input", { type: "checkbox", onchange: () => this.filterBy(f) });
          this.boxes.set(`${f.column}\u0001${level}`, box);
          return element("label", { className: "check" }, box, levelText(f, code));
        }))));
    }
    for (const f of data.factors) for (const level of f.levels) {
      const box = this.boxes.get(`${f.column}\u0001${level}`);
      if (box) box.checked = !state.where[f.column] || state.where[f.column].includes(level);
    }
  }

  filterBy(factor) {
    const kept = factor.levels.filter((level) => this.boxes.get(`${factor.column}\u0001${level}`).checked);
    this.choose({ where: { ...this.state.where, [factor.column]: kept } }); // all or none is no filter
  }

  update() {
    this.fillControls();
    this.every = false;
    this.paint();
  }

  paint() {
    const found = (this.view = view(this.state, this));
    const shown = this.every ? found.panels : found.panels.slice(0, SHOWN);
    const room = this.root.clientWidth || 900;
    const columns = Math.max(1, Math.min(shown.length, Math.floor(room / NARROWEST)));
    const width = Math.floor((room - (columns - 1) * 16) / columns) - 26;
    this.charts.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    this.charts.replaceChildren(...shown.map((panel) => this.figure(panel, width)));
    const rest = found.panels.length - shown.length;
    this.more.hidden = rest <= 0;
    this.more.textContent = `Show ${rest} more panel${rest === 1 ? "" : "s"}`;
    this.say(found);
    this.fillLegend(found);
    this.fillNumbers(found);
    this.fillCells();
  }

  figure(panel, width) {
    const found = this.view, some = panel.groups.some((g) => Number.isFinite(g.estimate));
    const svg = some ? drawn(panel, found, { width: Math.max(width, 200), show: this.state.show, dots: this.state.dots, one: this.state.one, onPick: (g) => this.pick(g) }) : element("p", { textContent: `Nothing here can be estimated from these ${runs(this.data)}.` });
    if (some) {
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `${panel.title}: ${panel.groups.slice(0, 3).map((g) => describe(g, found)).join("; ")}${panel.groups.length > 3 ? "; the rest is in the table of this view" : ""}`);
    }
    const lost = panel.groups.filter((g) => !Number.isFinite(g.estimate)).length;
    const basis = panel.why ? `Means of ${runs(this.data)}, ${this.overSeeds()}: ${panel.why}.` : `Estimated marginal means of the model (${panel.status}).`;
    const outside = panel.outside ? ` ${panel.outside} ${runs(this.data, panel.outside)} ${panel.outside === 1 ? "is" : "are"} not in it.` : "";
    const caption = element("figcaption", {}, element("strong", { textContent: panel.title }), element("br"), `${basis}${outside}`, lost ? ` ${lost} not determined.` : "",
      panel.beside ? ` Hollow: ${this.state.ref ? "differences of means" : "means"} of its ${runs(this.data)}, not adjusted.` : "",
      ...panel.cautions.map((text) => element("span", { className: "caution", textContent: text })));
    return element("figure", { className: "panel" }, caption, svg);
  }

  // Means without a model have intervals over seeds, where there are seeds.
  overSeeds() { return this.cells.seed < 0 ? "without intervals" : "t intervals over seeds"; }

  averaged() {
    return this.data.table ? "95 % intervals of the model, each mean over the combinations of its other columns that the table has"
      : "95 % intervals of the models, each adjusted for all else that its model holds";
  }

  basis(panel) { return panel.why ? (this.cells.seed < 0 ? "none" : "seeds") : "model"; }

  say(found) {
    const { data, state } = this;
    const groups = found.panels.reduce((n, p) => n + p.groups.length, 0);
    const raw = found.panels.filter((p) => p.why).length;
    const what = state.ref ? "differences" : "means";
    const basis = raw === 0 ? this.averaged() : raw === found.panels.length ? `means of the ${runs(data)} ${this.cells.seed < 0 ? "without intervals" : "with 95 % t intervals over seeds"}` : `95 % intervals, in ${raw} panels without a model`;
    this.status.textContent = `${groups} ${what} in ${found.panels.length} panel${found.panels.length === 1 ? "" : "s"}; ${basis}. Not adjusted for how much is looked at: the tests are those of the answer above.`;
  }

  fillLegend(found) {
    const factor = this.data.factors[found.chosen.colour];
    this.legend.hidden = !factor || this.state.show === "heat";
    if (this.legend.hidden) return;
    const codes = [...new Set(found.panels.flatMap((p) => p.groups.map((g) => g.colour)))].sort((a, b) => a - b);
    this.legend.replaceChildren(element("span", { className: "legend-name", textContent: factor.name }), ...codes.map((code) => {
      const svg = document.createElementNS(NS, "svg");
      svg.setAttribute("viewBox", "-7 -7 14 14"); svg.setAttribute("width", 14); svg.setAttribute("height", 14); svg.setAttribute("aria-hidden", "true");
      const path = document.createElementNS(NS, "path");
      path.setAttribute("d", shape(symbolOf(code))); path.setAttribute("fill", colourOf(code));
      svg.append(path);
      return element("span", { className: "entry" }, svg, levelText(factor, code));
    }));
  }

  fillNumbers(found) {
    const { data } = this, names = ["x", "colour"].filter((n) => found.chosen[n] >= 0);
    const text = (n) => (r) => levelText(data.factors[found.chosen[n]], r.group[n]);
    const value = (n) => (r) => { const f = data.factors[found.chosen[n]]; return f.numbers?.[r.group[n]] ?? levelText(f, r.group[n]); };
    const figure = (title, name, digits = format.digits) => ({ title, value: (r) => r.group[name], text: (r) => number(r.group[name], digits), number: true });
    const columns = [
      { title: "panel", value: (r) => r.panel.title, text: (r) => r.panel.title, wide: 40 },
      ...names.map((n) => ({ title: data.factors[found.chosen[n]].name, value: value(n), text: text(n), number: data.factors[found.chosen[n]].numbers !== null })),
      figure(this.state.ref ? "difference" : "mean", "estimate"), figure("95 % low", "low"), figure("95 % high", "high"), figure("s.e.", "se"), figure("df", "df", 1),
      ...(found.panels.some((p) => p.beside) ? [{ title: `of ${runs(data)}`, value: (r) => r.group.raw?.estimate ?? NaN, text: (r) => number(r.group.raw?.estimate ?? NaN), number: true }] : []),
      { title: runs(data), value: (r) => r.group.runs.size, text: (r) => String(r.group.runs.size), number: true },
      { title: "intervals", value: (r) => this.basis(r.panel), text: (r) => this.basis(r.panel) },
    ];
    this.numbers.fill(columns, found.panels.flatMap((panel) => panel.groups.map((group) => ({ panel, group }))));
  }

  cellColumns() {
    const { data } = this, width = data.tasks.length;
    const groups = [...new Map(data.tasks.map((t) => [t.group, t.title]))];
    for (const cell of this.cells.list) {
      cell.means = groups.map(([g]) => {
        const own = cell.runs.flatMap((r) => data.tasks.flatMap((t, i) => (t.group === g && !Number.isNaN(data.scores[r * width + i]) ? [data.scores[r * width + i]] : [])));
        return own.length ? own.reduce((a, b) => a + b) / own.length : NaN;
      });
    }
    return [
      ...data.factors.flatMap((f, k) => (f.column === "seed" || f.levels.length < 2 ? [] : [{ title: f.name, value: (c) => f.numbers?.[c.codes[k]] ?? levelText(f, c.codes[k]), text: (c) => levelText(f, c.codes[k]), number: f.numbers !== null, wide: 26 }])),
      { title: runs(data), value: (c) => c.runs.length, text: (c) => String(c.runs.length), number: true },
      ...groups.map(([, title], g) => ({ title, value: (c) => c.means[g], text: (c) => number(c.means[g], format.digits - 1), number: true })),
    ];
  }

  fillCells() {
    const tests = [...this.view.where].filter(([f]) => f !== this.cells.seed);
    const ids = this.picked && new Set([...this.picked.runs].map((r) => this.cells.cellOf[r]));
    const key = JSON.stringify([this.state.where, ids && [...ids]]);
    this.chip.hidden = !ids;
    if (ids) this.chip.replaceChildren(`Cells of ${describe(this.picked, this.view)} `, element("button", { type: "button", textContent: "Show all cells", onclick: () => { this.picked = null; this.fillCells(); } }));
    if (key === this.cellKey) return;
    this.cellKey = key;
    // A run of several names is in a filter by any of them.
    const kept = tests.length ? this.named(tests) : null;
    const rows = this.cells.list.filter((c) => (!ids || ids.has(c.id)) && (!kept || kept.has(c.id)));
    this.list.fill(this.list.columns, rows);
  }

  named(tests) {
    const found = new Set();
    for (let i = 0; i < this.data.run.length; i++) {
      if (tests.every(([f, codes]) => codes.has(this.data.factors[f].codes[i]))) found.add(this.cells.cellOf[this.data.run[i]]);
    }
    return found;
  }

  pick(group) {
    this.picked = group;
    this.fillCells();
    if (this.list.all.length === 1) this.drawer.show(this.list.all[0].runs[0]);
    else { this.chip.scrollIntoView({ block: "nearest" }); this.list.focusRow(0); }
  }
}

function shape(name) {
  return {
    circle: "M5,0A5,5 0 1 1 -5,0A5,5 0 1 1 5,0Z", square: "M-4.5,-4.5h9v9h-9Z", triangle: "M0,-5.5L5.2,4H-5.2Z", diamond2: "M0,-6L6,0L0,6L-6,0Z",
    star: "M0,-6L1.6,-2H5.8L2.4,.8L3.7,5L0,2.5L-3.7,5L-2.4,.8L-5.8,-2H-1.6Z", hexagon: "M0,-5.5L4.8,-2.7V2.7L0,5.5L-4.8,2.7V-2.7Z",
    wye: "M1.4,.8V6H-1.4V.8L-5.8,-1.8L-4.4,-4.2L0,-1.6L4.4,-4.2L5.8,-1.8Z", cross: "M-1.4,-5.6h2.8v4.2h4.2v2.8h-4.2v4.2h-2.8v-4.2h-4.2v-2.8h4.2Z",
  }[name];
}

async function start() {
  const root = document.getElementById("explorer");
  const packed = document.getElementById("explorer-data");
  if (!root || !packed) return;
  try {
    const data = await unpack(packed.textContent.trim());
    packed.textContent = "";
    globalThis.ablateExplorer = new Explorer(root, data); // for the console, and for tests
    root.dataset.ready = "yes";
    performance.mark("explorer-ready");
    if (decode(location.hash)) root.closest("section").scrollIntoView();
  } catch (error) {
    root.replaceChildren(element("p", { textContent: `The explorer could not start in this browser (${error.message}); the rest of the page needs nothing of it.` }));
  }
}

start();

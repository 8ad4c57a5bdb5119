// One cell: how it differs from its neighbour, its loss curves, its log, its items.

import { curves } from "./chart.js";
import { levelText, runs } from "./data.js";
import { Items } from "./items.js";
import { Table, element } from "./table.js";
import { number, signed } from "./view.js";

const WORST = 20; // items of a table
const NEAREST = 12; // neighbours to choose from

// The levels of a run's data set and base model, as one text.
function stratum({ data, cells }, run) {
  const { codes } = cells.list[cells.cellOf[run]];
  return data.strata.map((column) => codes[data.factors.findIndex((f) => f.column === column)]).join(",");
}

export class Drawer {
  constructor(context, onChange) {
    Object.assign(this, { context, onChange });
    this.items = context.data.items ? new Items(context.data.items, (run) => stratum(context, run)) : null;
    this.dialog = element("dialog", { className: "drawer", id: "cell-drawer", aria: { labelledby: "cell-title" } });
    this.dialog.addEventListener("close", () => { if (this.run !== null) { this.run = null; onChange(null, null); } });
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.run = null;
    document.body.append(this.dialog);
  }

  neighbours(cell) {
    const apart = (other) => other.codes.reduce((n, code, k) => n + (code !== cell.codes[k]), 0);
    const steps = (other) => other.codes.reduce((n, code, k) => n + Math.abs(code - cell.codes[k]), 0); // levels between
    return this.context.cells.list.filter((c) => c !== cell)
      .map((other) => ({ other, apart: apart(other), steps: steps(other) }))
      .sort((a, b) => a.apart - b.apart || a.steps - b.steps || a.other.id - b.other.id).slice(0, NEAREST);
  }

  // The run of a cell under a seed; its first where it has none under it.
  runOf(cell, seed) {
    return cell.runs.find((r) => this.context.cells.seedOf[r] === seed) ?? cell.runs[0];
  }

  show(run, beside = null) {
    const { cells } = this.context;
    const cell = cells.list[cells.cellOf[run]];
    const near = this.neighbours(cell);
    if (beside !== null && cells.cellOf[beside] !== cell.id && !near.some((n) => n.other.id === cells.cellOf[beside])) {
      near.push({ other: cells.list[cells.cellOf[beside]], apart: null });
    }
    const other = beside !== null && cells.cellOf[beside] !== cell.id ? beside : near.length ? this.runOf(near[0].other, cells.seedOf[run]) : null;
    this.run = run;
    this.beside = other;
    this.dialog.replaceChildren(...this.content(cell, near));
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
    this.onChange(run, beside === null ? null : other);
    this.draw();
  }

  close() { this.run = null; if (this.dialog.open) this.dialog.close(); }

  title(cell) {
    const { data } = this.context;
    const parts = data.factors.map((f, k) => [f, cell.codes[k]]).filter(([f]) => f.column !== "seed");
    return parts.map(([f, code]) => `${f.name} ${levelText(f, code)}`).join(" · ") || "the one cell";
  }

  difference(cell, other) {
    const { data } = this.context;
    return data.factors.filter((f, k) => f.column !== "seed" && cell.codes[k] !== other.codes[k])
      .map((f) => { const k = data.factors.indexOf(f); return `${f.name} ${levelText(f, other.codes[k])} instead of ${levelText(f, cell.codes[k])}`; }).join("; ");
  }

  content(cell, near) {
    const { data, cells } = this.context, { run, beside } = this;
    const own = element("select", { onchange: (e) => this.show(Number(e.target.value), this.beside) },
      ...cell.runs.map((r) => element("option", { value: r, selected: r === run, textContent: cells.seed < 0 ? data.keys[r] : `seed ${data.factors[cells.seed].levels[cells.seedOf[r]]} (${data.keys[r]})` })));
    const others = element("select", { onchange: (e) => this.show(run, Number(e.target.value)) },
      ...near.map(({ other }) => { const r = this.runOf(other, cells.seedOf[run]); return element("option", { value: r, selected: r === beside, textContent: this.difference(cell, other) || "the same factors" }); }));
    const close = element("button", { type: "button", className: "close", textContent: "Close", onclick: () => this.dialog.close() });
    return [
      element("div", { className: "drawer-head" }, element("h2", { id: "cell-title", textContent: this.title(cell) }), close),
      element("div", { className: "controls" }, element("label", {}, data.table ? "Row" : "Run", own), near.length ? element("label", {}, "Beside its neighbour with", others) : null),
      ...this.scoreBlock(run, beside), ...this.settingBlock(run, beside),
      this.curveBlock = element("div", { className: "curve-block" }),
      ...this.logBlock(run), ...this.itemBlock(run, beside),
    ];
  }

  scoreBlock(run, beside) {
    const { data } = this.context, width = data.tasks.length;
    const rows = data.tasks.map((t, i) => ({ t, here: data.scores[run * width + i], there: beside === null ? NaN : data.scores[beside * width + i] }))
      .filter((r) => !Number.isNaN(r.here) || !Number.isNaN(r.there));
    const columns = [
      { title: "task", value: (r) => r.t.name, text: (r) => r.t.name },
      { title: "metric", value: (r) => r.t.metric, text: (r) => r.t.metric },
      { title: `this ${runs(data, 1)}`, value: (r) => r.here, text: (r) => number(r.here), number: true },
      { title: "neighbour", value: (r) => r.there, text: (r) => number(r.there), number: true },
      { title: "difference", value: (r) => r.here - r.there, text: (r) => signed(r.here - r.there), number: true },
    ];
    return [new Table({ name: `scores-${data.keys[run]}`, caption: data.table ? "Score" : "Scores, in points", columns, rows }).node];
  }

  settingBlock(run, beside) {
    const { settings, keys } = this.context.data;
    if (!settings) return [];
    const here = settings.varied.map((s) => ({ path: s.path, here: s.levels[s.codes[run]], there: beside === null ? "" : s.levels[s.codes[beside]] }));
    const text = (v) => (v === "" ? "–" : v);
    const pair = [
      { title: "setting", value: (r) => r.path, text: (r) => r.path, wide: 44 },
      { title: "this run", value: (r) => r.here, text: (r) => text(r.here) },
      { title: "neighbour", value: (r) => r.there, text: (r) => text(r.there) },
    ];
    const apart = here.filter((r) => r.here !== r.there);
    const found = [];
    if (beside !== null) {
      found.push(apart.length ? new Table({ name: `difference-${keys[run]}`, caption: "Configuration: what differs", columns: pair, rows: apart, height: 8 }).node
        : element("p", { textContent: "Configuration: the two runs have the same settings." }));
    }
    const every = [...here.map((r) => ({ path: r.path, value: r.here })), ...settings.same.map(([path, value]) => ({ path, value }))].filter((r) => r.value !== "").sort((a, b) => (a.path < b.path ? -1 : 1));
    const details = element("details", { className: "more" }, element("summary", { textContent: `Every setting (${every.length})` }));
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount < 2) details.append(new Table({ name: `settings-${keys[run]}`, caption: "Configuration", columns: [{ title: "setting", value: (r) => r.path, text: (r) => r.path, wide: 44 }, { title: "value", value: (r) => r.value, text: (r) => r.value, wide: 60 }], rows: every }).node);
    });
    return [...found, details];
  }

  points(series, run) {
    const { curves: own } = this.context.data;
    this.starts ??= own.points.reduce((at, n) => [...at, at.at(-1) + n], [0]);
    const [from, to] = [this.starts[run], this.starts[run + 1]], found = [];
    for (let i = from; i < to; i++) {
      const v = series.values[i];
      if (v !== 65535) found.push([own.steps[i], series.low[run] + (v / 65534) * (series.high[run] - series.low[run])]);
    }
    return found;
  }

  draw() {
    const { data, cells } = this.context, { run, beside } = this;
    if (run === null || !data.curves) return;
    const width = Math.min(760, this.dialog.clientWidth - 48);
    const blocks = data.curves.series.map((series) => {
      const list = cells.list[cells.cellOf[run]].runs.filter((r) => r !== run).map((r) => ({ points: this.points(series, r), colour: "var(--c0)", faint: true }));
      if (beside !== null) list.push({ points: this.points(series, beside), colour: "var(--c1)", faint: false });
      list.push({ points: this.points(series, run), colour: "var(--c0)", faint: false });
      if (!list.some((s) => s.points.length)) return null;
      const svg = curves(list, width, series.title);
      svg.setAttribute("role", "img");
      const last = this.points(series, run).at(-1);
      svg.setAttribute("aria-label", `${series.title} over steps${last ? `; this run ends at ${number(last[1], 3)}` : ""}`);
      return element("figure", {}, svg);
    });
    const legend = element("p", { className: "legend-line" }, element("span", { className: "swatch c0" }), " this run", element("span", { className: "swatch c0 faint" }), " other seeds of its cell", beside === null ? null : element("span", { className: "swatch c1" }), beside === null ? null : " neighbour");
    this.curveBlock.replaceChildren(element("h3", { textContent: "Loss" }), legend, ...blocks.filter(Boolean));
  }

  logBlock(run) {
    const log = this.context.data.logs?.[run];
    if (!log) return [];
    return [element("h3", { textContent: "Log: its last lines" }), element("pre", { tabIndex: 0, textContent: log, aria: { label: "last lines of the log" } }),
      element("p", { className: "caption", textContent: `All of it: cells/${this.context.data.keys[run]}/log.txt in the folder of the results.` })];
  }

  itemBlock(run, beside) {
    if (!this.items) return [element("p", { className: "caption", textContent: "Items: their scores did not lie beside the table." })];
    const row = this.items.rowOf.get(run), other = beside === null ? undefined : this.items.rowOf.get(beside);
    if (row === undefined) return [element("p", { className: "caption", textContent: "Items: this run has none." })];
    const place = element("div");
    const choice = element("select", { onchange: () => this.fillItems(place, row, other, Number(choice.value)) }, ...this.items.tasks.map((t, k) => element("option", { value: k, textContent: t.name })));
    this.fillItems(place, row, other, 0);
    return [element("h3", { textContent: "Items" }), element("div", { className: "controls" }, element("label", {}, "Task", choice)), place];
  }

  fillItems(place, row, other, k) {
    const { items } = this, { data } = this.context, task = items.tasks[k], key = this.context.data.keys[this.run];
    const gold = (r) => items.texts[task.gold[r.i]] ?? "";
    const shown = (value) => (value === null ? "not kept here" : value);
    const column = (title, value, wide) => ({ title, value: (r) => value(r) ?? "", text: (r) => shown(value(r)), wide });
    const score = (title, value) => ({ title, value, text: (r) => number(value(r), task.bits ? 0 : 1), number: true });
    const base = [{ title: "item", value: (r) => task.doc[r.i], text: (r) => String(task.doc[r.i]), number: true }];
    if (task.prompt) base.push(column("prompt", (r) => items.texts[task.prompt[r.i]] ?? "", 48));
    base.push(column("right answer", gold, 26), column("answer here", (r) => items.answer(task, row, r.i), 30));
    const tables = [new Table({ name: `worst-${task.name}-${key}`, caption: "Worst items: below most other runs", height: 8, rows: items.worst(task, row, WORST),
      columns: [...base, score("score", (r) => items.score(task, row, r.i)), score(data.strata.length ? "mean of its kind" : "mean of all runs", (r) => items.mean(task, row)[r.i])] }).node];
    let counts = "";
    if (other !== undefined) {
      const flipped = items.flipped(task, row, other);
      const lost = flipped.filter((f) => f.apart < 0).length;
      counts = `${flipped.length} of ${task.size} items differ from the neighbour: ${flipped.length - lost} better here, ${lost} worse.`;
      tables.push(new Table({ name: `flipped-${task.name}-${key}`, caption: "Flipped items: beside the neighbour", height: 8, rows: flipped,
        columns: [...base, column("answer of neighbour", (r) => items.answer(task, other, r.i), 30), score("score", (r) => items.score(task, row, r.i)), score("of neighbour", (r) => items.score(task, other, r.i))] }).node);
    }
    const some = task.size < task.of ? ` Of its ${task.of.toLocaleString("en")} items, the ${task.size.toLocaleString("en")} on which runs differ most.` : "";
    const prompts = task.prompt ? "" : " The prompts: ablate report RESULTS --prompts.";
    const kind = data.strata.length ? " Its kind: all runs of its data set and base model." : "";
    place.replaceChildren(...(counts ? [element("p", { textContent: counts })] : []), ...tables,
      element("p", { className: "caption", textContent: `Answers of ${items.read} of ${items.rowOf.size} runs are in this page, each for its worst and its flipped items.${some}${kind} Every item and answer: cells/${key}/items.parquet in the folder of the results.${prompts}` }));
  }
}

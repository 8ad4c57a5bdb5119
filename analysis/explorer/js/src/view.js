// From the state to what is drawn: panels of groups with their estimates.

import { levelText } from "./data.js";
import { rawDifference, rawMeans } from "./model.js";
import { referenceOf } from "./state.js";

// What is scored in a view: groups of tasks, which have models, or tasks one by one.
function outcomes(state, data) {
  const [kind, name] = state.scores.split(/:(.*)/s);
  const groups = [...new Set(data.tasks.map((t) => t.group))];
  const group = (g) => ({
    group: g, title: data.tasks.find((t) => t.group === g).title,
    tasks: data.tasks.flatMap((t, i) => (t.group === g ? [i] : [])),
  });
  const task = (i) => ({ group: null, title: data.tasks[i].name, tasks: [i] });
  if (kind === "kinds") return groups.map(group);
  if (kind === "kind") return [group(name)];
  if (kind === "task") return [task(data.tasks.findIndex((t) => t.name === name))];
  return data.tasks.map((_, i) => task(i));
}

// Names by the levels of data set and base model, of which each combination has models of its own.
function strata(data, where) {
  const found = new Map();
  const own = data.strata.map((column) => data.factors.findIndex((f) => f.column === column));
  for (let i = 0; i < data.run.length; i++) {
    const codes = own.map((f) => data.factors[f].codes[i]);
    if (own.some((f, k) => where.has(f) && !where.get(f).has(codes[k]))) continue;
    const key = codes.join(",");
    if (!found.has(key)) found.set(key, { factors: own, codes, names: [] });
    found.get(key).names.push(i);
  }
  return [...found.values()];
}

const modelOf = (models, data, stratum, group) => models.find((m) => m.labels.task_group === group
  && stratum.factors.every((f, k) => m.labels[data.factors[f].column] === data.factors[f].levels[stratum.codes[k]]));

// Why a view's intervals are not a model's; nothing where they are.
function objection(data, model, outcome, factors, where) {
  if (!outcome.group) return "single tasks: models are of groups of tasks";
  if (!model) return data.joint ? "one model of all scores was fitted, not one of each panel" : "no model could be fitted here";
  if (!model.fit) return "the model's formula has a function of several columns";
  const away = [...new Set([...factors, ...where.keys()])].find((f) => !model.holds(f));
  return away === undefined ? "" : `the model does not hold ${data.factors[away].name}`;
}

export function view(state, context) {
  const { data, cells, models } = context;
  const place = (column) => data.factors.findIndex((f) => f.column === column);
  const where = new Map(Object.entries(state.where).map(([column, levels]) => {
    const f = place(column);
    return [f, new Set(levels.map((level) => data.factors[f].levels.indexOf(level)))];
  }));
  const chosen = { x: place(state.x), colour: place(state.colour), panel: place(state.panel) };
  const factors = Object.values(chosen).filter((f) => f >= 0);
  const reference = referenceOf(state, data);
  const panels = new Map();
  for (const outcome of outcomes(state, data)) {
    for (const stratum of strata(data, where)) {
      const inside = new Map([...where].filter(([f]) => !stratum.factors.includes(f)));
      const of = factors.filter((f) => !stratum.factors.includes(f));
      const model = outcome.group && modelOf(models, data, stratum, outcome.group);
      const why = objection(data, model, outcome, of, inside);
      const groups = why ? rawMeans(data, cells, stratum.names, of, inside, outcome.tasks) : model.means(of, inside);
      const shown = new Set([...factors, ...inside.keys()]);
      const about = (list) => list.filter((c) => c.factors.some((f) => shown.has(f)));
      const range = rangeOf(data, outcome.tasks), form = why ? [] : about(model.own.cautions);
      const told = [...form, ...about(data.warnings)].map((c) => c.text);
      // Where the model's form is in doubt the means of the same runs stand beside its own.
      const doubted = !why && (form.length || groups.some((g) => beyond(g.estimate, range)));
      const plain = new Map(doubted ? rawMeans(data, cells, model.own.names, of, inside, outcome.tasks).map((g) => [g.key, g]) : []);
      for (const group of groups) {
        const code = (f) => {
          const s = stratum.factors.indexOf(f);
          return s >= 0 ? stratum.codes[s] : f >= 0 ? group.codes[of.indexOf(f)] : -1;
        };
        const apart = stratum.factors.filter((f) => !factors.includes(f) && data.factors[f].levels.length > 1);
        const titles = [...apart.map((f) => levelText(data.factors[f], code(f))), outcome.title];
        if (chosen.panel >= 0) titles.push(`${data.factors[chosen.panel].name} ${levelText(data.factors[chosen.panel], code(chosen.panel))}`);
        const title = titles.join(" · ");
        if (!panels.has(title)) panels.set(title, { title, why, cautions: told, range, order: [...apart.map(code), outcome.tasks[0], code(chosen.panel)], groups: [], status: why ? "" : model.own.status, tasks: outcome.tasks, outside: why ? 0 : outside(data, stratum.names, inside, model) });
        const panel = panels.get(title);
        panel.why ||= why;
        panel.groups.push({ ...group, raw: plain.get(group.key) ?? null, model: why ? null : model, x: code(chosen.x), colour: code(chosen.colour), code });
      }
    }
  }
  const list = [...panels.values()].sort((a, b) => compareLists(a.order, b.order));
  for (const panel of list) {
    const far = panel.why ? [] : panel.groups.filter((g) => beyond(g.estimate, panel.range));
    if (far.length) panel.cautions = [`${far.length} of ${panel.groups.length} means ${far.length === 1 ? "is" : "are"} beyond ${panel.range[0]} to ${panel.range[1]} points, where no score can be: the model does not hold there.`, ...panel.cautions];
    panel.beside = panel.groups.some((g) => g.raw);
    panel.groups = reference ? differences(panel, reference, chosen, data) : panel.groups;
    panel.groups.sort((a, b) => a.x - b.x || a.colour - b.colour);
  }
  return { panels: list, chosen, reference, where, data };
}

// The scores that there can be of some tasks, in points; null where one of them has no bound.
function rangeOf(data, tasks) {
  const ranges = tasks.map((t) => data.tasks[t].range);
  return ranges.includes(null) ? null : [Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))];
}

const beyond = (value, range) => range !== null && (value < range[0] || value > range[1]);

// How many runs of a stratum a model was not fitted to.
function outside(data, names, where, model) {
  const fitted = new Set(model.own.runs), found = new Set();
  for (const i of names) {
    if (!fitted.has(data.run[i]) && [...where].every(([f, codes]) => codes.has(data.factors[f].codes[i]))) found.add(data.run[i]);
  }
  return found.size;
}

function compareLists(a, b) {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
}

// Whether the model is linear on another scale than the score's.
const linked = (data) => ![undefined, "identity"].includes(data.table?.scale);

// Every group less the one that has the reference's level and is alike in all else.
function differences(panel, reference, chosen, data) {
  const other = reference.factor === chosen.x ? "colour" : "x";
  const axis = other === "x" ? "colour" : "x";
  return panel.groups.filter((g) => g[axis] !== reference.code).map((group) => {
    const base = panel.groups.find((g) => g[axis] === reference.code && g[other] === group[other]);
    const nothing = { estimate: NaN, se: NaN, df: NaN, low: NaN, high: NaN };
    if (!base || group.model !== base.model) return { ...group, raw: null, ...nothing };
    // The model's difference may be on another scale than the scores.
    const raw = group.raw && base.raw && !linked(data) ? rawDifference(group.raw, base.raw) : null;
    return { ...group, raw, ...(group.model ? group.model.difference(group, base) : rawDifference(group, base)) };
  });
}

// Decimals of a score, of the page's one explorer: two of points. Smaller scores than this many
// decimals tell apart are written with a power of ten.
export const format = { digits: 2 };
const MOST_DIGITS = 8;

export const signed = (value, digits = format.digits) => number(value, digits, true);

export function number(value, digits = format.digits, plus = false) {
  if (!Number.isFinite(value)) return value === Infinity ? "∞" : "–";
  const power = format.digits > MOST_DIGITS && digits >= format.digits - 2 && value !== 0; // not degrees of freedom
  const text = power ? Math.abs(value).toExponential(3) : Math.abs(value).toFixed(Math.max(digits, 0));
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : plus ? "+" : "") + text;
}

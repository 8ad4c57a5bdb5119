// Means of groups with their intervals: from a panel's model where it holds the chosen factors, else
// of the runs themselves. The same as analysis/explorer/means.py, which the tests hold it against.

import { critical } from "./student.js";

function square(lower, size, matrices = 1) {
  const found = [];
  let at = 0;
  for (let k = 0; k < matrices; k++) {
    const full = new Float64Array(size * size);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j <= i; j++) full[i * size + j] = full[j * size + i] = lower[at++];
    }
    found.push(full);
  }
  return found;
}

function form(l, matrix) {
  const size = l.length;
  let sum = 0;
  for (let i = 0; i < size; i++) {
    if (l[i] === 0) continue;
    let row = 0;
    for (let j = 0; j < size; j++) row += matrix[i * size + j] * l[j];
    sum += l[i] * row;
  }
  return sum;
}

// How to go back from a model's linear scale to the score's, as analysis/inference/scale.py.
const power = (base) => ({ inverse: (x) => base ** x, slope: (x) => Math.log(base) * base ** x });
const expit = (x) => 1 / (1 + Math.exp(-x));
const SCALES = {
  logit: { inverse: expit, slope: (x) => expit(x) * expit(-x) }, log: power(Math.E), log2: power(2), log10: power(10),
  sqrt: { inverse: (x) => x ** 2, slope: (x) => 2 * x },
};

const NOTHING = { estimate: NaN, se: NaN, df: NaN, low: NaN, high: NaN };

function interval(estimate, se, df) {
  const half = se === 0 ? 0 : critical(df) * se;
  return { estimate, se, df, low: estimate - half, high: estimate + half };
}

// Which of a panel's names have the levels that `where` (factor -> set of codes) allows.
function allowed(data, members, where) {
  const tests = [...where].map(([f, codes]) => [data.factors[f].codes, codes]);
  return Array.from(members).filter((i) => tests.every(([own, codes]) => codes.has(own[i])));
}

// The groups of some names: one for every combination of levels of the factors `of` that is there.
function grouped(data, names, of) {
  const groups = new Map();
  for (const i of names) {
    const codes = of.map((f) => data.factors[f].codes[i]);
    const key = codes.join(",");
    if (!groups.has(key)) groups.set(key, { key, codes, runs: new Set() });
    groups.get(key).runs.add(data.run[i]);
  }
  return [...groups.values()];
}

export class Panel {
  constructor(data, own) {
    Object.assign(this, { data, own, labels: own.labels });
    this.fit = own.fit && this.prepared(own.fit);
  }

  prepared(fit) {
    const size = fit.coefficients.length;
    const parameters = Math.round(Math.sqrt(fit.phi.length));
    const variables = fit.variables.map((v) => {
      const map = new Map();
      this.own.names.forEach((name, i) => {
        map.set(v.by.map((f) => this.data.factors[f].codes[name]).join(","), v.codes[i]);
      });
      return { ...v, map };
    });
    const pairs = this.data.together.map(([a, b]) => {
      const codes = (f, i) => this.data.factors[f].codes[i];
      return [a, b, new Set(Array.from(this.own.names, (i) => `${codes(a, i)},${codes(b, i)}`))];
    });
    return {
      ...fit, size, variables, pairs, count: parameters,
      covariance: square(fit.covariance, size)[0], unadjusted: square(fit.unadjusted, size)[0],
      jacobian: square(fit.jacobian, size, parameters),
    };
  }

  // Whether each level of factor g has one level of factor f among the panel's names.
  follows(f, g) {
    const seen = new Map(), [a, b] = [this.data.factors[f].codes, this.data.factors[g].codes];
    return Array.from(this.own.names).every((i) => {
      if (!seen.has(b[i])) seen.set(b[i], a[i]);
      return seen.get(b[i]) === a[i];
    });
  }

  varies(f) {
    const own = this.data.factors[f].codes, first = own[this.own.names[0]];
    return Array.from(this.own.names).some((i) => own[i] !== first);
  }

  // Whether the model says what changes with a factor.
  holds(f) {
    if (!this.fit) return false;
    if (!this.varies(f)) return true;
    const used = new Set(this.fit.variables.flatMap((v) => v.by));
    return used.has(f) || [...used].some((g) => this.follows(f, g));
  }

  contrast(l) {
    const fit = this.fit;
    if (!l || l.some(Number.isNaN)) return NOTHING;
    let estimate = 0;
    for (let i = 0; i < fit.size; i++) estimate += l[i] * fit.coefficients[i];
    const se = Math.sqrt(Math.max(form(l, fit.covariance), 0));
    return interval(estimate, se, se === 0 ? Infinity : this.freedom(l));
  }

  freedom(l) {
    const fit = this.fit, variance = form(l, fit.unadjusted);
    if (!(variance > 0)) return Infinity;
    const share = fit.jacobian.map((j) => form(l, j) / variance);
    let spread = 0;
    for (let i = 0; i < fit.count; i++) {
      for (let j = 0; j < fit.count; j++) spread += share[i] * fit.phi[i * fit.count + j] * share[j];
    }
    return spread > 0 ? 2 / spread : Infinity;
  }

  // A contrast of all columns as one of the coefficients; null where the runs do not determine it.
  keptOf(lC) {
    const fit = this.fit;
    const l = Float64Array.from(fit.kept, (c) => lC[c]);
    for (let g = 0; g < fit.gone.length; g++) {
      let repeated = 0, size = 1 + Math.abs(lC[fit.gone[g]]);
      for (let b = 0; b < fit.size; b++) {
        const a = fit.repeats[b * fit.gone.length + g];
        repeated += l[b] * a;
        size += Math.abs(l[b] * a);
      }
      if (!(Math.abs(lC[fit.gone[g]] - repeated) <= fit.estimable * size)) return null;
    }
    return l;
  }

  // The marginal means of the groups that `of` makes, as analysis.explorer.means.marginal_means.
  means(of, where) {
    const { data, fit } = this;
    const names = allowed(data, this.own.names, where);
    const others = data.factors.map((_, f) => f).filter((f) => !of.includes(f));
    const conditions = new Map();
    for (const i of names) {
      const key = others.map((f) => data.factors[f].codes[i]).join(",");
      if (!conditions.has(key)) conditions.set(key, i);
    }
    const pairs = fit.pairs.filter(([a, b]) => of.includes(a) !== of.includes(b));
    const free = new Set([...of, ...where.keys()]);
    return grouped(data, names, of).map((group) => {
      const l = this.average(group, of, { conditions, pairs, free });
      return { ...group, l, ...this.onScore(this.contrast(l)) };
    });
  }

  average(group, of, { conditions, pairs, free }) {
    const { data, fit } = this, seen = new Set();
    const sum = new Float64Array(fit.scale.length);
    for (const i of conditions.values()) {
      const code = (f) => {
        const place = of.indexOf(f);
        return place < 0 ? data.factors[f].codes[i] : group.codes[place];
      };
      if (pairs.some(([a, b, known]) => !known.has(`${code(a)},${code(b)}`))) continue;
      // A covariate that is neither chosen nor filtered is at its mean.
      const held = (v) => v.held !== undefined && !v.by.some((f) => free.has(f));
      const values = fit.variables.map((v) => (held(v) ? v.held : v.map.get(v.by.map(code).join(","))));
      if (values.includes(undefined)) continue;
      const key = values.join(",");
      if (seen.has(key)) continue;
      seen.add(key);
      for (let c = 0; c < sum.length; c++) {
        let x = fit.scale[c];
        for (const [v, row] of fit.parts[c]) x *= fit.variables[v].table[row * fit.variables[v].size + values[v]];
        sum[c] += x;
      }
    }
    return seen.size ? this.keptOf(sum.map((x) => x / seen.size)) : null;
  }

  // On the scale that the model is linear on: of logits the logarithm of an odds ratio.
  difference(first, second) {
    if (!first.l || !second.l) return NOTHING;
    return this.contrast(first.l.map((x, i) => x - second.l[i]));
  }

  // A mean on the score's own scale: the ends of its interval are carried over as they are.
  onScore(found) {
    const scale = SCALES[this.data.table?.scale];
    if (!scale) return found;
    const { inverse, slope } = scale;
    return { ...found, estimate: inverse(found.estimate), se: found.se * Math.abs(slope(found.estimate)), low: inverse(found.low), high: inverse(found.high) };
  }
}

// --- means of runs, without a model ---------------------------------------------------------------

// One value a seed: the mean of its runs, each the mean of its scores on the tasks.
function bySeed(data, cells, runs, tasks) {
  const sums = new Map(), width = data.tasks.length;
  for (const r of runs) {
    const scores = tasks.map((t) => data.scores[r * width + t]).filter((s) => !Number.isNaN(s));
    if (!scores.length) continue;
    const own = sums.get(cells.seedOf[r]) ?? [0, 0];
    sums.set(cells.seedOf[r], [own[0] + scores.reduce((a, b) => a + b) / scores.length, own[1] + 1]);
  }
  return new Map([...sums].map(([seed, [sum, n]]) => [seed, sum / n]));
}

function ofSeeds(values) {
  const n = values.length;
  if (!n) return NOTHING;
  const mean = values.reduce((a, b) => a + b) / n;
  if (n < 2) return { ...NOTHING, estimate: mean };
  const squares = values.reduce((a, b) => a + (b - mean) ** 2, 0);
  return interval(mean, Math.sqrt(squares / (n - 1) / n), n - 1);
}

export function rawMeans(data, cells, members, of, where, tasks) {
  return grouped(data, allowed(data, members, where), of).map((group) => {
    const seeds = bySeed(data, cells, group.runs, tasks);
    return { ...group, seeds, ...ofSeeds([...seeds.values()]) };
  });
}

// The paired difference of two groups over the seeds that both have.
export function rawDifference(first, second) {
  const both = [...first.seeds.keys()].filter((s) => second.seeds.has(s));
  return ofSeeds(both.map((s) => first.seeds.get(s) - second.seeds.get(s)));
}

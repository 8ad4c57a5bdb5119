// The items of a study: scores of every run, and what some of them answered.

export class Items {
  // stratumOf: of every run of the page, what names its data set and base model.
  constructor(items, stratumOf) {
    this.stratumOf = Array.from(items.runs, (run) => stratumOf(run));
    this.rowOf = new Map(Array.from(items.runs, (run, row) => [run, row]));
    this.texts = items.texts;
    this.read = items.read;
    this.tasks = items.tasks.map((t) => ({ ...t, size: t.doc.length, width: Math.ceil(t.doc.length / 8) }));
  }

  // The score of an item in points; NaN where the run was not scored on it.
  score(task, row, i) {
    if (task.bits) return (task.bits[row * task.width + (i >> 3)] >> (7 - (i & 7))) & 1 ? 100 : 0;
    const byte = task.bytes[row * task.size + i];
    return byte === 255 ? NaN : task.low + (byte / 254) * (task.high - task.low || 1);
  }

  // The mean scores of the items over the runs of one data set and base model, that of a run.
  mean(task, of) {
    task.means ??= new Map();
    const own = this.stratumOf[of];
    if (!task.means.has(own)) {
      const sum = new Float64Array(task.size), count = new Float64Array(task.size);
      for (let row = 0; row < this.rowOf.size; row++) {
        if (this.stratumOf[row] !== own) continue;
        for (let i = 0; i < task.size; i++) {
          const s = this.score(task, row, i);
          if (!Number.isNaN(s)) { sum[i] += s; count[i] += 1; }
        }
      }
      task.means.set(own, sum.map((s, i) => s / count[i]));
    }
    return task.means.get(own);
  }

  answer(task, row, i) {
    if (!task.answers) {
      task.answers = new Map();
      for (let k = 0; k < task.answered.length; k += 3) {
        task.answers.set(`${task.answered[k]},${task.answered[k + 1]}`, task.answered[k + 2]);
      }
    }
    const place = task.answers.get(`${row},${i}`);
    return place === undefined ? null : this.texts[place];
  }

  // Items on which a run is furthest below that mean.
  worst(task, row, most) {
    const mean = this.mean(task, row);
    return [...Array(task.size).keys()]
      .map((i) => ({ i, below: this.score(task, row, i) - mean[i] }))
      .filter((d) => d.below < 0)
      .sort((a, b) => a.below - b.below || a.i - b.i)
      .slice(0, most);
  }

  // Items on which two runs differ, the largest difference first, then those that most runs differ on.
  flipped(task, row, other) {
    const mean = this.mean(task, row), middle = (task.low ?? 0) / 2 + (task.high ?? 100) / 2;
    return [...Array(task.size).keys()]
      .map((i) => ({ i, apart: this.score(task, row, i) - this.score(task, other, i) }))
      .filter((d) => d.apart)
      .sort((a, b) => Math.abs(b.apart) - Math.abs(a.apart) || Math.abs(mean[a.i] - middle) - Math.abs(mean[b.i] - middle) || a.i - b.i);
  }
}

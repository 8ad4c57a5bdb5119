// The data of the page: see analysis/explorer/packing.py for the format.

const KINDS = { u8: Uint8Array, u16: Uint16Array, i32: Int32Array, f32: Float32Array, f64: Float64Array };

export async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const size = new DataView(buffer).getUint32(0, true);
  const start = Math.ceil((4 + size) / 8) * 8;
  const head = new TextDecoder().decode(new Uint8Array(buffer, 4, size));
  return JSON.parse(head, (_, value) => {
    if (value === null || typeof value !== "object" || !Array.isArray(value.$)) return value;
    const [kind, place, count] = value.$;
    return new KINDS[kind](buffer, start + place, count);
  });
}

// Cells: what runs that differ in the seed alone have in common, over the first names of all runs.
export function cellsOf(data) {
  const seed = data.factors.findIndex((f) => f.column === "seed");
  const cells = new Map();
  const first = new Int32Array(data.keys.length).fill(-1);
  for (let i = 0; i < data.run.length; i++) if (first[data.run[i]] < 0) first[data.run[i]] = i;
  for (let r = 0; r < first.length; r++) {
    const codes = data.factors.map((f, k) => (k === seed ? 0 : f.codes[first[r]]));
    const key = codes.join(",");
    if (!cells.has(key)) cells.set(key, { id: cells.size, codes, runs: [] });
    cells.get(key).runs.push(r);
  }
  const list = [...cells.values()];
  const cellOf = new Int32Array(first.length);
  for (const cell of list) for (const r of cell.runs) cellOf[r] = cell.id;
  const seedOf = Array.from(first, (i) => (seed < 0 ? 0 : data.factors[seed].codes[i]));
  return { list, cellOf, seedOf, seed };
}

// What was scored, one or several: rows of a table from elsewhere, runs of a study.
export const runs = (data, count = 2) => `${data.table ? "row" : "run"}${count === 1 ? "" : "s"}`;

export const levelText = (factor, code) => factor.levels[code] === "" ? "none" : factor.levels[code];

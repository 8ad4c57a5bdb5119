// The state of the explorer in the address: #explore?x=plw&colour=masking&f.adapter=lora&f.adapter=full

export const ANCHOR = "explore";
// Levels by column, of no prototype: a column may be named "constructor".
export const byColumn = (levels = {}) => Object.assign(Object.create(null), levels);
const PLAIN = ["x", "colour", "panel", "scores", "show", "ref", "cell", "beside", "dots", "one"];

export function encode(state) {
  const query = new URLSearchParams();
  for (const name of PLAIN) if (state[name]) query.set(name, state[name]);
  for (const [column, levels] of Object.entries(state.where)) {
    for (const level of levels) query.append(`f.${column}`, level);
  }
  const text = query.toString();
  return `#${ANCHOR}${text ? `?${text}` : ""}`;
}

// null where the address is of another part of the page.
export function decode(hash) {
  const match = hash.match(new RegExp(`^#${ANCHOR}(?:\\?(.*))?$`));
  if (!match) return null;
  const state = { where: byColumn(), other: [] };
  for (const [name, value] of new URLSearchParams(match[1] ?? "")) {
    if (PLAIN.includes(name)) state[name] = value;
    else if (name.startsWith("f.")) (state.where[name.slice(2)] ??= []).push(value);
    else state.other.push(value ? `${name}=${value}` : name);
  }
  return state;
}

// What an address asks for that the page does not have, as it stands there; `state` is of `decode`.
export function unknown(state, data, defaults) {
  const found = valid(state, data, defaults);
  const lost = PLAIN.filter((name) => state[name] && found[name] !== state[name]).map((name) => `${name}=${state[name]}`);
  for (const [column, levels] of Object.entries(state.where)) {
    const factor = data.factors.find((f) => f.column === column);
    lost.push(...levels.filter((level) => !factor?.levels.includes(level)).map((level) => `f.${column}=${level}`));
  }
  return [...lost, ...state.other];
}

// A state with what the data know alone: an address may be of another study, or be typed by hand.
export function valid(state, data, defaults) {
  const columns = data.factors.map((f) => f.column);
  const { other, ...asked } = state;
  const found = { ...defaults, ...asked, where: byColumn() };
  for (const name of ["x", "colour", "panel"]) {
    if (found[name] === "none" || columns.includes(found[name])) continue;
    found[name] = defaults[name];
  }
  if (found.x === "none") found.x = defaults.x;
  for (const name of ["colour", "panel"]) if (found[name] === found.x) found[name] = "none";
  if (found.panel === found.colour) found.panel = "none";
  for (const [column, levels] of Object.entries(state.where ?? {})) {
    const factor = data.factors.find((f) => f.column === column);
    const known = factor ? levels.filter((level) => factor.levels.includes(level)) : [];
    if (known.length && known.length < factor.levels.length) found.where[column] = known;
  }
  const scores = ["kinds", "tasks", ...data.tasks.flatMap((t) => [`kind:${t.group}`, `task:${t.name}`])];
  if (!scores.includes(found.scores)) found.scores = defaults.scores;
  if (!["intervals", "heat"].includes(found.show)) found.show = defaults.show;
  if (found.ref && !referenceOf(found, data)) found.ref = "";
  for (const name of ["cell", "beside"]) if (found[name] && !data.keys.includes(found[name])) found[name] = "";
  for (const name of ["dots", "one"]) if (found[name] && found[name] !== "1") found[name] = "";
  return found;
}

// The level that others are compared with: { factor, code }, of x or of colour.
export function referenceOf(state, data) {
  const match = (state.ref ?? "").match(/^(x|colour):(.*)$/s);
  const factor = match && data.factors.findIndex((f) => f.column === state[match[1]]);
  if (!match || factor < 0) return null;
  const code = data.factors[factor].levels.indexOf(match[2]);
  return code < 0 ? null : { factor, code };
}

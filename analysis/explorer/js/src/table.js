// A table of any length: the rows in sight alone are in the page. Sorted by its heads, searched,
// walked by the keyboard, copied out as CSV (all digits) and LaTeX (as shown).

const ROW = 30; // pixels, as in the style sheet
const SEEN = 14; // rows of the frame at most
const BEYOND = 6; // rows above and below that are there already

const SIDES = 24; // pixels beside a cell's text, as in the style sheet, and one for rounding
const ARROW = 14; // of a head that sorts
const HEAD = 190; // of a head at most
const CHARACTER = 7.5; // of a text that is cut
const LONGEST = 5; // texts of a column that are measured: those with the most characters

let pen; // measures
const fonts = new Map();
// The pixels that a text takes in a table.
function drawnWidth(text, bold = false) {
  pen ??= document.createElement("canvas").getContext("2d");
  if (!fonts.has(bold)) {
    const size = 0.84 * parseFloat(getComputedStyle(document.documentElement).fontSize);
    fonts.set(bold, `${bold ? "600 " : ""}${size}px ${getComputedStyle(document.body).fontFamily}`);
  }
  pen.font = fonts.get(bold);
  return pen.measureText(text).width;
}

export function element(name, properties = {}, ...children) {
  const { aria = {}, data = {}, ...own } = properties;
  const found = Object.assign(document.createElement(name), own);
  for (const [k, v] of Object.entries(aria)) found.setAttribute(`aria-${k}`, v);
  Object.assign(found.dataset, data);
  found.append(...children.filter((c) => c !== null && c !== undefined));
  return found;
}

export function save(name, type, content) {
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const quoted = (value) => {
  const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text; // no formula of a spreadsheet
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

const TEX = { "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", $: "\\$", "#": "\\#", _: "\\_", "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "–": "--", "−": "$-$", "∞": "$\\infty$", "·": "$\\cdot$" };
export const escapeTex = (text) => String(text).replace(/[\\&%$#_{}~^<>|–−∞·]/g, (c) => TEX[c]);

export class Table {
  // columns: [{ title, value: row -> any, text: row -> string, number: bool, wide: characters }]
  constructor({ name, caption, columns, rows, onRow, height = SEEN }) {
    Object.assign(this, { name, caption, onRow, seen: height });
    this.sortBy = null; this.down = false; this.query = ""; this.focused = 0;
    this.count = element("span", { className: "count", role: "status" });
    this.search = element("input", { type: "search", placeholder: "Search", aria: { label: `Search: ${caption}` } });
    this.search.addEventListener("input", () => { this.query = this.search.value.trim().toLowerCase(); this.arrange(); });
    this.head = element("thead");
    this.body = element("tbody");
    this.table = element("table", { className: "virtual", aria: { label: caption } }, this.head, this.body);
    if (onRow) this.table.setAttribute("role", "grid");
    this.frame = element("div", { className: "scroll virtual-frame", tabIndex: onRow ? -1 : 0, role: "region", aria: { label: `${caption}, scrolls` } }, this.table);
    this.frame.addEventListener("scroll", () => this.paint());
    this.frame.addEventListener("keydown", (event) => this.key(event));
    this.tools = element("div", { className: "tools" },
      element("strong", { textContent: caption }), this.count, this.search,
      element("button", { type: "button", textContent: "CSV", onclick: () => save(`${name}.csv`, "text/csv", this.csv()), aria: { label: `CSV: ${caption}` } }),
      element("button", { type: "button", textContent: "LaTeX", onclick: () => save(`${name}.tex`, "text/plain", this.latex()), aria: { label: `LaTeX: ${caption}` } }));
    this.node = element("div", { className: "table-block" }, this.tools, this.frame);
    this.fill(columns, rows);
  }

  fill(columns, rows) {
    this.columns = columns;
    this.all = rows;
    if (this.sortBy !== null && this.sortBy >= columns.length) this.sortBy = null;
    this.head.replaceChildren(element("tr", { aria: { rowindex: 1 } }, ...columns.map((c, i) => {
      const button = element("button", { type: "button", textContent: c.title, onclick: () => this.sort(i) });
      return element("th", { scope: "col", className: c.number ? "num" : "txt", title: c.title }, button);
    })));
    this.widths();
    this.texts = null;
    this.arrange();
  }

  widths() {
    const sample = this.all.length > 400 ? this.all.filter((_, i) => i % Math.ceil(this.all.length / 400) === 0) : this.all;
    const longest = (c) => sample.map((r) => c.text(r)).sort((a, b) => b.length - a.length).slice(0, LONGEST);
    const wide = this.columns.map((c) => Math.ceil(SIDES + Math.min((c.wide ?? 30) * CHARACTER, Math.max(
      Math.min(drawnWidth(c.title, true) + ARROW, HEAD), ...longest(c).map((text) => drawnWidth(text))))));
    this.table.querySelector("colgroup")?.remove();
    this.table.prepend(element("colgroup", {}, ...wide.map((w) => { const col = element("col"); col.style.width = `${w}px`; return col; })));
    this.table.style.minWidth = `${wide.reduce((a, b) => a + b, 0)}px`;
  }

  sort(i) {
    this.down = this.sortBy === i ? !this.down : false;
    this.sortBy = i;
    this.arrange();
  }

  arrange() {
    let rows = this.all;
    if (this.query) {
      this.texts ??= new Map(this.all.map((r) => [r, this.columns.map((c) => c.text(r)).join("\u0001").toLowerCase()]));
      const words = this.query.split(/\s+/);
      rows = rows.filter((r) => words.every((w) => this.texts.get(r).includes(w)));
    }
    if (this.sortBy !== null) {
      const c = this.columns[this.sortBy], sign = this.down ? -1 : 1;
      const missing = (v) => v === null || v === undefined || v === "" || Number.isNaN(v);
      rows = [...rows].sort((a, b) => {
        const [u, v] = [c.value(a), c.value(b)];
        if (missing(u) || missing(v)) return missing(u) - missing(v); // at the end either way
        return sign * (typeof u === "number" && typeof v === "number" ? u - v : String(u).localeCompare(String(v), "en", { numeric: true }));
      });
    }
    this.rows = rows;
    this.focused = 0;
    [...this.head.rows[0].cells].forEach((th, i) => {
      if (i === this.sortBy) th.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const n = this.all.length;
    this.count.textContent = rows.length === n ? `${n.toLocaleString("en")} row${n === 1 ? "" : "s"}` : `${rows.length.toLocaleString("en")} of ${n.toLocaleString("en")} rows`;
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.frame.style.height = `${(Math.min(rows.length, this.seen) + 1) * ROW + 14}px`;
    this.frame.scrollTop = 0;
    this.paint(true);
  }

  paint(anew = false) {
    const top = Math.max(0, Math.floor(this.frame.scrollTop / ROW) - BEYOND);
    const end = Math.min(this.rows.length, top + this.seen + 2 * BEYOND);
    if (!anew && this.top === top && this.end === end) return;
    this.top = top; this.end = end;
    const space = (n) => { const tr = element("tr", { className: "space", aria: { hidden: "true" } }, element("td", { colSpan: this.columns.length })); tr.style.height = `${n * ROW}px`; return tr; };
    const shown = this.rows.slice(top, end).map((row, k) => this.row(row, top + k));
    const active = this.body.contains(document.activeElement);
    this.body.replaceChildren(...(top ? [space(top)] : []), ...shown, ...(end < this.rows.length ? [space(this.rows.length - end)] : []));
    if (active) this.focusRow(this.focused, false);
  }

  row(row, i) {
    const tr = element("tr", { aria: { rowindex: i + 2 } }, ...this.columns.map((c) => {
      const text = c.text(row);
      return element("td", { className: c.number ? "num" : "txt", textContent: text, title: text.length > 24 ? text : "" });
    }));
    if (this.onRow) {
      tr.tabIndex = i === this.focused ? 0 : -1;
      tr.dataset.row = i;
      tr.classList.add("opens");
      tr.addEventListener("click", () => { this.focused = i; this.onRow(row, tr); });
    }
    return tr;
  }

  key(event) {
    if (!this.onRow || event.target.dataset.row === undefined) return;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: this.seen, PageUp: -this.seen, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onRow(this.rows[this.focused], event.target);
    } else if (event.key in moves) {
      event.preventDefault();
      this.focusRow(Math.max(0, Math.min(this.rows.length - 1, this.focused + moves[event.key])));
    }
  }

  focusRow(i, scroll = true) {
    this.focused = i;
    if (scroll) {
      const place = i * ROW, inside = this.frame.clientHeight - 2 * ROW;
      if (place < this.frame.scrollTop) this.frame.scrollTop = place;
      else if (place > this.frame.scrollTop + inside) this.frame.scrollTop = place - inside;
      this.paint(true);
    }
    for (const tr of this.body.querySelectorAll("tr[data-row]")) tr.tabIndex = Number(tr.dataset.row) === i ? 0 : -1;
    this.body.querySelector(`tr[data-row="${i}"]`)?.focus({ preventScroll: true });
  }

  csv() {
    const lines = [this.columns.map((c) => quoted(c.title)), ...this.rows.map((r) => this.columns.map((c) => quoted(c.value(r))))];
    return lines.map((l) => l.join(",")).join("\n") + "\n";
  }

  latex() {
    const line = (texts) => `${texts.map(escapeTex).join(" & ")} \\\\`;
    return ["\\begin{table}[t]", "\\centering\\small", `\\caption{${escapeTex(this.caption)}}`, `\\label{tab:${this.name}}`,
      `\\begin{tabular}{${this.columns.map((c) => (c.number ? "r" : "l")).join("")}}`, "\\toprule",
      line(this.columns.map((c) => c.title)), "\\midrule", ...this.rows.map((r) => line(this.columns.map((c) => c.text(r)))),
      "\\bottomrule", "\\end{tabular}", "\\end{table}", ""].join("\n");
  }
}

// A click on a column's head sorts its table; without scripts the page reads the same.
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replace(/−/g, "-").replace(/,/g, ""));
  return text === "–" ? [2, 0] : Number.isNaN(number) ? [1, text] : [0, number];
}
function compare(a, b) {
  if (a[0] !== b[0]) return a[0] - b[0];
  return a[0] === 1 ? a[1].localeCompare(b[1]) : a[1] - b[1];
}
function sort(head, column) {
  const table = head.closest("table");
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort(
    (a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
  body.append(...rows);
}
for (const head of document.querySelectorAll("details.table th")) {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  button.onclick = () => sort(head, [...head.parentNode.children].indexOf(head));
  head.replaceChildren(button);
}

// Long tables: a search field, and what is shown as CSV and LaTeX where the page lies alone.
const QUOTE = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const TEX = { "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", $: "\\$", "#": "\\#", _: "\\_", "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$" };
const tex = (text) => text.replace(/[\\&%$#_{}~^−]/g, (c) => TEX[c]);
const texts = (table) => [...table.rows].filter((r) => !r.hidden).map((r) => [...r.cells].map((c) => c.textContent.trim()));
function latex(table) {
  const [head, ...rows] = texts(table).map((row) => `${row.map(tex).join(" & ")} \\\\`);
  const columns = [...table.rows[0].cells].map((c) => (c.classList.contains("num") ? "r" : "l")).join("");
  return `\\begin{tabular}{${columns}}\n\\toprule\n${head}\n\\midrule\n${rows.join("\n")}\n\\bottomrule\n\\end{tabular}\n`;
}
function saved(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  link.download = name;
  link.click();
}
for (const fold of document.querySelectorAll("details.table")) {
  const table = fold.querySelector("table"), rows = [...table.tBodies[0].rows], name = fold.id.replace("table-", "");
  if (rows.length <= 10) continue;
  const bar = document.createElement("div");
  bar.className = "tools";
  const find = document.createElement("input");
  Object.assign(find, { type: "search", placeholder: "Search", className: "find" });
  find.setAttribute("aria-label", `Search table ${name}`);
  find.oninput = () => {
    const words = find.value.trim().toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((w) => row.textContent.toLowerCase().includes(w));
  };
  bar.append(find);
  for (const [label, file, made] of [["CSV, as shown", "csv", () => texts(table).map((r) => r.map(QUOTE).join(",")).join("\n")], ["LaTeX, as shown", "tex", () => latex(table)]]) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: label, onclick: () => saved(`${name}.${file}`, made()) });
    button.setAttribute("aria-label", `${label}: table ${name}`);
    bar.append(button);
  }
  fold.querySelector(".scroll").before(bar);
}

// Folded sections: a link opens what it points into, one button all of them, and so does printing.
const folds = () => [...document.querySelectorAll("details")];
function reveal(target) {
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  const own = target.querySelector(":scope > details.part");
  if (own) own.open = true;
}
function named(text) {
  try { return decodeURIComponent(text); } catch { return text; } // a "%" that stands for no character
}
function follow() {
  const target = document.getElementById(named(location.hash.slice(1)));
  if (target) { reveal(target); target.scrollIntoView(); }
}
addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.getAttribute("href") === location.hash) follow();
});
follow();
let closed = [];
addEventListener("beforeprint", () => {
  closed = folds().filter((one) => !one.open);
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
const all = document.createElement("button");
all.className = "all";
all.type = "button";
const label = () => { all.textContent = all.dataset.open ? "Close all sections" : "Open all sections"; };
all.onclick = () => {
  const parts = document.querySelectorAll("details.part");
  if (all.dataset.open) delete all.dataset.open; else all.dataset.open = "yes";
  for (const one of parts) one.open = Boolean(all.dataset.open);
  label();
};
label();
document.querySelector("nav").append(all);
// Tables and figures wider than their frame say so.
function cue() {
  for (const frame of document.querySelectorAll(".scroll, .plot, .formula")) {
    frame.classList.toggle("wide", frame.scrollWidth > frame.clientWidth + 1);
  }
}
addEventListener("resize", cue);
document.addEventListener("toggle", cue, true);
// What the explorer draws later, too; asked once a frame however much was drawn.
let due = 0;
new MutationObserver(() => { due ||= requestAnimationFrame(() => { due = 0; cue(); }); })
  .observe(document.body, { childList: true, subtree: true });
cue();

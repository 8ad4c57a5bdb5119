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
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  button.onclick = () => sort(head, [...head.parentNode.children].indexOf(head));
  head.replaceChildren(button);
}

// Folded sections: a link opens what it points into, one button all of them, and so does printing.
const folds = () => [...document.querySelectorAll("details")];
function reveal(target) {
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  const own = target.querySelector(":scope > details.part");
  if (own) own.open = true;
}
function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
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
cue();

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

"""A table as the report shows it, as CSV with every digit and as LaTeX for a paper.

The page and the LaTeX show rounded numbers, the CSV the whole ones: `shown` is the one place where
a number becomes text, so that the three cannot disagree.
"""

import html
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.engine.ties import settled
from analysis.table.factors import is_number

MISSING = "–"
P_VALUE = "p"  # the format of p-values
MOST_DECIMALS = 12
SIGNIFICANT = "#.3g"  # three digits, zeros among them; whole numbers from 1,000
LONG_TEXT = 34  # characters; a column of longer texts may wrap
MOST_TEXT = 400  # characters of a cell that the page shows
MOST_ROWS = 1000  # that the page shows; the files hold all
TONES = {  # verdicts that are marked in the page
    "supported": "clear", "supported in part": "clear", "distinguishable": "clear",
    "an effect": "clear", "interior optimum": "clear", "contradicted": "warn",
    "contradicted in part": "warn", "not distinguishable": "", "undecided": "", "mixed": "",
    "not testable here": "", "not identified": "", "no effect beyond the margin": "",
    "a small effect": "", "no interior optimum": "",
}  # fmt: skip
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "−": "$-$",
    "±": r"$\pm$", "×": r"$\times$", "²": r"$^2$", "≥": r"$\geq$", "≤": r"$\leq$", "σ": r"$\sigma$",
    "Δ": r"$\Delta$", "∞": r"$\infty$", "→": r"$\to$", "·": r"$\cdot$", "₂": r"$_2$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    name: str  # of the files
    title: str
    frame: pd.DataFrame
    note: str = ""
    heads: Mapping[str, str] = field(default_factory=dict)  # column -> heading shown
    formats: Mapping[str, str] = field(default_factory=dict)  # column -> format spec

    def heading(self, column: str) -> str:
        """Return how `column` is called in the report."""
        return self.heads.get(column, column.replace("_", " "))

    def texts(self) -> list[list[str]]:
        """Return the body as the report shows it, row by row."""
        rows = self.frame.to_dict("records")
        return [
            [shown(row[c], self.formats.get(str(c), "")) for c in self.frame.columns]
            for row in rows
        ]


def shown(value: Any, spec: str = "") -> str:
    """Return `value` as text: a missing value as a dash, a number by `spec` or to 3 digits."""
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or (isinstance(value, numbers.Real) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if isinstance(value, numbers.Real):
        number = settled(float(value))
        return _p_value(number) if spec == P_VALUE else _number(number, spec)
    return str(value)


def alike(values: Sequence[float]) -> list[str]:
    """Return an estimate and the ends of its interval with the same decimals, three digits of the
    largest and at least two of what lies between them.
    """
    known = [abs(v) for v in values if math.isfinite(v) and v]
    width = max(values) - min(values)
    digits = [2 - math.floor(math.log10(max(known)))] if known else [2]
    digits += [1 - math.floor(math.log10(width))] if known and 0 < width < math.inf else []
    decimals = min(max(0, *digits), MOST_DECIMALS)
    return [shown(value, f",.{decimals}f") for value in values]


def p_text(p: float) -> str:
    """Return a p-value in a sentence: "p = 0.031", "p < 0.001"."""
    return f"p = {shown(p, P_VALUE)}".replace("= <", "< ")


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float, spec: str) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if spec == SIGNIFICANT and abs(value) >= 999.5:
        text = f"{value:,.0f}"
    elif spec:
        text = format(value, spec).removesuffix(".")
    elif value == int(value) and abs(value) < 1e15:
        text = str(int(value))
    else:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if float(text.replace(",", "").rstrip("%")) == 0:  # no minus before a rounded zero
        text = text.lstrip("-")
    return text.replace("-", "−", 1) if text.startswith("-") else text


def latex(table: Table) -> str:
    """Return the table in LaTeX; it needs `\\usepackage{booktabs}` and nothing else."""
    columns = list(table.frame.columns)
    align = "".join("r" if is_number(table.frame[c]) else "l" for c in columns)
    head = " & ".join(escape_tex(table.heading(str(c))) for c in columns) + r" \\"
    body = [" & ".join(escape_tex(text) for text in row) + r" \\" for row in table.texts()]
    caption = table.title + (f". {table.note}" if table.note else "")
    lines = [
        r"\begin{table}[t]",
        r"\centering\small",
        rf"\caption{{{escape_tex(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule", head, r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def escape_tex(text: str) -> str:
    """Return `text` with every character that LaTeX would act on made plain."""
    return "".join(_TEX.get(c, c) for c in text)


def plain_tex(text: str) -> str:
    """Return what `escape_tex` made `text` from."""
    marks = sorted(_TEX.values(), key=len, reverse=True)
    pattern = "|".join(re.escape(mark) for mark in marks)
    back = {mark: c for c, mark in _TEX.items()}
    return re.sub(pattern, lambda m: back[m[0]], text)


def html_table(table: Table) -> str:
    """Return the table as HTML, as it is shown; all text is escaped.

    Of a very long table the first rows, of a very long text its beginning, and a line says so.
    """
    columns = list(table.frame.columns)
    every = table.texts()
    texts = [[_begun(text) for text in row] for row in every[:MOST_ROWS]]
    kinds = [_kind(table.frame[c], [row[i] for row in texts]) for i, c in enumerate(columns)]
    heads = [table.heading(str(c)) for c in columns]
    head = "".join(
        f'<th scope="col" class="{k}">{html.escape(h)}</th>'
        for k, h in zip(kinds, heads, strict=True)
    )
    body = "".join(_html_row(row, kinds) for row in texts)
    foot = _foot(every, len(columns))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"


def _begun(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"


def _foot(texts: list[list[str]], columns: int) -> str:
    """Return a line on what of a table is not shown; nothing of a table that is shown whole."""
    said = []
    if len(texts) > MOST_ROWS:
        said.append(f"The first {MOST_ROWS:,} of {len(texts):,} rows.")
    if any(len(text) > MOST_TEXT for row in texts[:MOST_ROWS] for text in row):
        said.append(f"Texts of more than {MOST_TEXT} characters are cut.")
    if not said:
        return ""
    line = " ".join([*said, "The CSV file holds all."])
    return f'<tfoot><tr><td class="long" colspan="{columns}">{line}</td></tr></tfoot>'


def _kind(column: "pd.Series[Any]", texts: list[str]) -> str:
    if is_number(column):
        return "num"
    return "long" if max(map(len, texts), default=0) > LONG_TEXT else "txt"


def _html_row(texts: list[str], kinds: list[str]) -> str:
    cells = "".join(f'<td class="{k}">{_marked(t)}</td>' for k, t in zip(kinds, texts, strict=True))
    return f"<tr>{cells}</tr>"


def _marked(text: str) -> str:
    if text in TONES:
        return f'<span class="tag {TONES[text]}">{html.escape(text)}</span>'
    return html.escape(text)

"""A report that was written, in two lines: where it lies, and what it answers."""

from pathlib import Path

import pandas as pd

from analysis.report.first_screen import answer
from analysis.report.headline import Headline
from analysis.report.page import narrow_name
from analysis.report.words import count

FIELDS = ("label", "group", "estimate", "low", "high", "unit", "verdict", "p", "mde")


def outcome(page: Path) -> list[str]:
    """Return what a command says of a report at its end.

    Args:
        page: the report's index.html, beside which its tables and figures lie.
    """
    tables = len(list((page.parent / "tables").glob("*.csv")))
    drawn = {path.stem for path in (page.parent / "figures").glob("*.svg")}
    figures = len(drawn - {narrow_name(stem) for stem in drawn})  # those are no others
    parts = [count(n, what) for n, what in ((tables, "table"), (figures, "figure")) if n]
    beside = f" ({' and '.join(parts)} beside it)" if parts else ""
    told = _answer(page.parent / "tables" / "headlines.csv")[:1]
    return [f"report: {page}{beside}", *told, *_not_compared(page.parent / "tables")]


def _not_compared(tables: Path) -> list[str]:
    """Return which columns of the table the model does not compare, and how to ask for it."""
    try:
        return pd.read_csv(tables / "not_compared.csv")["words"].tolist()
    except (OSError, ValueError, KeyError):
        return []


def _answer(table: Path) -> list[str]:
    """Return what is distinguishable of all headlines, in sentences; none without headlines."""
    try:
        found = pd.read_csv(table, keep_default_na=False, na_values=[""])
    except (OSError, ValueError):
        return []
    if not set(FIELDS) <= set(found):
        return []
    rows = found[list(FIELDS)].assign(question="").to_dict("records")
    return answer([Headline(**{str(k): v for k, v in row.items()}) for row in rows])

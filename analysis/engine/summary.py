"""How fits and their parts are printed: a summary like lme4's, short forms of what holds arrays.

`FitSummary` is made of tables (pandas) that programs can read; it prints them as text for a
terminal and as HTML for a notebook. Text is at most `WIDTH` characters wide: long names are
cut in the middle, and of very many coefficients the first ones are shown with a note.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from html import escape
from typing import Any, TypeVar

import numpy as np
import pandas as pd

WIDTH = 96
NAME = 40  # characters of a coefficient's name
MOST = 40  # coefficients that are all shown; of more, `FIRST`
FIRST = 30
SHORT = 60  # characters of a field's text in a short form
T = TypeVar("T")
NUMBERS = {
    "estimate": "#.5g", "se": "#.4g", "df": ".1f", "t": ".2f", "z": ".2f", "p": ".2g",
    "variance": "#.5g", "sd": "#.5g", "levels": ",.0f",
}  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class FitSummary:
    """A fit in words and tables."""

    title: str
    facts: Mapping[str, str]  # what the model is and how well it fits
    tables: Mapping[str, pd.DataFrame]  # "random", "dispersion", "fixed"
    notes: tuple[str, ...]

    def __str__(self) -> str:
        label = max(len(name) for name in self.facts) + 2
        lines = [self.title, *(_wrapped(f"{n + ':':<{label}}", v) for n, v in self.facts.items())]
        for name, table in self.tables.items():
            if len(table):
                shown, rest = _abbreviated(table)
                lines += ["", HEADINGS.get(name, name), as_text(shown), *rest]
        lines += ["", *(_wrapped("- ", note) for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        facts = "".join(
            f"<tr><th style='text-align:left'>{escape(n)}</th>"
            f"<td style='text-align:left'>{escape(v)}</td></tr>"
            for n, v in self.facts.items()
        )
        parts = [f"<h4>{escape(self.title)}</h4><table>{facts}</table>"]
        for name, table in self.tables.items():
            if len(table):
                shown, rest = _abbreviated(table)
                body = _formatted(shown).to_html(index=False, border=0)
                parts += [f"<p><b>{escape(HEADINGS.get(name, name))}</b></p>{body}"]
                parts += [f"<p>{escape(line.strip())}</p>" for line in rest]
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return "".join(parts) + (f"<ul>{notes}</ul>" if notes else "")


HEADINGS = {
    "random": "Random effects",
    "fixed": "Fixed effects",
    "dispersion": "Logarithm of the residual's standard deviation",
}


def _abbreviated(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows to show, and a line about those that are not."""
    if len(table) <= MOST:
        return table, []
    more = len(table) - FIRST
    return table.head(FIRST), [f" ... and {more} more, see summary().tables"]


def as_text(table: pd.DataFrame) -> str:
    """Return a table as lines: text to the left, numbers to the right, at most `WIDTH` wide."""
    cells = _formatted(table)
    columns = []
    for name in cells:
        own = [str(name), *cells[name]]
        width = max(map(len, own))
        left = not pd.api.types.is_numeric_dtype(table[name])
        columns.append([f"{text:<{width}}" if left else f"{text:>{width}}" for text in own])
    return "\n".join((" " + "  ".join(row)).rstrip()[:WIDTH] for row in zip(*columns, strict=True))


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Return every cell as text; missing numbers as nothing, infinite ones as inf."""

    def cell(column: str, value: object) -> str:
        if isinstance(value, str):
            return short[value]
        if pd.isna(value):  # type: ignore[call-overload]
            return ""
        return format(value, NUMBERS.get(column, ".3f" if isinstance(value, float) else ""))

    short = _shortened([v for n in table for v in table[n] if isinstance(v, str)])
    return pd.DataFrame({str(n): [cell(str(n), v) for v in table[n]] for n in table})


def _shortened(names: Iterable[str]) -> dict[str, str]:
    """Return every name in at most `NAME` characters and one line; no two have the same."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        text = " ".join(name.splitlines())
        cut = text if len(text) <= NAME else f"{text[: NAME // 2]}…{text[-NAME // 2 + 1 :]}"
        groups.setdefault(cut, []).append(name)
    found: dict[str, str] = {}
    for cut, same in groups.items():
        letters = enumerate(zip(*same, strict=False))
        at = next((i for i, own in letters if len(set(own)) > 1), 0)  # within what was cut out
        for name in same:
            middle = " ".join(name[max(at - 3, 0) : at + 23].splitlines())
            shown = cut if len(same) == 1 else f"{name[:6]}…{middle}…"
            found[name] = f"{shown} ({len(found)})" if shown in found.values() else shown
    return found


def _wrapped(head: str, text: str) -> str:
    """Return text behind a head, broken at spaces, its further lines under its first."""
    return textwrap.fill(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def random_table(random: Mapping[str, Any], residual: "pd.Series[float]") -> pd.DataFrame:
    """Return one row per standard deviation: group, name, levels, variance, sd, correlations.

    Args:
        random: for every group its `RandomEffect`.
        residual: its standard deviations by name; NaN where the family has none.
    """
    rows: list[dict[str, object]] = []
    for group, effect in random.items():
        corr = effect.corr.to_numpy()
        for k, (name, sd) in enumerate(effect.sd.items()):
            own: dict[str, object] = {"group": group, "name": str(name)}
            own |= {"levels": len(effect.modes), "variance": sd**2, "sd": sd}
            rows.append(own | {f"corr {j + 1}": corr[k, j] for j in range(k)})
    for name, sd in residual.items():
        if np.isfinite(sd):
            rows.append({"group": "residual", "name": str(name), "variance": sd**2, "sd": sd})
    table = pd.DataFrame(rows)
    return table.assign(levels=table["levels"].astype("Int64")) if "levels" in table else table


def brief(cls: type[T]) -> type[T]:
    """Class decorator for dataclasses that hold arrays: their repr says shapes, not contents."""
    cls.__repr__ = _brief  # type: ignore[method-assign]
    return cls


def _brief(self: Any) -> str:
    parts = (f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self))
    return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: object) -> str:
    """Return a value in a few characters: arrays and tables as their shape, the rest cut."""
    if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series, pd.Index)):
        return f"{type(value).__name__}{list(value.shape)}"
    if isinstance(value, (tuple, list)) and any(
        not isinstance(v, (str, int, float)) for v in value
    ):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value) if isinstance(value, (str, int, float, tuple, type(None))) else ""
    text = text or f"{type(value).__name__}"
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"

"""Columns of a long table that others determine: their effects could not be separated.

The number of parameters of every method, say, beside the method itself. Left in a model, such a
column would leave no difference of methods determined. The later of two columns goes, unless the
earlier one is the coarser.

Letters in names: N rows, K columns of the terms' matrices, the intercept first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.engine.formula import design, parse
from analysis.engine.linalg import Array, independent_columns
from analysis.errors import listed


def determined(
    frame: pd.DataFrame, terms: Mapping[str, str], *, used: Sequence[str], score: str
) -> dict[str, str]:
    """Return why a column says nothing that others do not say, for every such column.

    Args:
        frame: the table, prepared.
        terms: for every column its fixed term as a formula has it, in the table's order.
        used: all columns of the model; rows that lack one of them do not count.
        score: the score's column as a formula has it.
    """
    complete = frame[frame[list(used)].notna().all(axis=1)] if used else frame
    parsed = {c: parse(f"{score} ~ {t}", map(str, complete)) for c, t in terms.items()}
    parts = {c: design(own, complete).X_NB for c, own in parsed.items()}
    if len(complete) <= 1 + sum(x_NK.shape[1] - 1 for x_NK in parts.values()):
        return {}  # too few rows to tell, which the fit says
    found = {}
    for name in reversed(list(parts)):
        others = [n for n in parts if n != name]
        if _repeats(parts, name, others):
            found[name] = _reason(_fewest(parts, name, others))
            del parts[name]
    return found


def _reason(others: Sequence[str]) -> str:
    if not others:
        return "does not vary in the rows that have all columns of the model"
    return f"determined by {listed(others)}: their effects cannot be separated"


def _fewest(parts: Mapping[str, Array], name: str, others: list[str]) -> list[str]:
    """Return as few of `others` as determine a column."""
    for other in reversed(others):
        fewer = [n for n in others if n != other]
        if _repeats(parts, name, fewer):
            others = fewer
    return others


def _repeats(parts: Mapping[str, Array], name: str, others: Sequence[str]) -> bool:
    return _rank(parts, [*others, name]) == _rank(parts, others)


def _rank(parts: Mapping[str, Array], names: Sequence[str]) -> int:
    """Return the rank of the terms' columns beside the intercept."""
    rows = len(next(iter(parts.values())))
    columns = [np.ones((rows, 1)), *(parts[n][:, 1:] for n in names)]
    return len(independent_columns(np.hstack(columns)))

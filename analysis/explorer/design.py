"""The fixed part of a fitted model as a page can compute it: a row for any levels of its columns.

Every column of a model matrix here is a product of functions of one column of the table each:
`adapter[T.lora]:log2_rank` is an indicator times a number. The functions are tabulated at the
values that occur, by changing one value of a row at a time, and the product is held against the
matrix itself at random combinations: a formula with a function of two columns at once is refused.

Letters in names: C columns of the matrix, G rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.formula import matrix_for
from analysis.engine.linalg import Array, Index
from analysis.errors import AnalysisError
from analysis.mixed import MixedFit

DRAWN = 256  # combinations that the factors are looked for in, and as many to check them
SAME = 1e-9  # relative difference up to which two numbers are equal


@dataclass(frozen=True)
class Separable:
    """A model matrix as products: column c is scale[c] times its functions at the row's values.

    `tables[v]` holds functions of variable v, one a row, at `values[v]`; `parts[c]` names those of
    a column as (variable, row of its table).
    """

    variables: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    tables: tuple[Array, ...]
    scale_C: Array
    parts: tuple[tuple[tuple[int, int], ...], ...]

    def rows(self, codes_GV: Index) -> Array:
        """Return the rows of the matrix at some values, given as their positions (G, V)."""
        X_GC = np.tile(self.scale_C, (len(codes_GV), 1))
        for c, parts in enumerate(self.parts):
            for v, row in parts:
                X_GC[:, c] *= self.tables[v][row][codes_GV[:, v]]
        return X_GC


def separable(
    fit: MixedFit, used: pd.DataFrame, more: Mapping[str, float] | None = None
) -> Separable:
    """Return the fixed part of a fit of `used` as products.

    Args:
        fit: a fit.
        used: its rows.
        more: a value of some columns of numbers beside those that occur, such as their mean.

    Raises:
        AnalysisError: a column is no product of functions of one column each.
    """
    names = fit.design.needed
    more = more or {}
    used = used[names].astype({n: np.float64 for n in more})
    values = {
        n: sorted({*used[n].drop_duplicates(), *([more[n]] if n in more else ())}, key=_order)
        for n in names
    }
    sizes = [len(v) for v in values.values()]
    rng = np.random.default_rng(0)
    drawn_GV = np.column_stack([rng.integers(0, n, 2 * DRAWN) for n in sizes] or [np.zeros(1, int)])
    seen_GV = np.column_stack([_positions(used[n], values[n]) for n in names] or [np.zeros(1, int)])
    codes_GV = np.vstack([np.unique(seen_GV, axis=0), drawn_GV])
    X_GC = _matrix(fit, used, values, codes_GV)
    base_C = np.abs(X_GC[:-DRAWN] if len(names) else X_GC).argmax(axis=0)
    found = _tabulated(fit, used, values, (codes_GV, X_GC, base_C))
    off_GC = np.abs(found.rows(codes_GV) - X_GC)
    if (off_GC > SAME * (1 + np.abs(X_GC))).any():
        column = fit.design.names[int(off_GC.max(axis=0).argmax())]
        raise AnalysisError(f"formula={fit.formula}: {column} is no product of single columns")
    return found


def _order(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)


def _positions(column: "pd.Series[Any]", values: Sequence[Any]) -> Index:
    place = {value: i for i, value in enumerate(values)}
    return np.array([place[value] for value in column], dtype=np.intp)


def _matrix(
    fit: MixedFit, used: pd.DataFrame, values: Mapping[str, Sequence[Any]], codes_GV: Index
) -> Array:
    if not values:
        return np.ones((1, len(fit.design.names)))
    rows = pd.DataFrame(
        {
            n: pd.Series(np.array(own, dtype=object)[codes_GV[:, v]]).astype(used[n].dtype)
            for v, (n, own) in enumerate(values.items())
        }
    )
    return matrix_for(fit.design, rows)


def _tabulated(
    fit: MixedFit,
    used: pd.DataFrame,
    values: Mapping[str, Sequence[Any]],
    drawn: tuple[Index, Array, Index],
) -> Separable:
    """Return the functions of every variable, from rows that differ from a base in one value."""
    codes_GV, X_GC, base_C = drawn
    bases, which_C = np.unique(base_C, return_inverse=True)
    moved: list[Index] = []
    places: dict[tuple[int, int], int] = {}
    size = 0
    for b, row in enumerate(bases):
        for v, own in enumerate(values.values()):
            block = np.tile(codes_GV[row], (len(own), 1))
            block[:, v] = np.arange(len(own))
            places[b, v] = size
            size += len(block)
            moved.append(block)
    moved_GC = _matrix(fit, used, values, np.vstack(moved)) if moved else X_GC
    tables: list[list[Array]] = [[] for _ in values]
    parts = []
    scale_C = X_GC[base_C, np.arange(X_GC.shape[1])]
    for c in range(X_GC.shape[1]):
        own_parts = []
        for v, own in enumerate(values.values()):
            if scale_C[c] == 0:
                continue
            start = places[int(which_C[c]), v]
            ratio = moved_GC[start : start + len(own), c] / scale_C[c]
            if not (np.abs(ratio - 1) <= SAME).all():
                own_parts.append((v, _row(tables[v], ratio)))
        parts.append(tuple(own_parts))
    every = tuple(tuple(own) for own in values.values())
    shaped = (np.array(t).reshape(len(t), len(v)) for t, v in zip(tables, every, strict=True))
    return Separable(tuple(values), every, tuple(shaped), scale_C, tuple(parts))


def _row(table: list[Array], ratio: Array) -> int:
    """Return where a function stands in a table, which it enters where it is new."""
    for i, other in enumerate(table):
        if np.array_equal(other, ratio):
            return i
    table.append(ratio)
    return len(table) - 1

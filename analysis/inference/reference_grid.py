"""The reference grid of a fit: all levels of its factors, its covariates at their means.

A column of numbers is a covariate unless the formula wraps it in C(); all else is a factor.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, listed, nearest
from analysis.mixed import MixedFit

MOST_ROWS = 200_000

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReferenceGrid:
    """All combinations of the factors' levels and the covariates' values."""

    fit: MixedFit
    used: pd.DataFrame  # the rows that were fitted
    rows: pd.DataFrame
    factors: tuple[str, ...]
    covariates: tuple[str, ...]

    @classmethod
    def of(cls, fit: MixedFit, frame: pd.DataFrame, at: Values) -> "ReferenceGrid":
        """Return the grid of a fit of `frame`, with what `at` says in place of all or the mean."""
        used = _used(fit, frame)
        names = sorted(fit.design.needed, key=list(used).index)
        if unknown := [n for n in at if n not in names]:
            raise AnalysisError(
                f"at {unknown[0]}: not in the fixed part of the formula, which has "
                f"{listed(names)}.{nearest(unknown[0], names)}"
            )
        factors = tuple(n for n in names if is_factor(fit, used[n]))
        covariates = tuple(n for n in names if n not in factors)
        values = {
            n: _levels(used[n], at.get(n)) if n in factors else _values(used[n], at.get(n))
            for n in names
        }
        size = int(np.prod([len(v) for v in values.values()], dtype=np.float64))
        if size > MOST_ROWS:
            raise AnalysisError(
                f"means: the reference grid has {size:,} rows; at most {MOST_ROWS:,}. Name the "
                f"levels wanted with at="
            )
        if not names:  # the intercept alone: one mean
            return cls(fit, used, pd.DataFrame(index=range(1)), factors, covariates)
        rows = pd.MultiIndex.from_product(list(values.values()), names=list(values)).to_frame(
            index=False
        )
        kinds = {n: used[n].dtype for n in names if isinstance(used[n].dtype, pd.CategoricalDtype)}
        return cls(fit, used, rows.astype(kinds), factors, covariates)  # 0, 1: levels, not numbers


def _used(fit: MixedFit, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the table that the fit used."""
    columns = list(fit.design.parsed.columns)
    if missing := [c for c in columns if c not in frame]:
        raise AnalysisError(f"means: the table has no column {missing[0]}; is it the one fitted?")
    complete = frame[frame[columns].notna().all(axis=1)]
    if complete.index.equals(fit.design.rows):
        return complete
    if not (frame.index.is_unique and fit.design.rows.isin(frame.index).all()):
        raise AnalysisError("means: this is not the table that was fitted; its rows differ")
    return frame.loc[fit.design.rows]


def is_factor(fit: MixedFit, column: "pd.Series[Any]") -> bool:
    """Return whether the formula treats a column as levels."""
    as_levels = rf"\bC\(\s*`?{re.escape(str(column.name))}`?\s*[,)]"
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return not number or bool(re.search(as_levels, fit.design.parsed.fixed))


def _levels(column: "pd.Series[Any]", chosen: object) -> list[Any]:
    there = column.drop_duplicates()
    if isinstance(column.dtype, pd.CategoricalDtype):
        known = [level for level in column.cat.categories if (there == level).any()]
    else:
        known = sorted(there)
    if chosen is None:
        return known
    wanted = list(chosen) if isinstance(chosen, (list, tuple, np.ndarray)) else [chosen]
    if unknown := [w for w in wanted if w not in known]:
        raise AnalysisError(
            f"{column.name}={unknown[0]}: not one of {listed(known)}.{nearest(unknown[0], known)}"
        )
    return wanted


def _values(column: "pd.Series[Any]", chosen: object) -> list[float]:
    if chosen is None:
        return [float(column.astype(np.float64).mean())]
    wanted = np.atleast_1d(np.asarray(chosen))
    if not np.issubdtype(wanted.dtype, np.number) or not np.isfinite(wanted).all():
        raise AnalysisError(f"{column.name}={chosen}: must be a number, or several")
    return [float(v) for v in wanted]

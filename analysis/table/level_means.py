"""Adjusted means of levels for the figures: `value ~ level + block` by least squares.

The block holds everything else that a run was crossed with (adapter, rank, seed, ...), so that its
luck cancels between levels. Intervals speak of other runs scored on the same items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate, contrast
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.factors import factors_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """The means of the levels of some factors; without a noise estimate, plain means."""

    table: pd.DataFrame  # the factors, n, estimate, low, high
    fit: MixedFit | None
    l_CB: Array | None  # the contrast that is each row's mean

    def compare(
        self, plus: "pd.Series[bool]", minus: "pd.Series[bool]", name: str = ""
    ) -> Estimate | None:
        """Return the mean of the rows in `plus` less that of `minus`; None if it is not known."""
        if self.fit is None or self.l_CB is None or not plus.any() or not minus.any():
            return None
        above = self.l_CB[plus.to_numpy()].mean(axis=0)
        return contrast(self.fit, above - self.l_CB[minus.to_numpy()].mean(axis=0), name=name)


def level_means(
    rows: pd.DataFrame,
    by: Sequence[str],
    *,
    value: str = "score",
    block: Sequence[str] | None = None,
) -> Levels:
    """Return the adjusted mean of `value` at every combination of the levels of `by`.

    Args:
        rows: one row per run.
        by: the factors whose levels are compared.
        value: the column of numbers.
        block: what the runs were crossed with, by default every factor; what is in `by` or does
            not vary is left out.
    """
    rows = rows.dropna(subset=[value])
    grouped = rows.groupby(list(by), observed=True, sort=True, dropna=False)[value]
    table = grouped.agg(n="size", estimate="mean").reset_index()
    block = factors_of(rows).columns() if block is None else block
    others = [n for n in block if n in rows and n not in by and rows[n].nunique() > 1]
    for blocks in [others, []] if others else [[]]:
        try:
            fit, l_CB = _fit(rows, table, list(by), value, blocks)
        except AnalysisError:
            continue
        means = [contrast(fit, l_B) for l_B in l_CB]
        numbers = {k: [getattr(m, k) for m in means] for k in ("estimate", "low", "high")}
        return Levels(table.assign(**numbers), fit, l_CB)
    return Levels(table.assign(low=np.nan, high=np.nan), None, None)


def _fit(
    rows: pd.DataFrame, table: pd.DataFrame, by: list[str], value: str, blocks: list[str]
) -> tuple[MixedFit, Array]:
    """Return the fit and every level's mean over the blocks as a contrast.

    Raises:
        AnalysisError: no noise is left, or the levels share too few blocks to be compared.
    """
    data = pd.DataFrame({"y": rows[value].astype(float), "level": _joined(rows, by)})
    data["block"] = _joined(rows, blocks)
    terms = [n for n in ("level", "block") if data[n].nunique() > 1]
    fit = fit_mixed(data, "y ~ " + (" + ".join(terms) or "1"))
    if fit.left_out:
        raise AnalysisError("the levels do not share their blocks")
    levels, names = _joined(table, by).tolist(), sorted(data["block"].unique())
    grid = {"level": np.repeat(levels, len(names)), "block": names * len(levels)}
    x_NB = fit.matrix(pd.DataFrame(grid))
    return fit, x_NB.reshape(len(levels), len(names), -1).mean(axis=1)


def _joined(rows: pd.DataFrame, names: Sequence[str]) -> "pd.Series[str]":
    if not names:
        return pd.Series("all", rows.index)
    return rows[list(names)].astype(str).agg(" ".join, axis=1)


def by_panel(
    rows: pd.DataFrame, panel: Sequence[str], means: Callable[[pd.DataFrame], Levels]
) -> pd.DataFrame:
    """Return the tables of `means` for every panel's rows, with the panel's levels as columns."""
    return pd.concat([_named(found.table, labels) for labels, found in panels(rows, panel, means)])


def panels(
    rows: pd.DataFrame, panel: Sequence[str], means: Callable[[pd.DataFrame], Levels]
) -> Iterator[tuple[dict[str, str], Levels]]:
    """Yield every panel's levels and the means of its rows."""
    for key, own in rows.groupby(list(panel), observed=True, sort=False):
        labels = dict(zip(panel, map(str, key), strict=True))
        yield labels, means(own)


def _named(table: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    return table.assign(**labels)[[*labels, *table.columns]]

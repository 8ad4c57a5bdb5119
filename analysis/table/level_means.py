"""Adjusted means of the levels of some factors, panel by panel: `value ~ level + block`.

The block holds everything else that a run was crossed with (adapter, rank, seed, ...), so that its
effect cancels between levels. Intervals are for other runs scored on the same items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES, Estimate
from analysis.table.adjusted_means import Adjusted, adjusted_means, by_rule, require_noise
from analysis.table.factors import factors_of


@dataclass(frozen=True)
class Levels:
    """The means of the levels of some factors; without a noise estimate, plain means."""

    table: pd.DataFrame  # the factors, n, estimate, low, high
    fit: Adjusted | None  # a coefficient for every row of the table

    def compare(
        self, plus: "pd.Series[bool]", minus: "pd.Series[bool]", name: str = ""
    ) -> Estimate | None:
        """Return the mean of the rows in `plus` less that of `minus`; None if it is not known."""
        if self.fit is None or not plus.any() or not minus.any():
            return None
        above, below = (np.asarray(side, dtype=float) for side in (plus, minus))
        return self.fit.contrast(above / above.sum() - below / below.sum(), name=name)


def level_means(
    rows: pd.DataFrame,
    by: Sequence[str],
    *,
    value: str = "score",
    block: Sequence[str] | None = None,
    df: str = DF_RULES[0],
) -> Levels:
    """Return the adjusted mean of `value` at every combination of the levels of `by`.

    Where the levels share too few blocks they are compared without them.

    Args:
        rows: one row per run.
        by: the factors whose levels are compared.
        value: the column of numbers.
        block: what the runs were crossed with, by default every factor; what is in `by` or does
            not vary is left out.
        df: the rule for degrees of freedom, as of `adjusted_means.by_rule`.
    """
    rows = rows.dropna(subset=[value])
    grouped = rows.groupby(list(by), observed=True, sort=True, dropna=False)
    table = grouped[value].agg(n="size", estimate="mean").reset_index()
    level_N = np.asarray(grouped.ngroup(), dtype=np.intp)
    y_N = rows[value].to_numpy(dtype=float)
    block = factors_of(rows).columns() if block is None else block
    others = [n for n in block if n in rows and n not in by and rows[n].nunique() > 1]
    crossed = [rows[others].astype(str).agg(" ".join, axis=1)] if others else []
    for blocks in [crossed, []] if others else [[]]:
        try:
            fit = adjusted_means(level_N, blocks, y_N[:, None])
            require_noise(fit, y_N)
        except AnalysisError:
            continue
        fit = by_rule(fit, df)
        means = [fit.contrast(weights_S) for weights_S in np.eye(len(table))]
        numbers = {k: [getattr(m, k) for m in means] for k in ("estimate", "low", "high")}
        return Levels(table.assign(**numbers), fit)
    return Levels(table.assign(low=np.nan, high=np.nan), None)


def by_panel(
    rows: pd.DataFrame, panel: Sequence[str], means: Callable[[pd.DataFrame], Levels]
) -> pd.DataFrame:
    """Return the tables of `means` for every panel's rows, with the panel's levels as columns."""
    parts = [(found.table.assign(**labels), labels) for labels, found in panels(rows, panel, means)]
    return pd.concat([t[[*labels, *t.columns.drop(list(labels))]] for t, labels in parts])


def panels(
    rows: pd.DataFrame, panel: Sequence[str], means: Callable[[pd.DataFrame], Levels]
) -> Iterator[tuple[dict[str, str], Levels]]:
    """Yield every panel's levels and the means of its rows."""
    for key, own in rows.groupby(list(panel), observed=True, sort=False):
        labels = dict(zip(panel, map(str, key), strict=True))
        yield labels, means(own)

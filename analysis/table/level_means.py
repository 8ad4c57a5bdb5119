"""Adjusted means of the levels of some factors, panel by panel: `value ~ level + block`.

The default model of a panel with the factors that are compared as categories: one row per run, the
block holds everything else that a run was crossed with (adapter, rank, seed, ...), so that its
effect cancels between levels, and cells are a random effect where they can be told from noise
(`table.cell_effect`). Means weigh all blocks equally. Intervals are for other runs scored on the
same items, of other cells where the cell is random.

Letters in names: L levels, C columns of the model matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES, Estimate, contrast
from analysis.inference.means import Means, means
from analysis.mixed import fit_mixed
from analysis.table.cell_effect import cell_formula
from analysis.table.factors import factors_of, joined

BLOCK, CELLS = " + block", " + (1 | cell)"
DOSE = ("masking", "plw", "wp")


@dataclass(frozen=True)
class Levels:
    """The means of the levels of some factors; without a noise estimate, plain means."""

    table: pd.DataFrame  # the factors, n, estimate, low, high
    means: Means | None  # one for every row of the table
    replicated: bool = True  # whether cells have several runs
    shared: bool = True  # whether the levels ran at the same weights

    def compare(
        self, plus: "pd.Series[bool]", minus: "pd.Series[bool]", name: str = ""
    ) -> Estimate | None:
        """Return the mean of the rows in `plus` less that of `minus`; None if it is not known."""
        if self.means is None or not self.shared or not plus.any() or not minus.any():
            return None
        above, below = (np.asarray(side, dtype=float) for side in (plus, minus))
        weight_L: Array = above / above.sum() - below / below.sum()
        (l_B,) = self.means.fit.kept((weight_L @ self.means.l_KC)[None])
        return contrast(self.means.fit, l_B, name=name, df=self.means.df)


def level_means(
    rows: pd.DataFrame,
    by: Sequence[str],
    *,
    value: str = "score",
    block: Sequence[str] | None = None,
    df: str = DF_RULES[0],
) -> Levels:
    """Return the adjusted mean of `value` at every combination of the levels of `by`.

    Where the levels share too few blocks their means are not adjusted for them; they are compared
    then unless the weight is among what was crossed.

    Args:
        rows: one row per run.
        by: the factors whose levels are compared.
        value: the column of numbers.
        block: what the runs were crossed with, by default every factor; what is in `by` or does
            not vary is left out.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.
    """
    rows = rows.dropna(subset=[value])
    grouped = rows.groupby(list(by), observed=True, sort=True, dropna=False)
    table = grouped[value].agg(n="size", estimate="mean").reset_index()
    block = factors_of(rows).columns() if block is None else block
    others = [n for n in block if n in rows and n not in by and rows[n].nunique() > 1]
    level = grouped.ngroup().map("{:06d}".format)
    runs = pd.DataFrame({"value": rows[value], "level": level, "block": joined(rows, others)})
    if "seed" in rows:
        runs["cell"] = level + " " + joined(rows, [n for n in others if n != "seed"])
    dosed = not set(by) & set(DOSE) and any(n in others for n in DOSE)
    for found, replicated, crossed in _attempts(runs, df):
        if np.isfinite(found.l_KB).all():
            estimates = found.estimates
            numbers = {k: [getattr(m, k) for m in estimates] for k in ("estimate", "low", "high")}
            shared = crossed or not dosed
            return Levels(table.assign(**numbers), found, replicated, shared)
    return Levels(table.assign(low=np.nan, high=np.nan), None)


def _attempts(runs: pd.DataFrame, df: str) -> Iterator[tuple[Means, bool, bool]]:
    """Yield the means with and without blocks, whether cells have replicates, and whether there
    are blocks.
    """
    level = "level" if runs["level"].nunique() > 1 else "1"
    crossed = [BLOCK] if runs["block"].nunique() > 1 else []
    for block in [*crossed, ""]:
        formula, replicated = f"value ~ {level}{block}", True
        try:
            if "cell" in runs:
                formula, replicated = cell_formula(formula + CELLS, runs)
            fit = fit_mixed(runs, formula)
        except AnalysisError:
            continue
        found = means(fit, runs, "level" if level == "level" else (), df=df)
        yield found, replicated, bool(block) or not crossed

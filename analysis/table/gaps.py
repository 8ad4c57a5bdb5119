"""Paired differences of runs: the same cell and seed under two levels of a factor.

Runs of a pair share data, order of the rows and start, so that what these do to a score cancels.
"""

import pandas as pd

from analysis.table.factors import Part, factors_of, joined

SHARED: tuple[Part, ...] = (
    "stratum",
    "arm",
    "setting",
    "replicate",
    "control",
)  # parts of the design, without dose


def gaps(
    runs: pd.DataFrame,
    plus: "pd.Series[bool]",
    minus: "pd.Series[bool]",
    *,
    value: str = "score",
) -> pd.DataFrame:
    """Return one row per pair: the run of `plus` with `gap`, its value less that of `minus`.

    The two share every factor but masking and prompt loss weight.

    Args:
        runs: one row per run.
        plus: which runs are on the one side.
        minus: which are on the other; a run without a partner is left out.
        value: the column of numbers.
    """
    names = [n for n in factors_of(runs).columns(*SHARED) if n in runs]
    pair = joined(runs, names)
    theirs = runs.assign(pair=pair)[minus].groupby("pair", observed=True)[value].mean()
    found = runs.assign(pair=pair)[plus]
    found = found.assign(gap=found[value] - found["pair"].map(theirs).astype(float))
    return found.dropna(subset=["gap"]).reset_index(drop=True)

"""Runs by cell and by arm: one row per run, with its factors and its mean score.

A run counts once, as the mean of its scores over tasks. Items are fixed: intervals of what is
estimated from runs are for other runs scored on the same items, not for other items.
"""

import pandas as pd

from analysis.table.factors import FULL, run_columns

ARM = ("adapter", "rank")


def run_means(rows: pd.DataFrame, *, side: str | None = None) -> pd.DataFrame:
    """Return one row per run with its factors and its mean score over tasks (of one side)."""
    chosen = rows if side is None else rows[rows["side"] == side]
    grouped = chosen.groupby(run_columns(rows), observed=True, dropna=False)
    return grouped["score"].agg(score="mean", tasks="size").reset_index()


def without_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with rank 0 where there is none: full fine-tuning is one arm."""
    if "rank" not in runs:
        return runs.assign(rank=0)
    return runs.assign(rank=runs["rank"].mask(runs["adapter"].astype(str) == FULL, 0))


def arm_text(adapter: object, rank: object) -> str:
    """Return an arm's name: "full", or the adapter with its rank."""
    return FULL if str(adapter) == FULL else f"{adapter} r{float(str(rank)):g}"

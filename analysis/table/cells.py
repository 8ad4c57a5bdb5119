"""Runs by cell and by arm: one row per run, with its factors and its mean score.

A run counts once, as the mean of its scores over tasks. Items are fixed: intervals of what is
estimated from runs are for other runs scored on the same items, not for other items.
"""

import pandas as pd

from analysis.table.factors import FULL, level_columns

ARM = ("adapter", "rank")
DERIVED = (  # columns of a prepared frame that a run has one level of, beside its levels
    "wp", "effective_plw", "mode", "curved", "log2_rank", "method", "rg", "dataset_type", "cell",
)  # fmt: skip


def run_means(
    rows: pd.DataFrame, *, side: str | None = None, weights: str | None = None
) -> pd.DataFrame:
    """Return one row per run with its factors and its mean score over tasks (of one side).

    Args:
        rows: one row per run and task.
        side: "target" or "source"; all tasks by default.
        weights: a column; the mean is then weighted, and the column the sum of a run's weights.
    """
    chosen = rows if side is None else rows[rows["side"] == side]
    names = [*level_columns(rows), *(n for n in DERIVED if n in rows)]
    if weights is not None:
        chosen = chosen.assign(score=chosen["score"] * chosen[weights])
    groups = chosen.groupby("run", observed=True, sort=False)
    found = groups.first()[names]
    found = found.assign(score=groups["score"].mean(), tasks=groups.size())
    if weights is not None:
        total = groups[weights].sum()
        found = found.assign(**{"score": groups["score"].sum() / total, weights: total})
    return found.reset_index()


def without_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with rank 0 where there is none: full fine-tuning is one arm."""
    if "rank" not in runs:
        return runs.assign(rank=0)
    return runs.assign(rank=runs["rank"].mask(runs["adapter"].astype(str) == FULL, 0))


def arm_text(adapter: object, rank: object) -> str:
    """Return an arm's name: "full", or the adapter with its rank."""
    return FULL if str(adapter) == FULL else f"{adapter} r{float(str(rank)):g}"

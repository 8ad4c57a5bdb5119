"""Runs by cell and by arm: one row per run, with its factors and its mean score.

A run counts once, as the mean of its scores over tasks. Items are fixed: intervals of what is
estimated from runs are for other runs scored on the same items, not for other items.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.table.factors import FULL, level_columns, stratum_names

ARM = ("adapter", "rank")
DERIVED = (  # columns of a prepared frame that a run has one level of, beside its levels
    "wp", "effective_plw", "mode", "curved", "log2_rank", "method", "rg", "train_rows",
    "dataset_type", "cell",
)  # fmt: skip


def run_means(
    rows: pd.DataFrame,
    *,
    side: str | None = None,
    weights: str | None = None,
    apart: Sequence[str] = (),
) -> pd.DataFrame:
    """Return one row per run with its factors and its mean score over tasks (of one side).

    Runs that lack some of the tasks of their data set and base model are adjusted for them.

    Args:
        rows: one row per run and task.
        side: "target" or "source"; all tasks by default.
        weights: a column; the mean is then weighted, and the column the sum of a run's weights.
        apart: columns whose levels have a mean of their own, a row per level and run.
    """
    chosen = without_gaps(rows if side is None else rows[rows["side"] == side], apart)
    names = [*level_columns(rows), *(n for n in DERIVED if n in rows)]
    if weights is not None:
        chosen = chosen.assign(score=chosen["score"] * chosen[weights])
    groups = chosen.groupby([*apart, "run"], observed=True, sort=False)
    found = groups[names].first()
    found = found.assign(score=groups["score"].mean(), tasks=groups.size())
    if weights is not None:
        total = groups[weights].sum()
        found = found.assign(**{"score": groups["score"].sum() / total, weights: total})
    return found.reset_index()


def without_gaps(rows: pd.DataFrame, apart: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows with every task at the mean level, in strata where runs lack tasks.

    A mean over fewer tasks would hold their levels. These are estimated by least squares, score ~
    run + task, which runs with several tasks determine.

    Args:
        rows: one row per run and task.
        apart: columns whose levels are adjusted each by itself.
    """
    if "task" not in rows or not len(rows):
        return rows
    keys = [stratum_names(rows), *(rows[n] for n in apart)]
    part = rows.groupby(keys, sort=False, observed=True).ngroup().to_numpy()
    task, run = rows["task"].astype(str), rows["run"].astype(str)
    seen = pd.DataFrame({"part": part, "run": run, "task": task}).drop_duplicates()
    own = seen.groupby(["part", "run"], sort=False).size()
    every = seen.groupby("part")["task"].nunique()
    lacking = own < every.loc[own.index.get_level_values("part")].to_numpy()
    shift = np.zeros(len(rows))
    for number in own.index.get_level_values("part")[lacking].unique():
        shift[part == number] = _task_levels(rows[part == number])
    return rows.assign(score=rows["score"] - shift)


def _task_levels(rows: pd.DataFrame) -> "pd.Series[float]":
    """Return every row's task level above the mean of tasks."""
    tasks, run = rows["task"].astype(str), rows["run"].astype(str)
    indicator = pd.get_dummies(tasks, dtype=float)
    inside = indicator - indicator.groupby(run).transform("mean")
    score = rows["score"] - rows["score"].groupby(run).transform("mean")
    level = np.linalg.lstsq(inside.to_numpy(), score.to_numpy(dtype=float), rcond=None)[0]
    return pd.Series(indicator.to_numpy() @ (level - level.mean()), rows.index)


def without_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with rank 0 where there is none: full fine-tuning is one arm."""
    if "rank" not in runs:
        return runs.assign(rank=0)
    return runs.assign(rank=runs["rank"].mask(runs["adapter"].astype(str) == FULL, 0))


def arm_text(adapter: object, rank: object) -> str:
    """Return an arm's name: "full", or the adapter with its rank."""
    return FULL if str(adapter) == FULL else f"{adapter} r{float(str(rank)):g}"

"""The runs of a panel, a row each: what the default model is fitted to.

A panel is a data set, a base model and a group of tasks. A run counts once in it, as the mean of
its scores over the group's tasks, so that the noise of a panel is that of its own scores and no two
rows share a run. A curve is one masking mode in a panel: its runs, and those at weight 0, where all
modes are one. A cell is what runs that differ in the seed alone have in common.

Letters in names: N runs, K columns that are adjusted for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.table.adjusted_means import dummies
from analysis.table.cells import run_means
from analysis.table.factors import cell_names, factors_of
from analysis.table.frame import CURVED, study_rows

PANEL = ("dataset", "model", "task_group")
CURVE = ("mode", *PANEL)
ARM = ("dataset", "model", "adapter", "rank", "rate")  # what a run is compared within


@dataclass(frozen=True, slots=True)
class RunPanel:
    """The runs of one panel, or of one of its curves, a row each."""

    labels: dict[str, str]  # PANEL, or CURVE
    runs: pd.DataFrame


def key_of(labels: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return what names a curve: of its labels, or of a table's row."""
    return tuple(str(labels[name]) for name in CURVE)


def task_panels(rows: pd.DataFrame, *, weights: str | None = None) -> Iterator[RunPanel]:
    """Yield every panel of study rows.

    Args:
        rows: of `frame.study_rows`.
        weights: a column; a run's score is then the weighted mean over tasks, and the column the
            sum of its weights.

    Yields:
        Runs with their levels and settings, `cell`, `score` and `tasks`; `curved` and `log2_rank`
        are as the panel's own runs determine a curve and a slope over rank.
    """
    within = [name for name in PANEL if name not in ("dataset", "model")]  # a run has one of them
    runs = run_means(rows.assign(cell=cell_names(rows)), weights=weights, apart=within)
    for labels, own in grouped(runs, PANEL):
        yield RunPanel(labels, _within(own.drop(columns=within).reset_index(drop=True)))


def grouped(
    rows: pd.DataFrame, names: Sequence[str], *, sort: bool = False
) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the labels and rows of every combination of levels, in the order of the rows, or of
    the levels.
    """
    for key, own in rows.groupby(list(names), observed=True, sort=sort):
        yield dict(zip(names, map(str, key), strict=True)), own


def _within(runs: pd.DataFrame) -> pd.DataFrame:
    doses = runs["wp"].where(runs["wp"] > 0).groupby(runs["mode"], observed=True).nunique()
    ranks = runs.groupby("adapter", observed=True)["log2_rank"].transform("nunique")
    runs = runs.assign(log2_rank=runs["log2_rank"].where(ranks > 1, 0.0))
    return runs.assign(curved=runs["mode"].map(doses >= CURVED).eq(True).astype(float))


def curves_of(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every mode that ran a weight above 0 in some rows, and the rows of its curve."""
    if "wp" in rows:
        for mode in sorted(rows.loc[rows["wp"] > 0, "mode"].astype(str).unique()):
            yield mode, rows[(rows["wp"] == 0) | (rows["mode"].astype(str) == mode)]


def usual_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the level of every other setting that most runs have."""
    return factors_of(rows).main(rows)


def run_panels(frame: pd.DataFrame) -> Iterator[RunPanel]:
    """Yield every curve that ran two weights above 0, at the usual settings."""
    for panel in task_panels(usual_rows(study_rows(frame))):
        for mode, own in curves_of(panel.runs):
            if own.loc[own["wp"] > 0, "wp"].nunique() >= CURVED:
                yield RunPanel({"mode": mode} | panel.labels, with_arms(own))


def with_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with `arm` and `block`, what runs of one data set and seed share."""
    full = runs["adapter"].astype(str) == "full"
    runs = runs.assign(rank=runs["rank"].mask(full, 0)) if "rank" in runs else runs
    swept = "rate" in runs and runs["rate"].nunique() > 1  # else each arm has a rate of its own
    within = [n for n in ARM if n in runs and (n != "rate" or swept)]
    levels = zip(*(runs[n].astype(str) for n in within), strict=True)
    arm = pd.Series([" ".join(own) for own in levels], index=runs.index, dtype=str)
    return runs.assign(arm=arm, block=runs["dataset"].astype(str) + ":" + runs["seed"].astype(str))


def nuisance(runs: pd.DataFrame) -> Array:
    """Return the columns of arm and block that a curve is adjusted for (N, K)."""
    return np.hstack([dummies(runs["arm"]), dummies(runs["block"])])

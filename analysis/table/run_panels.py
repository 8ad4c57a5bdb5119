"""One row per run: what the questions about a curve's shape are asked of.

A panel is one masking mode in one task group and data-set type. Its runs are those at the usual
level of every other setting. A run counts once, as the mean of its scores over the panel's
tasks, so that the residuals of a least-squares fit are independent and its F tests exact. An arm
is what a run is compared within (data set, base model, adapter, rank); the block is what runs of
one seed share.

Letters in names: N runs, K columns that are adjusted for, S columns of a shape.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.table.adjusted_means import dummies
from analysis.table.factors import factors_of
from analysis.table.frame import study_rows

PANEL = ("mode", "task_group", "dataset_type")
ARM = ("dataset", "model", "adapter", "rank", "rate")  # what a run is compared within


@dataclass(frozen=True, slots=True)
class Panel:
    """One mode in one task group and data-set type, and the rows it is averaged over."""

    labels: dict[str, str]
    rows: pd.DataFrame  # with the mode set, so that the weight alone is left to choose
    levels: int  # distinct weights above 0 that were run
    n: int  # scores
    runs: int


@dataclass(frozen=True, slots=True)
class RunPanel:
    """The runs of one panel, a row each: run, dataset, wp, plw, log2_rank, arm, block, score."""

    labels: dict[str, str]
    runs: pd.DataFrame


def key_of(labels: Mapping[str, object]) -> tuple[str, ...]:
    """Return mode, task group and data-set type of a panel's labels, or of a table's row."""
    return tuple(str(labels[name]) for name in PANEL)


def panels(rows: pd.DataFrame) -> Iterator[Panel]:
    """Yield every panel of study rows that ran at least one weight above 0."""
    curved = rows[rows["wp"] > 0]
    for (mode, group, kind), own in curved.groupby(list(PANEL), observed=True):
        labels = {"mode": str(mode), "task_group": str(group), "dataset_type": str(kind)}
        around = rows[(rows["task_group"] == group) & (rows["dataset_type"] == kind)]
        both = around[(around["wp"] == 0) | (around["mode"] == mode)]
        chosen = around.assign(mode=str(mode), curved=float(own["curved"].iloc[0]))
        yield Panel(labels, chosen, own["wp"].nunique(), len(both), both["run"].nunique())


def usual_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the level of every other setting that most runs have."""
    return factors_of(rows).main(rows)


def run_panels(frame: pd.DataFrame, *, levels: int = 2) -> Iterator[RunPanel]:
    """Yield every panel that ran at least `levels` weights above 0, its runs as rows."""
    rows = usual_rows(study_rows(frame))
    for panel in panels(rows):
        mode = panel.labels["mode"]
        if panel.levels >= levels:
            both = rows[(rows["wp"] == 0) | (rows["mode"] == mode)]
            for name in ("task_group", "dataset_type"):
                both = both[both[name].astype(str) == panel.labels[name]]
            yield RunPanel(panel.labels, one_row_per_run(both))


def one_row_per_run(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, its score the mean over tasks, with `arm` and `block`."""
    names = [n for n in ("rg", "wp", "plw", "log2_rank", "seed", "side", *ARM) if n in rows]
    first = {n: (n, "first") for n in names}
    grouped = rows.groupby("run", observed=True, sort=False)
    runs = grouped.agg(**first, score=("score", "mean"), tasks=("score", "size")).reset_index()
    full = runs["adapter"].astype(str) == "full"
    runs = runs.assign(rank=runs["rank"].mask(full, 0)) if "rank" in runs else runs
    swept = "rate" in runs and runs["rate"].nunique() > 1  # else each arm has a rate of its own
    within = [n for n in ARM if n in runs and (n != "rate" or swept)]
    arm = runs[within].astype(str).agg(" ".join, axis=1)
    return runs.assign(arm=arm, block=runs["dataset"].astype(str) + ":" + runs["seed"].astype(str))


def nuisance(runs: pd.DataFrame) -> Array:
    """Return the columns of arm and block that every curve is adjusted for (N, K)."""
    return np.hstack([dummies(runs["arm"]), dummies(runs["block"])])

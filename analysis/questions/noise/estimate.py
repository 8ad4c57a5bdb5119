"""Where the noise of a cell's score comes from: seeds, items, or both; and what more would buy.

A score of cell c, run s (a seed) and item i is, in points,

    y_csi = m_c + g_s + b_cs + a_i + q_ci + e_csi

g: the seed effect, common to all cells, b: the run's own, a: how hard the item is, q: what the
cell changes on that item, e: the rest (run and item together). All parts are estimated by equating
mean squares and covariances with their expectations, which for a balanced table is what REML gives
where no part is negative. The difference of two cells on the same seeds and items then has variance

    2 (b / S + q / I + e / (S I)),

in which g and a have cancelled: that is what pairing buys. q is there if the items stand for
others like them, and not if these items are all there is.

Letters in names: R runs, I items, C cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.table.factors import cell_names, stratum_names
from analysis.table.items import Items

SEEDS = (2, 3, 5, 10, 20)
ITEMS = (100, 300, 1000, 3000, 10000)


@dataclass(frozen=True, slots=True)
class Noise:
    """Variances in squared points; NaN where the table does not tell them apart."""

    seed: float  # g
    run: float  # b
    item: float  # a
    cell_item: float  # q
    rest: float  # e
    cells: int
    runs: int
    items: int

    def se(self, seeds: float, items: float, *, paired: bool = True, fixed: bool = False) -> float:
        """Return the standard error of the difference of two cells.

        Args:
            seeds: runs a cell.
            items: items of the benchmark.
            paired: both cells on the same seeds and the same items.
            fixed: these items are all there is.
        """
        by_run = self.run if paired else self.run + self.seed
        by_item = 0.0 if fixed else self.cell_item + (0.0 if paired else self.item)
        return float(np.sqrt(2 * (by_run / seeds + by_item / items + self.rest / (seeds * items))))


def noise(items: Items) -> Noise:
    """Return the variance components of one task's scores in one stratum.

    Args:
        items: of one task; runs of one data set and base model, several seeds a cell.

    Raises:
        AnalysisError: no cell with two runs, or items that not every run was scored on.
    """
    score_RI = items.scores_RI.astype(np.float64)
    score_RI = score_RI[:, ~np.isnan(score_RI).any(axis=0)]
    names = cells_of(items).to_numpy()
    if score_RI.shape[1] < 2:
        raise AnalysisError("noise: the runs share fewer than two items")
    groups = [np.flatnonzero(names == n) for n in dict.fromkeys(names)]
    several = [g for g in groups if len(g) > 1]
    if not several:
        raise AnalysisError("noise: no cell has two runs, so runs and items cannot be separated")
    rest, within = _two_way(score_RI, several)
    mean_CI = np.array([score_RI[g].mean(axis=0) for g in groups])
    item, cell_item = _by_item(mean_CI, rest, np.array([len(g) for g in groups]))
    count = score_RI.shape[1]
    shared = _shared(items.runs, score_RI.mean(axis=1), names)
    run = max(within - rest / count, 0.0)
    seed = float(np.clip(shared, 0.0, run))
    return Noise(seed, run - seed, item, cell_item, rest, len(groups), len(score_RI), count)


def _two_way(score_RI: Array, groups: list[np.ndarray]) -> tuple[float, float]:
    """Return the mean square of run x item within cells, and of the runs' means within cells."""
    rest, runs, df = 0.0, 0.0, 0
    for group in groups:
        own = score_RI[group] - score_RI[group].mean(axis=0)
        mean = own.mean(axis=1, keepdims=True)
        rest += float(((own - mean) ** 2).sum())
        runs += float((mean**2).sum())
        df += len(group) - 1
    return rest / (df * (score_RI.shape[1] - 1)), runs / df


def _by_item(mean_CI: Array, rest: float, runs_C: np.ndarray) -> tuple[float, float]:
    """Return the variances of items and of cell x item, from the cells' means on every item."""
    if len(mean_CI) < 2:
        return max(float(mean_CI.var(ddof=1)) - rest / float(runs_C[0]), 0.0), float("nan")
    cov_CC = np.cov(mean_CI)
    cells = len(cov_CC)
    own = float((np.diagonal(cov_CC) - rest / runs_C).mean())
    item = float((cov_CC.sum() - np.trace(cov_CC)) / (cells * (cells - 1)))
    item = max(item, 0.0)
    return item, max(own - item, 0.0)


def _shared(runs: pd.DataFrame, mean_R: Array, names: np.ndarray) -> float:
    """Return the covariance, over seeds, of the means of runs of different cells."""
    if "seed" not in runs:
        return 0.0
    table = pd.DataFrame({"cell": names, "seed": runs["seed"].astype(str), "mean": mean_R})
    wide = table.pivot_table(index="seed", columns="cell", values="mean").dropna(axis=1)
    if wide.shape[0] < 2 or wide.shape[1] < 2:
        return 0.0
    cov_CC = np.cov(wide.to_numpy().T)
    cells = len(cov_CC)
    return float((cov_CC.sum() - np.trace(cov_CC)) / (cells * (cells - 1)))


def noise_table(items: Items) -> pd.DataFrame:
    """Return the standard deviations of every part, a row per stratum and task.

    Columns: stratum, task, cells, runs, items, then `seed`, `run`, `item`, `cell_item`, `rest`
    (standard deviations in points), and `se`, `se_fixed`, `se_unpaired`: of the difference of two
    cells at the number of seeds and items that were run.
    """
    rows = []
    for stratum, task, own in by_task(items):
        try:
            found = noise(own)
        except AnalysisError:
            continue
        seeds = found.runs / found.cells
        sd = {n: float(np.sqrt(getattr(found, n))) for n in _PARTS}
        rows.append({
            "stratum": stratum, "task": task, "cells": found.cells, "runs": found.runs,
            "items": found.items, **sd, "se": found.se(seeds, found.items),
            "se_fixed": found.se(seeds, found.items, fixed=True),
            "se_unpaired": found.se(seeds, found.items, paired=False),
        })  # fmt: skip
    return pd.DataFrame(rows)


_PARTS = ("seed", "run", "item", "cell_item", "rest")


def by_task(items: Items) -> Iterator[tuple[str, str, Items]]:
    """Yield every stratum and task with its scores; its runs have the name of their `cell`."""
    where = stratum_names(items.runs)
    for stratum in dict.fromkeys(where):
        there = items.of(runs=where == stratum)
        there = replace(there, runs=there.runs.assign(cell=cell_names(there.runs)))
        for task in items.tasks:
            yield str(stratum), task, there.of(tasks=[task])


def cells_of(items: Items) -> "pd.Series[str]":
    """Return every run's cell within its stratum, computed where `by_task` has not done so."""
    return items.runs["cell"] if "cell" in items.runs else cell_names(items.runs)


def plan_table(found: Noise) -> pd.DataFrame:
    """Return the standard error of a paired difference, a row per (seeds, items)."""
    rows = [{"seeds": s, "items": i, "se": found.se(s, i)} for s in SEEDS for i in ITEMS]
    return pd.DataFrame(rows)

"""A leaderboard that says how much of its order is noise.

For every data set and base model: all cells, best first, each with

    against_low, against_high   Hsu's simultaneous interval for its mean less the best of the others
    possible                    whether it may be the best: the confidence set for the best
    letters                     cells that share a letter are not distinguishable (all pairs)

and the winner's mean corrected for having won (`analysis.inference.winners`). Means are those of
`analysis.table.adjusted_means`: score ~ cell + seed by least squares, tasks weighing equally. Their
noise is that of other runs on these items; with the items' scores at hand it is that of other runs
on other items: the covariance of the cells' means over items is added, less what runs and items
share. Degrees of freedom are those of the runs in both cases, which makes the intervals of the sum
rather too long.

Letters in names: K cells, I items, S runs of one cell.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.engine.ties import falling
from analysis.errors import AnalysisError
from analysis.inference.crossed import rest_variance
from analysis.inference.estimates import DF_RULES
from analysis.inference.selection import against_best, letters
from analysis.inference.winners import Winner, winner
from analysis.table.adjusted_means import by_rule, seed_adjusted
from analysis.table.cells import run_means
from analysis.table.factors import cell_names, factors_of, stratum_names
from analysis.table.frame import study_rows
from analysis.table.items import Items, item_weights

MOST_LETTERS = 60  # cells beyond which a letter display is not readable
RUNS, ITEMS, BOTH = "other runs, these items", "these runs, other items", "other runs, other items"


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The cells of one data set and model, best first."""

    stratum: str
    cells: pd.DataFrame  # cell, its levels, runs, mean, se, against_low, ..., possible, letters
    winner: Winner | None  # None, with `cells` bare, where there is no noise estimate
    noise: str  # whose noise the intervals hold: other runs, other items or both
    note: str = ""

    @property
    def possible(self) -> int:
        """How many cells may be the best."""
        return int(self.cells["possible"].sum()) if "possible" in self.cells else 0


@dataclass(frozen=True, slots=True)
class Means:
    """The means of K cells and how sure they are."""

    labels: list[str]
    mean_K: Array
    cov_KK: Array
    df: float  # of the runs' variance; infinite where the noise is that of items alone
    noise: str


def leaderboards(
    frame: pd.DataFrame,
    *,
    side: str | None = None,
    items: Items | None = None,
    df: str = DF_RULES[0],
) -> list[Leaderboard]:
    """Return the leaderboard of every data set and base model with more than one cell.

    Args:
        frame: a prepared frame of `analysis.table.frame`.
        side: "target" or "source": the tasks that count; all of them by default.
        items: scores of the items behind it, if their noise is to be counted too.
        df: the rule for degrees of freedom, as of `table.adjusted_means.by_rule`.
    """
    rows = study_rows(frame)
    runs = run_means(rows, side=side)
    runs = runs.assign(cell=cell_names(runs), stratum=stratum_names(runs))
    wanted = rows if side is None else rows[rows["side"] == side]
    tasks = [t for t in (items.tasks if items else []) if (wanted["task"].astype(str) == t).any()]
    chosen = items.of(tasks=tasks) if items is not None and tasks else None
    found = []
    for stratum, own in runs.groupby("stratum", sort=False):
        if own["cell"].nunique() > 1:
            found.append(_leaderboard(str(stratum), own, _in(chosen, own), df))
    return found


def _in(items: Items | None, runs: pd.DataFrame) -> Items | None:
    """Return the items of these runs, None where one of them has none."""
    if items is None or not runs["run"].isin(items.runs["run"]).all():
        return None
    return items.of(runs=items.runs["run"].isin(runs["run"]))


def _leaderboard(stratum: str, runs: pd.DataFrame, items: Items | None, df: str) -> Leaderboard:
    names = factors_of(runs).cell
    columns = {n: (n, "first") for n in names} | {"runs": ("score", "size")}
    table = runs.groupby("cell", observed=True, sort=True).agg(**columns)
    try:
        means = cell_means(runs, items, df=df)
        against = against_best(means.mean_K, means.cov_KK, df=means.df)
        won = winner(means.mean_K, means.cov_KK, df=means.df)
    except AnalysisError as error:
        plain = runs.groupby("cell", observed=True)["score"].mean().rename("mean")
        bare = _best_first(table.join(plain))
        return Leaderboard(stratum, bare, None, "", f"No order can be defended here: {error}.")
    table = table.loc[means.labels].assign(
        mean=means.mean_K,
        se=np.sqrt(np.diagonal(means.cov_KK)),
        against_low=against.low_K,
        against_high=against.high_K,
        possible=against.possible_K,
    )
    if len(table) <= MOST_LETTERS:
        table["letters"] = letters(means.mean_K, means.cov_KK, df=means.df)
    table = _best_first(table)
    return Leaderboard(stratum, table, won, means.noise)


def _best_first(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[falling(table["mean"])].reset_index()


def cell_means(runs: pd.DataFrame, items: Items | None = None, *, df: str = DF_RULES[0]) -> Means:
    """Return the adjusted means of the cells of one stratum.

    Args:
        runs: one row per run: cell, seed, score, run.
        items: of the same runs and tasks, if their noise is to be counted too.
        df: the rule for degrees of freedom, as of `table.adjusted_means.by_rule`.

    Raises:
        AnalysisError: the noise cannot be estimated, or the cells ran under different seeds.
    """
    labels = sorted(runs["cell"].unique())
    over_items = None if items is None else _items_covariance(items, runs, labels)
    try:
        fit = by_rule(seed_adjusted(runs, labels), df)
    except AnalysisError:
        if over_items is None:
            raise
        mean = runs.groupby("cell")["score"].mean().loc[labels].to_numpy(dtype=float)
        return Means(labels, mean, over_items, float("inf"), ITEMS)
    cov_KK, noise = fit.covariance(), RUNS
    if over_items is not None:
        cov_KK, noise = cov_KK + over_items, BOTH
    return Means(labels, fit.mean_SY[:, 0], cov_KK, fit.df, noise)


def _items_covariance(items: Items, runs: pd.DataFrame, labels: list[str]) -> Array:
    """Return the covariance of the cells' means over items, less the runs' share of it.

    What a run adds on an item by chance is in the noise of runs already; it is estimated within
    cells of several runs and taken off the diagonal, which stays at least zero.
    """
    weight_I = item_weights(items)
    cell = items.runs["run"].astype(str).map(runs.set_index(runs["run"].astype(str))["cell"])
    groups = [np.flatnonzero((cell == label).to_numpy()) for label in labels]
    score_RI = items.scores_RI.astype(np.float64)
    if np.isnan(score_RI).any():
        raise AnalysisError("the runs were scored on different items")
    mean_KI = np.array([score_RI[g].mean(axis=0) for g in groups])
    count = np.array([len(g) for g in groups])
    several = [g for g in groups if len(g) > 1]
    # One cell's own estimate of the rest is for its number of runs: pooled for one run, then cut.
    rest = [rest_variance(score_RI[g], weight_I) * len(g) for g in several]
    cov_KK = np.zeros((len(labels), len(labels)))
    for task in items.tasks:
        own = (items.items["task"] == task).to_numpy()
        part_KI = mean_KI[:, own] * weight_I[own]
        part_KI -= part_KI.mean(axis=1, keepdims=True)
        cov_KK += part_KI @ part_KI.T * own.sum() / (own.sum() - 1)
    shared_K = (float(np.mean(rest)) if rest else 0.0) / count
    size_K = np.diagonal(cov_KK).copy()
    np.fill_diagonal(cov_KK, np.maximum(size_K - shared_K, 0.0))
    return _valid(cov_KK)


def _valid(cov_KK: Array) -> Array:
    """Return the nearest covariance: what was taken off the diagonal may have been too much."""
    values, vectors = np.linalg.eigh(cov_KK)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)

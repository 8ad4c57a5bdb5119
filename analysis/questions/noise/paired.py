"""The difference of two cells, item by item: what is left of the noise when both answer the same.

Cells are compared on the same items and, where they have them, the same seeds. Three intervals can
be meant, and they are not the same:

    items   other items like these, the trained runs as they are (Miller 2024, arXiv 2411.00640,
            section 4: paired differences)
    runs    other runs, these items as they are (a paired t over seeds)
    both    other runs on other items: the two variances together less the part they share,
            s^2 = MS_seed / (S I) + MS_item / (S I) - MS_rest / (S I),
            Satterthwaite's degrees of freedom

Tasks count equally and are fixed; items are drawn within their task.

Letters in names: S seeds, I items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate
from analysis.table.items import Items, item_weights


@dataclass(frozen=True, slots=True)
class Paired:
    """One cell less another in points, with the standard error of each question."""

    estimate: float
    items: Estimate  # the runs as they are
    runs: Estimate | None  # the items as they are; None without two seeds in each cell
    both: Estimate | None
    unpaired: float  # standard error over items, had the two cells answered different ones
    correlation: float  # of the two cells' scores over items
    n_items: int
    seeds: int  # that both cells have

    @property
    def best(self) -> Estimate:
        """The most cautious estimate that the table supports."""
        return self.items if self.both is None else self.both


def paired(items: Items, first: "pd.Series[bool]", second: "pd.Series[bool]") -> Paired:
    """Return the cell of the runs `first` less the cell of the runs `second`.

    Args:
        items: of one task, or of several, which then count equally.
        first: which of `items.runs` belong to the first cell, one run a seed.
        second: the same for the second cell.

    Raises:
        AnalysisError: a cell without runs, or no item that all these runs were scored on.
    """
    a_SI, b_SI, seeds = _matched(items, first, second)
    known = ~(np.isnan(a_SI).any(axis=0) | np.isnan(b_SI).any(axis=0))
    if known.sum() < 2:
        raise AnalysisError("paired: the two cells share fewer than two items")
    table = items.items[pd.Series(known)].reset_index(drop=True)
    weight_I = item_weights(Items(items.scores_RI[:, known], items.runs, table))
    a_SI, b_SI = a_SI[:, known], b_SI[:, known]
    mean_I = a_SI.mean(axis=0) - b_SI.mean(axis=0)
    task_I = table["task"].to_numpy(str)
    by_items = items_variance(mean_I, weight_I, task_I)
    apart = sum(items_variance(x.mean(axis=0), weight_I, task_I) for x in (a_SI, b_SI))
    estimate = float(weight_I @ mean_I)
    over_items = Estimate("items", estimate, float(np.sqrt(by_items)), len(table) - 1.0)
    over_runs, both = _over_runs(a_SI, b_SI, weight_I, over_items, len(seeds))
    return Paired(
        estimate=estimate,
        items=over_items,
        runs=over_runs,
        both=both,
        unpaired=float(np.sqrt(apart)),
        correlation=_correlation(a_SI.mean(axis=0), b_SI.mean(axis=0)),
        n_items=len(table),
        seeds=len(seeds),
    )


def items_variance(value_I: Array, weight_I: Array, task_I: npt.NDArray[np.str_]) -> float:
    """Return the variance of sum w y, items drawn at random within every task.

    With equal weights and one task it is var(y) / n.
    """
    total = 0.0
    for task in np.unique(task_I):
        own = task_I == task
        weight, value = weight_I[own], value_I[own]
        parts = weight * (value - weight @ value / weight.sum())
        if len(parts) < 2:
            return float("nan")
        total += len(parts) / (len(parts) - 1) * float(parts @ parts)
    return total


def _matched(
    items: Items, first: "pd.Series[bool]", second: "pd.Series[bool]"
) -> tuple[Array, Array, list[str]]:
    """Return the scores of both cells, rows matched by seed where they share at least two."""
    rows = [np.flatnonzero(which.to_numpy(dtype=bool)) for which in (first, second)]
    if not all(map(len, rows)):
        raise AnalysisError("paired: a cell has no run here")
    seed = items.runs["seed"].astype(str).to_numpy() if "seed" in items.runs else None
    score_RI = items.scores_RI
    if seed is not None:
        maps = [{seed[r]: r for r in own} for own in rows]
        shared = [s for s in maps[0] if s in maps[1]]
        one_each = all(len(m) == len(own) for m, own in zip(maps, rows, strict=True))
        if one_each and len(shared) > 1:
            rows = [np.array([m[s] for s in shared]) for m in maps]
            a, b = (score_RI[own].astype(np.float64) for own in rows)
            return a, b, shared
    a, b = (score_RI[own].astype(np.float64) for own in rows)
    return a, b, []


def _over_runs(
    a_SI: Array, b_SI: Array, weight_I: Array, over_items: Estimate, seeds: int
) -> tuple[Estimate | None, Estimate | None]:
    """Return the estimates over runs and over both; None without two runs in each cell."""
    estimate = over_items.estimate
    if min(len(a_SI), len(b_SI)) < 2:
        return None, None
    parts = [(a_SI - b_SI, seeds - 1)] if seeds else [(x, len(x) - 1) for x in (a_SI, b_SI)]
    variances = [float((x @ weight_I).var(ddof=1) / len(x)) for x, _ in parts]
    shared = sum(rest_variance(x, weight_I) for x, _ in parts)
    by_runs = sum(variances)
    if not by_runs > 0:
        return None, None
    dfs = [df for _, df in parts]
    runs_df = by_runs**2 / sum(v**2 / d for v, d in zip(variances, dfs, strict=True))
    over_runs = Estimate("runs", estimate, float(np.sqrt(by_runs)), runs_df)
    by_items = over_items.se**2
    total = max(by_runs + by_items - shared, by_runs, by_items)
    # The shared part has many degrees of freedom: what it adds to the denominator is nothing.
    df = total**2 / (by_runs**2 / runs_df + by_items**2 / over_items.df)
    return over_runs, Estimate("both", estimate, float(np.sqrt(total)), df)


def rest_variance(x_SI: Array, weight_I: Array) -> float:
    """Return what run x item contributes to the variance of the weighted mean."""
    own = x_SI - x_SI.mean(axis=0)
    own -= own @ weight_I[:, None] / weight_I.sum()
    runs = len(x_SI)
    return float(((own**2).sum(axis=0) / (runs - 1)) @ weight_I**2 / runs)


def _correlation(a_I: Array, b_I: Array) -> float:
    if a_I.std() == 0 or b_I.std() == 0:
        return float("nan")
    return float(np.corrcoef(a_I, b_I)[0, 1])

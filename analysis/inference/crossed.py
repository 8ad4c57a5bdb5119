"""The difference of two sides that answer the same items: runs crossed with items.

Three intervals can be meant, and they are not the same:

    items   other items like these, the runs as they are (Miller 2024, arXiv 2411.00640, section 4:
            paired differences)
    runs    other runs, these items as they are (a paired t over runs; Welch's where runs have no
            partner)
    both    other runs on other items. With the mean squares X of runs, and of items and of their
            interaction, each over its count, the variance is X + w, w = items less interaction

Runs of several conditions (weights, data sets, ...) are drawn within them, and the conditions are
those that were run: what a side does differently under one and another is no noise. The mean
squares of runs and of the interaction are pooled within conditions then, as the intercept of a
least-squares fit of the pairs with a column for every condition has them. For other conditions like
these, `analysis.table.conditions` takes conditions for a sample.

An item's differences may be few: among 50 answers two may have changed. To the variance over items
half of one more is added that nobody saw, as large as a difference usually is where there is one:
of right or wrong answers, b + c that changed count as b + c + 1/2 (of no use where scores are
continuous, and of no harm: it adds 1 / 2I). Where none changed two more are added, the interval of
Bonett and Price (2012, J. Educ. Behav. Stat. 37(4)).

X has as many degrees of freedom k as there are runs less one, often 1 or 2, and w has many.
Satterthwaite's rule, k (1 + w / X)^2, is too hopeful there: with 2 runs a side an interval of 95 %
covers 87 %. Used is

    df = k (1 + c (w / X)^2.5),    c = min(1, 0.03 + (k - 1) / 2),

fitted so that the interval covers 94.0 to 96.4 % for every ratio of the true variances at k = 1,
94.3 to 95.9 % from k = 1.5 on (`tests/unit/test_crossed.py` computes it by quadrature). Where the
means of few runs happen to agree, X is smaller than what items vary between runs, and this interval
would be shorter than the one over items alone, which leaves the runs out: that one is taken then,
so `both` is never the shorter.

Letters in names: S runs of a side, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate

Labels = npt.NDArray[Any]
POWER = 2.5
SAME = 1e-12  # of the variance over items: runs that differ by less agree


@dataclass(frozen=True, slots=True)
class Paired:
    """One side less another in points, with the standard error of each question."""

    estimate: float
    items: Estimate  # the runs as they are
    runs: Estimate | None  # the items as they are; None without two runs on each side
    both: Estimate | None
    unpaired: float  # standard error over items, had the two sides answered different ones
    correlation: float  # of the two sides' scores over items
    n_items: int
    seeds: int  # runs of either side that have a partner on the other
    clusters: int  # of items; as many as items where these come one by one

    @property
    def best(self) -> Estimate:
        """The most cautious estimate that the table supports."""
        return self.items if self.both is None else self.both


def paired_difference(
    a_SI: Array,
    b_SI: Array,
    weight_I: Array,
    task_I: Labels,
    *,
    partners: int,
    condition_S: Labels | None = None,
    cluster_I: Labels | None = None,
    most: float = 0.0,
) -> Paired:
    """Return the weighted mean of `a_SI` less that of `b_SI`, with its intervals.

    Args:
        a_SI: scores of the first side, a row a run; none missing.
        b_SI: scores of the second side on the same items.
        weight_I: what an item counts; they sum to 1.
        task_I: the stratum of every item: items are drawn within it, strata are fixed.
        partners: 0 where the runs of the two sides are unrelated, else their number: row s of one
            side belongs to row s of the other.
        condition_S: the condition of every pair of partners; None where there is one.
        cluster_I: items of one cluster were drawn together; None where each stands for itself.
        most: the largest difference that an item can have, used where no item differs at all.

    Raises:
        AnalysisError: fewer than two items, or than two clusters.
    """
    count = a_SI.shape[1]
    groups_I = (
        np.arange(count) if cluster_I is None else np.unique(cluster_I, return_inverse=True)[1]
    )
    clusters = len(np.unique(groups_I))
    if count < 2:
        raise AnalysisError("paired: the two cells share fewer than two items")
    if clusters < 2:
        raise AnalysisError("paired: all items are of one cluster; others cannot be told from it")
    mean_I = a_SI.mean(axis=0) - b_SI.mean(axis=0)
    seen = items_variance(mean_I, weight_I, task_I, groups_I)
    by_items = seen + _unseen(mean_I, weight_I, task_I, groups_I, most)
    apart = sum(items_variance(x.mean(axis=0), weight_I, task_I, groups_I) for x in (a_SI, b_SI))
    estimate = float(weight_I @ mean_I)
    over_items = Estimate("items", estimate, float(np.sqrt(by_items)), clusters - 1.0)
    parts = [(a_SI - b_SI, condition_S)] if partners else [(a_SI, None), (b_SI, None)]
    over_runs, both = _over_runs(parts, weight_I, groups_I, over_items)
    return Paired(
        estimate=estimate,
        items=over_items,
        runs=over_runs,
        both=both,
        unpaired=float(np.sqrt(apart)),
        correlation=_correlation(a_SI.mean(axis=0), b_SI.mean(axis=0)),
        n_items=count,
        seeds=partners,
        clusters=clusters,
    )


def items_variance(
    value_I: Array, weight_I: Array, task_I: Labels, cluster_I: Labels | None = None
) -> float:
    """Return the variance of sum w y, items or clusters of them drawn at random within every task.

    With equal weights, one task and no clusters it is var(y) / n.
    """
    total = 0.0
    for task in np.unique(task_I):
        own = task_I == task
        totals_G = _totals(
            value_I[own], weight_I[own], None if cluster_I is None else cluster_I[own]
        )
        if len(totals_G) < 2:
            return float("nan")
        total += len(totals_G) / (len(totals_G) - 1) * float(totals_G @ totals_G)
    return total


def _totals(value_I: Array, weight_I: Array, cluster_I: Labels | None) -> Array:
    """Return what each item, or cluster, of one task adds to the weighted mean less its share."""
    parts = weight_I * (value_I - weight_I @ value_I / weight_I.sum())
    return parts if cluster_I is None else _summed(parts, cluster_I)


def _summed(value_I: Array, cluster_I: Labels) -> Array:
    return np.asarray(np.bincount(_codes(cluster_I), value_I), dtype=np.float64)


def _codes(label_I: Labels) -> Labels:
    return np.unique(label_I, return_inverse=True)[1]


def _unseen(
    mean_I: Array, weight_I: Array, task_I: Labels, cluster_I: Labels, most: float
) -> float:
    """Return what differences that nobody saw add to the variance, shared out over the tasks.

    Half of one as large as a cluster's is where there is one; two of `most` where no item differs.
    """
    tasks = np.unique(task_I)
    total = 0.0
    for task in tasks:
        own = task_I == task
        totals_G = _summed(weight_I[own] * mean_I[own], cluster_I[own])
        differ = np.abs(totals_G) > 1e-12 * float(np.abs(totals_G).max())
        if differ.any():
            total += float((totals_G[differ] ** 2).mean()) / 2
        else:
            total += 2 * (most * float(weight_I[own].mean())) ** 2
    return total / len(tasks)


def over_runs(estimate: float, parts: Sequence[tuple[Array, Labels | None]]) -> Estimate | None:
    """Return a difference with its error over other runs; None where none of its parts varies.

    Args:
        estimate: the difference.
        parts: the values of runs (S,) whose means it is made of, with their conditions: those of
            pairs, or of either side where runs have no partner (Welch's rule).
    """
    found = [within_conditions(value_S, condition_S) for value_S, condition_S in parts]
    variances = [float(own @ own) / df / len(own) for own, df in found]
    total = sum(variances)
    if not total > 0:
        return None
    freedom = total**2 / sum(v**2 / df for v, (_, df) in zip(variances, found, strict=True))
    return Estimate("runs", estimate, float(np.sqrt(total)), freedom)


def within_conditions(value_S: Array, condition_S: Labels | None) -> tuple[Array, int]:
    """Return values of runs (S, ...) less the mean of their condition, and degrees of freedom."""
    if condition_S is None:
        return value_S - value_S.mean(axis=0), len(value_S) - 1
    codes_S = _codes(condition_S)
    own_CS = np.eye(int(codes_S.max()) + 1)[:, codes_S]
    means = (own_CS / own_CS.sum(axis=1, keepdims=True)) @ value_S
    return value_S - means[codes_S], len(value_S) - len(own_CS)


def _over_runs(
    parts: Sequence[tuple[Array, Labels | None]],
    weight_I: Array,
    cluster_I: Labels,
    over_items: Estimate,
) -> tuple[Estimate | None, Estimate | None]:
    """Return the estimates over runs and over both; None without two runs of one condition.

    Args:
        parts: scores of runs (S, I) with their conditions, as of `over_runs`.
        weight_I: what an item counts.
        cluster_I: the cluster of every item.
        over_items: the estimate over items.
    """
    estimate = over_items.estimate
    if min(within_conditions(x @ weight_I, condition)[1] for x, condition in parts) < 1:
        return None, None
    by_items = over_items.se**2
    runs = over_runs(estimate, [(x @ weight_I, condition) for x, condition in parts])
    if runs is None or not runs.se**2 > SAME * by_items:
        return None, Estimate("both", estimate, over_items.se, over_items.df)
    by_runs, freedom = runs.se**2, runs.df
    shared = sum(rest_variance(x, weight_I, cluster_I, condition) for x, condition in parts)
    alone = max(by_items - shared, 0.0)  # of items, beyond what their answers vary between runs
    total = by_runs + alone
    df = 1 / (1 / joint_df(by_runs, alone, freedom) + (alone / total) ** 2 / over_items.df)
    both = Estimate("both", estimate, float(np.sqrt(total)), df)
    if both.half_width < over_items.half_width:  # the means of few runs agreed by chance
        both = replace(over_items, name="both")
    return runs, both


def joint_df(by_runs: float, alone: float, freedom: float) -> float:
    """Return the degrees of freedom of `by_runs` + `alone`, see the module's docstring.

    Args:
        by_runs: a variance that is estimated with `freedom` degrees of freedom, X.
        alone: a variance that is as good as known, w.
        freedom: k, 1 or more.
    """
    factor = min(1.0, 0.03 + (freedom - 1) / 2)
    return float(freedom * (1 + factor * min(alone / by_runs, 1e6) ** POWER))


def rest_variance(
    x_SI: Array,
    weight_I: Array,
    cluster_I: Labels | None = None,
    condition_S: Labels | None = None,
) -> float:
    """Return what run x item contributes to the variance of the weighted mean."""
    own, df = within_conditions(x_SI, condition_S)
    own -= own @ weight_I[:, None] / weight_I.sum()
    parts = own * weight_I
    if cluster_I is not None and len(np.unique(cluster_I)) < len(cluster_I):
        parts = np.array([_summed(row, cluster_I) for row in parts])
    return float((parts**2).sum() / df / len(x_SI))


def _correlation(a_I: Array, b_I: Array) -> float:
    if a_I.std() == 0 or b_I.std() == 0:
        return float("nan")
    return float(np.corrcoef(a_I, b_I)[0, 1])

"""B less A where logs state scores without their items: over runs, or by the errors they state."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from analysis.compare.benchmarks import Asked, chosen, in_fractions, metrics_of
from analysis.compare.matched import Matched
from analysis.compare.rows import APART, MEAN, RUNS, Row
from analysis.inference.crossed import over_runs
from analysis.inference.estimates import Estimate
from analysis.logs.log import Log


def stated_rows(runs: Matched, asked: Asked, known: set[str]) -> Iterator[Row]:
    """Yield B less A on the benchmarks of which logs state scores alone.

    Args:
        runs: of both sides.
        asked: what was asked for.
        known: tasks whose items are known.
    """
    every = [*runs.first, *runs.second]
    for task, metrics in metrics_of(every, asked, "scores").items():
        metric = chosen(task, metrics, asked.metric)
        if task in known or metric is None:
            continue
        sides = [[_score(log, task, metric) for log in side] for side in (runs.first, runs.second)]
        values = [np.array([v for v, _ in side]) for side in sides]
        low = asked.turned(every, task, metric)
        fraction = in_fractions((task, metric), *values)
        scale = (100.0 if fraction else 1.0) * (-1.0 if low else 1.0)
        a_S, b_S = (scale * own for own in values)
        errors = [np.array([e for _, e in side]) * abs(scale) for side in sides]
        apart = float(np.sqrt(sum(np.mean(e**2) / len(e) for e in errors)))
        row = Row(
            task, metric, RUNS, float(a_S.mean()), float(b_S.mean()), None,
            "points" if fraction else "", apart=apart, turned=low,
            by_run=(tuple(a_S), tuple(b_S)),
        )  # fmt: skip
        yield _judged(row, runs)


def _score(log: Log, task: str, metric: str) -> tuple[float, float]:
    table = log.scores
    own = table[(table["task"] == task) & (table["metric"] == metric)].iloc[0]
    return float(own["value"]), float(own["se"])


def _judged(row: Row, runs: Matched) -> Row:
    """Return the row with its effect: over runs where there are several, else by its errors."""
    if runs.replicated:
        return replace(row, scope=RUNS, effect=_over_runs(row, runs))
    if math.isnan(row.apart):
        return row
    effect = Estimate("apart", row.b - row.a, row.apart, math.inf)
    return replace(row, scope=APART, effect=effect)


def _over_runs(row: Row, runs: Matched) -> Estimate:
    a_S, b_S = (np.array(side) for side in row.by_run)
    gap = float(b_S.mean() - a_S.mean())
    parts = [(b_S - a_S, runs.condition_S)] if runs.partners else [(a_S, None), (b_S, None)]
    return over_runs(gap, parts) or Estimate("runs", gap, 0.0, 1.0)


def mean_of_rows(rows: Sequence[Row], runs: Matched) -> Row:
    """Return the mean over benchmarks of which some have no items.

    Runs answer all benchmarks: over runs it is their means that count. Of one run a side the errors
    of benchmarks are those of other items each, and independent.
    """
    means = {n: float(np.mean([getattr(row, n) for row in rows])) for n in ("a", "b")}
    apart = float(np.sqrt(sum(row.apart**2 for row in rows))) / len(rows)
    by_run = tuple(tuple(np.mean([row.by_run[i] for row in rows], axis=0)) for i in (0, 1))
    head = Row(MEAN, "", RUNS, means["a"], means["b"], None, rows[0].unit, apart=apart,
               by_run=(by_run[0], by_run[1]))  # fmt: skip
    if runs.replicated:
        return _judged(head, runs)
    errors = np.array([row.effect.se**2 for row in rows if row.effect is not None])
    se = float(np.sqrt(errors.sum())) / len(errors)
    effect = Estimate("mean", head.b - head.a, se, math.inf)
    return replace(head, scope=APART, effect=effect)

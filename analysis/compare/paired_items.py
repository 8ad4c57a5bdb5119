"""B less A where both sides' items are known.

Letters in names: S runs of a side, I items.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.compare.benchmarks import Benchmark
from analysis.compare.matched import Matched
from analysis.compare.rows import BOTH, ITEMS, MEAN, Missing, Row
from analysis.engine.linalg import Array
from analysis.inference.crossed import Paired, paired_difference

Labels = npt.NDArray[Any]


def benchmark_row(one: Benchmark, runs: Matched) -> Row:
    """Return B less A on one benchmark; without an effect where fewer than two items are shared."""
    known_I = one.known_I
    a_SI, b_SI = one.a_SI[:, known_I], one.b_SI[:, known_I]
    count = int(known_I.sum())
    nan = math.nan
    row = Row(
        one.name, one.metric, BOTH if runs.replicated else ITEMS, nan, nan, None,
        "points" if one.points else "", items=count, missing=_missing(one), turned=one.turned,
    )  # fmt: skip
    if count < 2:
        return row
    cluster_I = None if one.cluster_I is None else one.cluster_I[known_I]
    task_I = _strata(one.task_I[known_I], cluster_I, one.name)
    weight_I = np.full(count, 1 / count)
    row = _with(row, _paired(a_SI, b_SI, runs, (weight_I, task_I, cluster_I), one.ends), runs)
    down, up = _flips(a_SI, b_SI, runs)
    single = len(a_SI) == len(b_SI) == 1
    variances = [x.mean(axis=0).var(ddof=1) / count for x in (a_SI, b_SI)]
    return replace(
        row, a=float(a_SI.mean()), b=float(b_SI.mean()), apart=float(np.sqrt(sum(variances))),
        down=down, up=up, mcnemar=mcnemar(down, up) if single and one.binary else nan,
        by_run=(tuple(a_SI.mean(axis=1)), tuple(b_SI.mean(axis=1))),
    )  # fmt: skip


def mean_row(found: Sequence[Benchmark], rows: Sequence[Row], runs: Matched) -> Row:
    """Return the mean over benchmarks, which weigh equally.

    Args:
        found: the benchmarks, all in one unit.
        rows: those of these benchmarks.
        runs: of both sides.
    """
    known = [one.known_I for one in found]
    sides = (
        np.concatenate([one.a_SI[:, k] for one, k in zip(found, known, strict=True)], axis=1),
        np.concatenate([one.b_SI[:, k] for one, k in zip(found, known, strict=True)], axis=1),
    )
    weight_I = np.concatenate([np.full(k.sum(), 1 / (k.sum() * len(found))) for k in known])
    clusters = [
        np.char.add(f"{one.name} ", one.cluster_I[k])
        for one, k in zip(found, known, strict=True)
        if one.cluster_I is not None
    ]
    strata = []
    for one, k in zip(found, known, strict=True):
        own = _strata(one.task_I[k], None if one.cluster_I is None else one.cluster_I[k], one.name)
        strata.append(np.char.add(f"{one.name} ", own.astype(str)))
    cluster_I = np.concatenate(clusters) if clusters else None
    parts = (weight_I, np.concatenate(strata), cluster_I)
    ends = (min(one.ends[0] for one in found), max(one.ends[1] for one in found))
    a, b = (float(np.mean([getattr(row, n) for row in rows])) for n in ("a", "b"))
    row = Row(MEAN, "", rows[0].scope, a, b, None, rows[0].unit, items=len(weight_I))
    lost = [r.missing for r in rows if r.missing is not None]
    return replace(
        _with(row, _paired(*sides, runs, parts, ends), runs),
        missing=Missing(
            *(sum(getattr(m, n) for m in lost) for n in ("first", "second", "either")),
            *(float(np.mean([getattr(m, n) for m in lost])) for n in ("low", "high")),
        ),
        apart=float(np.sqrt(sum(r.apart**2 for r in rows))) / len(rows),
        down=sum(r.down for r in rows), up=sum(r.up for r in rows),
    )  # fmt: skip


def mcnemar(down: int, up: int) -> float:
    """Return the exact two-sided p-value that flips are as frequent in either direction."""
    return float(stats.binomtest(up, down + up).pvalue) if down + up else 1.0


def _paired(
    a_SI: Array,
    b_SI: Array,
    runs: Matched,
    parts: tuple[Array, Labels, Labels | None],
    ends: tuple[float, float],
) -> Paired:
    """Return B less A, of the runs' means where one seed a condition samples no runs."""
    weight_I, task_I, cluster_I = parts
    if not runs.replicated:
        a_SI, b_SI = a_SI.mean(axis=0, keepdims=True), b_SI.mean(axis=0, keepdims=True)
    partners = runs.partners if runs.replicated else 0
    return paired_difference(
        b_SI, a_SI, weight_I, task_I, partners=partners, cluster_I=cluster_I,
        condition_S=runs.condition_S if partners else None, most=ends[1] - ends[0],
    )  # fmt: skip


def _with(row: Row, found: Paired, runs: Matched) -> Row:
    return replace(
        row, effect=found.best, clusters=found.clusters, over_items=found.items,
        over_runs=found.runs if runs.replicated else None,
    )  # fmt: skip


def _strata(task_I: Labels, cluster_I: Labels | None, name: str) -> Labels:
    """Return the stratum of every item: its subtask, where that has two items or clusters.

    Those with one stand in one stratum together, a single one with the smallest of the others.
    """
    sizes = {
        str(task): len(np.unique(cluster_I[task_I == task]))
        if cluster_I is not None
        else int((task_I == task).sum())
        for task in np.unique(task_I)
    }
    few = [task for task, size in sizes.items() if size < 2]
    if not few or len(sizes) == 1:
        return task_I
    if len(few) == 1:
        few.append(min((t for t in sizes if t not in few), key=lambda t: sizes[t]))
    return np.where(np.isin(task_I, few), f"{name} (few)", task_I)


def _flips(a_SI: Array, b_SI: Array, runs: Matched) -> tuple[int, int]:
    """Return on how many items B is lower and higher, over pairs of runs, else of their means."""
    if not runs.partners:
        a_SI, b_SI = a_SI.mean(axis=0, keepdims=True), b_SI.mean(axis=0, keepdims=True)
    return int((b_SI < a_SI).sum()), int((b_SI > a_SI).sum())


def _missing(one: Benchmark) -> Missing:
    whole = [~np.isnan(x).any(axis=0) for x in (one.a_SI, one.b_SI)]
    low, high = one.ends

    def mean(x_SI: Array, value: float) -> float:
        return float(np.where(np.isnan(x_SI), value, x_SI).mean())

    return Missing(
        first=int((~whole[0] & whole[1]).sum()),
        second=int((whole[0] & ~whole[1]).sum()),
        either=int((~whole[0] & ~whole[1]).sum()),
        low=mean(one.b_SI, low) - mean(one.a_SI, high),
        high=mean(one.b_SI, high) - mean(one.a_SI, low),
    )

"""What the arms of a group are compared in, each at its own learning rate (`questions.own_rate`).

    score        benchmarks of the task, points; not of data sets of plain text, which have none
    perplexity   100 ln of the perplexity of the test rows, so that a difference is in percent of
                 perplexity
    above_0.1    singular values of the change above 0.1 (the paper's count), mean over matrices
    above_tenth  the same above a tenth of the largest one

An arm's rate is the optimum of its validation loss where three rates or more were tried, else the
best of those tried; one that was tuned elsewhere ran alone. Seeds are the unit of replication and
paired between arms; the interval of a difference holds runs, the choice of the rate and, for
scores whose items lie beside the table, the items.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.papers.mora.runs import LORA, Group, in_order
from analysis.questions.own_rate.curves import rate_curves
from analysis.questions.own_rate.estimate import OWN_OR_GIVEN, Compared, Difference
from analysis.questions.own_rate.noise import ItemScores, run_noise
from analysis.table.cells import run_means
from analysis.table.frame import SCORED

SCORE, PERPLEXITY, ABSOLUTE, RELATIVE = "score", "perplexity", "above_0.1", "above_tenth"
COUNTS = (ABSOLUTE, RELATIVE)
UNITS: Mapping[str, str] = {
    SCORE: "points", PERPLEXITY: "% of perplexity", ABSOLUTE: "singular values above 0.1",
    RELATIVE: "singular values above a tenth of the largest",
}  # fmt: skip
BETTER: Mapping[str, int] = {SCORE: 1, PERPLEXITY: -1}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TASK = "spectrum_counts"
PERCENT = 100.0  # of a difference of logarithms
TEXT = "text"  # the type of a data set without requests

GetItems = Callable[[pd.DataFrame, set[str]], ItemScores | None]


def no_items(_rows: pd.DataFrame, _runs: set[str]) -> ItemScores | None:
    """Return nothing: the items do not lie beside the table."""
    return None


@dataclass(frozen=True)
class Measured:
    """One measure of one group: what can be read off it."""

    group: Group
    measure: str
    found: Compared

    def difference(self, arm: str, against: str = LORA) -> Difference | None:
        """Return one arm less another at their own rates; None where one of them did not run."""
        arms = {c.arm for c in self.found.curves}
        if not {arm, against} <= arms or arm == against:
            return None
        own = replace(self.found, reference=against)
        return next((d for d in own.main_differences if d.arm == arm), None)


def effect(found: Difference | None) -> Estimate | None:
    """Return the estimate of a difference that replicates give an interval."""
    return found.estimate if found is not None and found.runs.variance > 0 else None


def measured(
    groups: Iterable[Group], frame: pd.DataFrame, items: GetItems = no_items
) -> list[Measured]:
    """Return every group in every measure that two or more of its arms have.

    Args:
        groups: of the table.
        frame: prepared.
        items: what gives the items of some rows and runs.
    """
    return [
        one
        for group in groups
        for one in (_score(group, frame, items), _perplexity(group),
                    *(_counts(group, frame, which) for which in COUNTS))
        if one is not None
    ]  # fmt: skip


def compared(
    group: Group, value: "pd.Series[float]", items: ItemScores | None = None
) -> Compared | None:
    """Return the comparison of a group's arms in a number; None of fewer than two arms.

    Args:
        group: of runs.
        value: by run.
        items: behind it.
    """
    runs = group.runs.assign(score=group.runs["run"].map(value).astype(float), place=group.where)
    curves = {c.arm: c for c in rate_curves(runs.dropna(subset=["score"]), fewest=1)}
    if len(curves) < 2:
        return None
    labels = {"dataset": group.dataset, "model": group.model, "side": "target"}
    ordered = tuple(curves[arm] for arm in in_order(dict.fromkeys(curves)))
    return Compared(labels, ordered, items, LORA, OWN_OR_GIVEN)


def _score(group: Group, frame: pd.DataFrame, items: GetItems) -> Measured | None:
    ids = set(group.runs["run"])
    rows = frame[frame["run"].astype(str).isin(ids) & frame["task_type"].isin(SCORED)]
    rows = rows[rows["side"].astype(str) != "source"]
    if not len(rows) or (rows["dataset_type"].astype(str) == TEXT).all():
        return None
    means = run_means(rows)
    found = compared(group, means.set_index(means["run"].astype(str))["score"])
    if found is None:
        return None
    runs = {r for c in found.curves for s in c.run_SK for r in s}
    return Measured(group, SCORE, replace(found, items=items(rows, runs)))


def _perplexity(group: Group) -> Measured | None:
    found = compared(group, PERCENT * group.runs.set_index("run")["test"])
    return None if found is None else Measured(group, PERPLEXITY, found)


def _counts(group: Group, frame: pd.DataFrame, which: str) -> Measured | None:
    found = compared(group, _counted(group, frame, which).mean(axis=1))
    return None if found is None else Measured(group, which, found)


def _counted(group: Group, frame: pd.DataFrame, which: str) -> pd.DataFrame:
    """Return the counts of every run (a row) by kind of matrix."""
    rows = frame[(frame["task"].astype(str) == TASK) & frame["run"].isin(set(group.runs["run"]))]
    names = {f"{which}_{kind}": kind for kind in KINDS}
    rows = rows.assign(kind=rows["metric"].astype(str).map(names)).dropna(subset=["kind"])
    return rows.pivot_table(
        index=rows["run"].astype(str), columns="kind", values="value", observed=True
    )


def by_kind(group: Group, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the counts by kind of matrix: measure, kind and the columns of `levels`."""
    parts = []
    for which in COUNTS:
        wide = _counted(group, frame, which)
        for kind in (k for k in KINDS if k in wide):
            found = compared(group, wide[kind])
            if found is not None:
                parts.append(levels(found).assign(measure=which, kind=kind))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def levels(found: Compared) -> pd.DataFrame:
    """Return arm, rate, end, n (seeds), estimate, low, high: every arm at its own rate.

    The interval is for comparing arms: what a seed does to all of them alike is not in it.
    """
    _, at = run_noise(found.main)
    rows = []
    for (arm, place), one in found.main.items():
        spread = at[arm, place]
        own = Estimate(arm, one.estimate, float(np.sqrt(spread.variance)), spread.df)
        rows.append({
            "arm": arm, "rate": one.rate, "end": one.end, "n": len(one.curve.seeds),
            "estimate": own.estimate, "low": own.low, "high": own.high,
        })  # fmt: skip
    return pd.DataFrame(rows)

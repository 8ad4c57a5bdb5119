"""Controls: comparisons whose answer is known, or that isolate one cause.

    sham      a label that changes nothing but the random draws: there must be no effect
    placebo   the weights of `none` at the same PLW, on random tokens of the row: does it matter
              which tokens are weighted?
    shuffled  every completion under another row's prompt: do the prompts carry anything?

Each control run is paired with the run that differs in that one thing, and the difference is
taken per pair, over tasks. The two runs of a placebo or shuffled pair share their example order,
so pairs are the units of the paired t. A sham run has an order of its own, which all sham runs of
one seed share: there the units are the seeds within a data set, each the mean of its pairs.
(Taking pairs instead would call a difference in 24 to 67 of 100 tables without any, where orders
matter as much as runs; taking the seeds, in 5.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.table.cells import run_means, without_rank
from analysis.table.factors import run_columns
from analysis.table.frame import SCORED

ALPHA = 0.05
NOT_RUN = "not run"
TOO_FEW = "too few pairs or seeds for an interval"


@dataclass(frozen=True, slots=True)
class Control:
    """One comparison: control less its partner, in points."""

    name: str
    tasks: str  # "all", or a task group
    pairs: int
    units: int  # what the interval counts: pairs, or seeds within a data set
    effect: Estimate | None  # None without two units
    verdict: str

    def row(self) -> dict[str, object]:
        """Return it as one row of a table."""
        found: dict[str, object] = {} if self.effect is None else dict(self.effect.row())
        head: dict[str, object] = {"control": self.name, "tasks": self.tasks, "pairs": self.pairs}
        head["units"] = self.units
        return head | {k: v for k, v in found.items() if k != "name"} | {"verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a control's runs are turned into the names of their partners, and its two verdicts."""

    partner: Callable[[pd.DataFrame], pd.DataFrame]
    shares_order: bool
    differs: str
    same: str


def _rename(column: str, name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda runs: runs.assign(**{column: name})


RULES = {
    "sham": _Rule(
        _rename("sham", "a"),
        False,
        "differs although nothing was changed: the noise is larger than the intervals say, or "
        "this is the one in twenty",
        "no difference, as there should be",
    ),
    "placebo": _Rule(
        _rename("masking", "none"),
        True,
        "it matters which tokens carry the weight",
        "which tokens carry the weight cannot be shown to matter",
    ),
    "shuffled": _Rule(
        _rename("shuffle_prompts", "False"),
        True,
        "the pairing of prompt and completion matters",
        "the pairing of prompt and completion cannot be shown to matter",
    ),
}


def controls(frame: pd.DataFrame) -> list[Control]:
    """Return every control, over all tasks and by task group; one that was not run says so."""
    return [c for name in RULES for c in control(frame, name)]


def control(frame: pd.DataFrame, name: str) -> list[Control]:
    """Return one control, "sham", "placebo" or "shuffled", over all tasks and by task group."""
    rows = frame[~frame["is_base"] & frame["task_type"].isin(SCORED)]
    if not (rows["control"] == name).any():
        return [Control(name, "all", 0, 0, None, NOT_RUN)]
    groups = [("all", rows), *rows.groupby("task_group", observed=True)]
    pairs = {str(tasks): differences(own, name) for tasks, own in groups}
    return [compare(name, own, tasks=tasks) for tasks, own in pairs.items()]


def differences(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return one row per pair: `gap`, control less partner as the mean over tasks, and `block`."""
    runs = run_means(rows)
    keys = pair_columns(runs)
    runs = without_rank(runs)
    runs[keys] = runs[keys].astype(str)
    treated = RULES[name].partner(runs[runs["control"] == name])
    plain = runs[runs["control"] == ""]
    pairs = treated.merge(plain, on=keys, how="inner", suffixes=("", "_plain"))
    block = pairs["dataset"] + ":" + pairs["seed"]
    return pd.DataFrame({"gap": pairs["score"] - pairs["score_plain"], "block": block})


def pair_columns(runs: pd.DataFrame) -> list[str]:
    """Return the columns in which a control run equals its partner, the control's own renamed.

    Not the learning rate: where it is a factor, `rate` has it.
    """
    return [n for n in run_columns(runs) if n not in ("run", "control", "lr")]


def compare(name: str, pairs: pd.DataFrame, *, tasks: str = "all") -> Control:
    """Return one control from its pairs, as `differences` gives them."""
    rule = RULES[name]
    gaps = pairs["gap"] if rule.shares_order else pairs.groupby("block")["gap"].mean()
    n = len(gaps)
    se = float(gaps.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    if se == 0.0:
        return Control(name, tasks, len(pairs), n, None, TOO_FEW)
    effect = Estimate(name, float(gaps.mean()), se, n - 1.0)
    verdict = rule.differs if effect.p < ALPHA else rule.same
    return Control(name, tasks, len(pairs), n, effect, verdict)


def control_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the controls as a table, one row each."""
    return pd.DataFrame([c.row() for c in controls(frame)])

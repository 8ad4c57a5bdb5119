"""What each column of a long table is: a weight, a factor, a covariate, a group, or of no use."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.formula import LARGEST
from analysis.regression.default_model import MANY

__all__ = ["MANY", "NUISANCE", "SCORES", "Role", "classified", "counts_of_items", "score_columns"]
SCORES = (
    "score", "accuracy", "acc", "correct", "exact_match", "f1", "bleu", "chrf", "rouge", "mean",
    "value", "outcome", "response", "result", "y",
)  # fmt: skip
GROUPS = (
    "run", "run_id", "seed", "replicate", "fold", "task", "benchmark", "item", "item_id",
    "question", "question_id", "example", "example_id", "doc_id", "prompt_id", "id", "subject",
    "participant", "annotator", "rater", "site", "lab", "batch", "block", "group", "cluster",
)  # fmt: skip
NUISANCE = ("run", "run_id", "seed", "replicate", "fold", "batch", "block", "id")
ITEMS = ("item", "item_id", "question", "question_id", "example", "example_id", "doc_id", "id")
TASKS = ("task", "benchmark")
MEASURES = re.compile(
    r"(^|_)(se|sem|sd|std|stderr|ci|low|high|lower|upper|p|time|seconds|hours|loss|date|note|"
    r"notes|comment|path|file|url|hash|key)$"
)
COUNTS = ("n", "trials", "items", "n_items", "num_items", "total", "count", "n_trials", "size")
MISSING = 0.5  # share of rows without a value from which a column is left out
SPAN = 20.0  # largest over smallest level from which a number is taken as its logarithm
FEW_NUMBERS = 20  # levels that a design's number may have
ANEW = 0.4  # share of items whose label another task has too
OWN = 0.9  # levels over rows from which a number is a measurement rather than a setting


@dataclass(frozen=True, slots=True)
class Role:
    """One column's part in a model."""

    column: str
    kind: str  # weight, factor, number, log, group, left out
    levels: int
    reason: str
    inside: str = ""  # the column within which a group's labels mean something


def score_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns that are named as scores are and hold numbers."""
    known = {name.lower(): name for name in map(str, frame.columns)}
    found = [known[name] for name in SCORES if name in known]
    return [n for n in found if pd.api.types.is_numeric_dtype(frame[n])]


def counts_of_items(frame: pd.DataFrame) -> list[str]:
    """Return the columns that are named as numbers of items are."""
    return [str(n) for n in frame.columns if str(n).lower() in COUNTS]


def classified(frame: pd.DataFrame, *, weights: str | None) -> Iterator[Role]:
    """Yield the role of every column, in the order of the table.

    Args:
        frame: prepared: truth values are text; `frame.attrs["names"]` are those of the score.
        weights: the column of weights or trials.
    """
    used: dict[str, Any] = {}
    for name in map(str, frame.columns):
        if name in (*frame.attrs["names"], weights):
            continue
        role = _role(name, frame, has_weight="wp" in frame)
        same = next((n for n, codes in used.items() if _same(codes, frame[name])), None)
        if role.kind != "left out" and same is not None and name != "wp":
            role = Role(name, "left out", role.levels, f"says the same as {same}")
        if role.kind != "left out":
            used[name] = _codes(frame[name])
        yield role


def _role(name: str, frame: pd.DataFrame, *, has_weight: bool) -> Role:
    column, rows = frame[name], len(frame)
    levels, missing = int(column.nunique()), int(column.isna().sum())
    number = pd.api.types.is_numeric_dtype(column)
    if "`" in name or "\\" in name or not name:
        why = "a name that is empty or has a backtick or backslash cannot stand in a formula"
        return Role(name, "left out", levels, why)
    if levels < 2:
        return Role(name, "left out", levels, "does not vary")
    if missing > MISSING * rows:
        return Role(name, "left out", levels, f"missing in {missing} of {rows} rows")
    if name in ("plw", "effective_plw") and has_weight:
        return Role(name, "left out", levels, "stands in the model as wp = PLW^0.30103")
    if name == "wp" and number:
        return Role(name, "weight", levels, "the prompt loss weight on its own scale")
    if MEASURES.search(name.lower()):
        return Role(name, "left out", levels, "by its name a measurement or a note, no setting")
    if number and name.lower() not in GROUPS:
        return _number(name, column, levels)
    return _labels(name, frame, levels)


def _number(name: str, column: "pd.Series[Any]", levels: int) -> Role:
    values = column.dropna().to_numpy(dtype=np.float64)
    if levels > FEW_NUMBERS and levels >= OWN * len(values) and (values != np.rint(values)).any():
        why = "nearly every row has its own value: a measurement rather than a setting"
        return Role(name, "left out", levels, why)
    if not (np.abs(values) < LARGEST).all():
        return Role(name, "left out", levels, f"some values are infinite or beyond {LARGEST:g}")
    low, high = values.min(), values.max()
    if low > 0 and high >= SPAN * low and 2 < levels <= FEW_NUMBERS:
        why = f"a number from {low:g} to {high:g}; on a log scale, where a doubling is a unit"
        return Role(name, "log", levels, why)
    return Role(name, "number", levels, "a number: a straight line")


def _labels(name: str, frame: pd.DataFrame, levels: int) -> Role:
    """Return the role of a column whose values are names, numbered or not."""
    rows, lower = len(frame), name.lower()
    inside = _inside(lower, frame)
    if inside:
        levels = int(frame.groupby([inside, name], observed=True).ngroups)
    if levels >= rows:
        return Role(name, "left out", levels, "one row for each level: it is the residual")
    if levels >= MANY:
        if levels >= rows / 2 and lower not in GROUPS:
            why = f"{levels} levels for {rows} rows: too few rows a level to learn from"
            return Role(name, "left out", levels, why)
        where = f" within {inside}, whose items are numbered anew" if inside else ""
        why = f"{levels} levels{where}: they stand for a population"
        return Role(name, "group", levels, why, inside)
    if lower in NUISANCE:
        why = f"a block of {levels} levels, too few to stand for a population"
        return Role(name, "factor", levels, why)
    return Role(name, "factor", levels, f"a factor of {levels} levels")


def _inside(lower: str, frame: pd.DataFrame) -> str:
    """Return the task within which items are numbered anew; "" where labels are unique."""
    own = {str(c).lower(): str(c) for c in frame.columns}
    for task in TASKS if lower in ITEMS else ():
        if task in own and frame[own[task]].nunique() > 1:
            pairs = frame[[own[lower], own[task]]].drop_duplicates()
            if pairs[own[lower]].duplicated().mean() >= ANEW:
                return own[task]
    return ""


def _codes(column: "pd.Series[Any]") -> Any:
    """Return levels numbered in the order in which they occur: equal for columns that agree."""
    return pd.factorize(column)[0]


def _same(codes: Any, column: "pd.Series[Any]") -> bool:
    """Return whether two columns agree; what differs in every row is not compared."""
    repeats = column.nunique() <= len(column) / 2
    return repeats and bool(np.array_equal(codes, _codes(column)))

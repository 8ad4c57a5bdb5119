"""What each column of a long table is: a weight, a factor, a covariate, a group, or of no use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.formula import LARGEST
from analysis.regression.default_model import MANY
from analysis.regression.measured import FEW, measured
from analysis.table.metrics import words_of
from analysis.table.outcome import as_outcome

__all__ = ["MANY", "NUISANCE", "SCORES", "Role", "classified", "counts_of_items", "score_columns"]
SCORES = (
    "score", "accuracy", "acc", "correct", "exact_match", "f1", "bleu", "chrf", "rouge", "mean",
    "value", "outcome", "response", "result", "y",
)  # fmt: skip
GROUPS = (
    "run", "run_id", "seed", "replicate", "fold", "task", "benchmark", "item", "item_id",
    "question", "question_id", "example", "example_id", "doc_id", "prompt_id", "id", "subject",
    "participant", "annotator", "rater", "site", "lab", "batch", "block", "group", "cluster",
    *(UNITS := ("patient", "person", "user", "student", "teacher", "school", "speaker", "worker",
                "animal", "herd", "litter", "plant", "plot", "family", "household", "hospital",
                "center", "centre")),
)  # fmt: skip
NUISANCE = ("run", "run_id", "seed", "replicate", "fold", "batch", "block", "id")
ITEMS = ("item", "item_id", "question", "question_id", "example", "example_id", "doc_id", "id")
TASKS = ("task", "benchmark")
COUNTS = ("n", "trials", "items", "n_items", "num_items", "total", "count", "n_trials", "size")
MISSING = 0.5  # share of rows without a value from which a column is left out
SPAN = 20.0  # largest over smallest level from which a number is taken as its logarithm
ANEW = 0.4  # share of items whose label another task has too
OWN = 0.9  # levels over rows from which a number is a measurement rather than a setting
SETTINGS = ("lr", "rate", "decay", "dropout", "warmup", "alpha", "beta", "momentum", "rank", "size",
            "temperature", "weight", "params", "parameters", "epochs", "steps", "clip", "eps",
            "epsilon", "tau", "gamma", "lambda")  # fmt: skip
LABELS = ("id", "index", "idx", "no", "nr", "unnamed")  # words of a number that is a name


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
    return [n for n in found if pd.api.types.is_numeric_dtype(as_outcome(frame[n])[0])]


def counts_of_items(frame: pd.DataFrame) -> list[str]:
    """Return the columns that are named as numbers of items are, or that the score is told by."""
    parts = [n for n, why in measured(frame).items() if why.startswith("a part of the score")]
    return [str(n) for n in frame.columns if str(n).lower() in COUNTS or n in parts]


def classified(frame: pd.DataFrame, *, weights: str | None) -> Iterator[Role]:
    """Yield the role of every column, in the order of the table.

    Args:
        frame: prepared: truth values are text; `frame.attrs["names"]` are those of the score.
        weights: the column of weights or trials.
    """
    used: dict[str, Any] = {}
    known = measured(frame, weights)
    for name in map(str, frame.columns):
        if name in (*frame.attrs["names"], weights):
            continue
        role = _role(name, frame, known)
        same = next((n for n, codes in used.items() if _same(codes, frame[name])), None)
        kept = name == "wp" and not frame.attrs.get("own_wp")
        if role.kind != "left out" and same is not None and not kept:
            role = Role(name, "left out", role.levels, f"says the same as {same}")
        if role.kind != "left out":
            used[name] = _codes(frame[name])
        yield role


def _role(name: str, frame: pd.DataFrame, known: Mapping[str, str]) -> Role:
    column, rows = frame[name], len(frame)
    levels, missing = int(column.nunique()), int(column.isna().sum())
    number = pd.api.types.is_numeric_dtype(column)
    why, own_wp = known.get(name, ""), bool(frame.attrs.get("own_wp"))
    if "`" in name or "\\" in name or not name:
        why = "a name that is empty or has a backtick or backslash cannot stand in a formula"
    elif levels < 2:
        why = "does not vary"
    elif missing > MISSING * rows:
        why = f"missing in {missing} of {rows} rows"
    elif name in ("plw", "effective_plw") and "wp" in frame and not own_wp:
        why = "stands in the model as wp = PLW^0.30103"
    elif not why and missing and (lost := _lost(name, frame, known)):
        why = f"missing in every row of {lost}, which the model would lose"
    if why:
        return Role(name, "left out", levels, why)
    if name == "wp" and number:
        why = "the table's own numbers as they are" if own_wp else "the prompt loss weight, scaled"
        return Role(name, "weight", levels, why)
    if number and name.lower() not in GROUPS and not set(words_of(name)) & set(LABELS):
        return _number(name, column, levels)
    return _labels(name, frame, levels)


def _lost(name: str, frame: pd.DataFrame, known: Mapping[str, str]) -> str:
    """Return a level of another column all of whose rows lack this one; "" if there is none."""
    there = frame[name].notna()
    for other in map(str, frame.columns):
        skipped = other == name or other in known or other in frame.attrs["names"]
        if skipped or other.lower() in GROUPS or not 2 <= frame[other].nunique() <= FEW:
            continue
        gone = ~there.groupby(frame[other], observed=True).any()
        if gone.any():
            return f"{other} {gone.index[gone.to_numpy()][0]}"
    return ""


def _number(name: str, column: "pd.Series[Any]", levels: int) -> Role:
    values = column.dropna().to_numpy(dtype=np.float64)
    own = levels > FEW and levels >= OWN * len(values) and (values != np.rint(values)).any()
    if own and not set(words_of(name)) & set(SETTINGS):
        why = "nearly every row has its own value: a measurement rather than a setting"
        return Role(name, "left out", levels, why)
    if not (np.abs(values) < LARGEST).all():
        return Role(name, "left out", levels, f"some values are infinite or beyond {LARGEST:g}")
    low, high = values.min(), values.max()
    if low > 0 and high >= SPAN * low and (2 < levels <= FEW or high >= SPAN**2 * low):
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
    unit = lower in GROUPS and (lower in UNITS or _holds_a_setting(name, frame))
    if levels >= MANY or (unit and levels > 2):
        if levels >= rows / 2 and lower not in GROUPS:
            why = f"{levels} levels for {rows} rows: too few rows a level to learn from"
            return Role(name, "left out", levels, why)
        where = f" within {inside}, whose items are numbered anew" if inside else ""
        why = f"{levels} levels{where}: they stand for a population"
        if levels < MANY:
            why = (
                f"{levels} levels, within which other columns do not vary or vary in their own way"
            )
        return Role(name, "group", levels, why, inside)
    if lower in NUISANCE:
        why = f"a block of {levels} levels, too few to stand for a population"
        return Role(name, "factor", levels, why)
    return Role(name, "factor", levels, f"a factor of {levels} levels")


def _holds_a_setting(name: str, frame: pd.DataFrame) -> bool:
    """Return whether a factor is the same within every level: it would take that factor's place."""
    known = frame.attrs["names"]
    others = [c for c in map(str, frame.columns) if c != name and c not in known]
    others = [c for c in others if c.lower() not in GROUPS and frame[c].notna().all()]
    labels = [c for c in others if 1 < frame[c].nunique() < frame[name].nunique()]
    within = (frame.groupby(name, observed=True)[c].nunique().max() == 1 for c in labels)
    return any(within)


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

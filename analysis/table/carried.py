"""Columns of a prepared frame that settings make: levels that carry others, and missing settings.

`adapter` carries init, optimizer and every setting of the adapter that varies, `dataset` and
`model` their own settings: "lora+pissa dropout 0.1", "north.jsonl".
"""

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.table.factors import (
    BASE,
    DEFAULTS,
    carrier,
    in_order,
    is_setting,
    level_columns,
    level_text,
    most_common,
    readable,
)

BY_FILE = ("local", "hub")  # data sets and models that are told apart by their path alone


def with_carried(table: pd.DataFrame) -> pd.DataFrame:
    """Return a results table with `adapter`, `dataset` and `model` named by all that they carry."""
    levels = [n for n in ("adapter", "dataset", "model") if n in table]
    return table.assign(**{n: carried_names(table, n) for n in levels})


def carried_names(rows: pd.DataFrame, column: str) -> "pd.Series[str]":
    """Return the levels of `dataset`, `model` or `adapter` with what they carry that varies.

    Args:
        rows: the rows of a results table, `adapter`, `init`, ... as the table has them.
        column: the level.
    """
    names = rows[column].astype("string").fillna(BASE).astype(str)
    trained = rows[rows["adapter"].astype(str) != BASE] if "adapter" in rows else rows
    carried = [n for n in level_columns(rows) if carrier(n) == column]
    varied = readable(n for n in carried if is_setting(n) and trained[n].nunique() > 1)
    for name in carried:
        if name in ("init", "optimizer"):
            usual = DEFAULTS[name]
            level = rows[name].astype("string").fillna(usual).astype(str)
            names = names.where(level == usual, names + "+" + level)
    if f"{column}.path" in varied:
        names = _by_path(names, rows[f"{column}.path"])
    for name, word in varied.items():
        if name != f"{column}.path":
            text = rows[name].map(level_text, na_action="ignore").astype("string").fillna("")
            names = names.where(text == "", names + f" {word} " + text).astype(str)
    return names


def _by_path(names: "pd.Series[str]", paths: "pd.Series[Any]") -> "pd.Series[str]":
    """Return names that tell files apart: those of one name with the ending of their path."""
    found = names.copy()
    for name, own in paths.dropna().astype(str).groupby(names):
        if own.nunique() > 1:
            endings = own.map(shortest_endings(own.unique()))
            found[own.index] = endings if name in BY_FILE else f"{name} " + endings
    return found


def shortest_endings(paths: Iterable[str]) -> dict[str, str]:
    """Return for every path the shortest ending, in whole steps, that no other path has."""
    steps = {path: [s for s in re.split(r"[/\\]", path) if s] for path in paths}
    size = 1
    longest = max(map(len, steps.values()), default=1)
    while size < longest and len({tuple(s[-size:]) for s in steps.values()}) < len(steps):
        size += 1
    return {path: "/".join(own[-size:]) for path, own in steps.items()}


def with_reference(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the usual level of a setting where a run has no such setting.

    Full fine-tuning has no dropout of an adapter. A model needs a value there; the adapter's own
    effect then stands for the adapter at the usual level.
    """
    filled: dict[str, Any] = {}
    for name in (n for n in level_columns(rows) if is_setting(n) and rows[n].isna().any()):
        known = rows.drop_duplicates("run")[name].dropna()
        if len(known):
            levels = sorted(known.unique(), key=in_order)
            usual = most_common(known, levels)[0]
            filled[name] = rows[name].fillna(next(v for v in levels if level_text(v) == usual))
    return rows.assign(**filled)

"""The outcome of a long table: yes/no text as 1 and 0, one metric of several."""

from typing import Any

import pandas as pd

from analysis.table.metrics import preference

PAIRS = (
    ("yes", "no"), ("y", "n"), ("true", "false"), ("t", "f"), ("correct", "incorrect"),
    ("correct", "wrong"), ("right", "wrong"), ("pass", "fail"), ("passed", "failed"),
    ("success", "failure"), ("win", "loss"),
)  # fmt: skip
METRICS = ("metric", "metric_name", "filter", "measure")


def as_outcome(column: "pd.Series[Any]") -> "tuple[pd.Series[Any], str]":
    """Return a column of yes/no words as 1 and 0 and which word is which; others as they are."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column, ""
    words = column.map(str, na_action="ignore").astype(object)
    plain = words.map(lambda w: w.strip().lower(), na_action="ignore")
    there = set(plain.dropna())
    pair = next((p for p in PAIRS if there and there <= set(p)), None)
    if pair is None:
        return column, ""
    yes, no = (next(iter(words[plain == p]), p) for p in pair)
    return plain.map({pair[0]: 1.0, pair[1]: 0.0}), f"{yes} is 1 and {no} is 0"


def one_metric(table: pd.DataFrame, score: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of one metric and one filter, and in a sentence each which was taken.

    Where no metric is there for all tasks, each task has its own.
    """
    said = []
    for name in [c for c in map(str, table.columns) if c.lower() in METRICS and c != score]:
        scored = table[table[score].notna() & table[name].notna()] if score in table else table
        labels = scored[name].astype(str)
        if labels.nunique() < 2:
            continue
        by = next((c for c in table.columns if str(c).lower() in ("task", "benchmark")), None)
        kept, words = _chosen(table, name, scored, by)
        others = ", ".join(sorted(set(labels) - set(table.loc[kept, name].astype(str)))[:4])
        beside = f"; {others} would be another analysis" if others else ""
        said.append(
            f"One {name} at a time: {words}, {int(kept.sum()):,} of {len(table):,} rows{beside}."
        )
        table = table[kept].reset_index(drop=True)
    return table, said


def _chosen(
    table: pd.DataFrame, name: str, scored: pd.DataFrame, by: str | None
) -> "tuple[pd.Series[bool], str]":
    """Return which rows are of the metric that is taken, and its name or that of every task.

    Args:
        table: every row.
        name: the column of metrics.
        scored: the rows with a metric and a score.
        by: the column of tasks, if there is one.
    """
    labels, known = table[name].astype(str), scored[name].astype(str)
    counts = (known if by is None else labels).value_counts()
    each = {None: set(known)}
    if by is not None:
        each = dict(known.groupby(scored[by], observed=True).agg(set))

    def order(metric: str) -> tuple[int, int, str]:
        place, text = preference(metric)
        return place, -int(counts.get(metric, 0)), text

    common = set.intersection(*each.values())
    if common:
        best = min(common, key=order)
        return labels == best, best
    own = {task: min(found, key=order) for task, found in each.items()}
    return labels == table[by].map(own), "the first of each task, as no one is there for all"

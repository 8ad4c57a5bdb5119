"""The log-likelihood margin of every multiple-choice item in every run, beside its score.

The margin of an item is log p(right option) − the largest log p of another, in nats: above zero
exactly where the item is right by `acc`. A record holds the log-likelihoods of an item's options in
the task's order but not which is right; that is the likeliest option of any run that was right.
Items that no run answered rightly have no margin.

Letters in names: R runs, I items, L options.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from analysis.engine.linalg import Array
from analysis.table.items import FILE, RIGHT, Items

METRIC = "acc"  # whose right answers are those of the highest log-likelihood
COLUMNS = ["task", "metric", "doc_id", "score", "loglikelihoods"]


def margins_of(items: Items, folder: Path) -> Items | None:
    """Return the margins of the items of tasks scored by `acc`, in nats in the place of scores.

    Args:
        items: of the study.
        folder: the results folder.

    Returns:
        The same runs and the items that have a margin in every run; None where there are none.
    """
    files = [Path(folder) / "cells" / str(run) / FILE for run in items.runs["run"]]
    if not all(file.is_file() for file in files):
        return None
    parts, columns = [], []
    for task in items.tasks:
        here = (items.items["task"].astype(str) == task).to_numpy()
        if not bool(items.items.loc[here, "binary"].all()):
            continue
        ids = items.items.loc[here, "doc_id"].to_numpy()
        found = [_options(file, task, ids) for file in files]
        if any(one is None for one in found):
            continue
        own = _margins([one for one in found if one is not None], items.scores_RI[:, here])
        known = np.isfinite(own).all(axis=0)
        parts.append(own[:, known])
        columns.append(items.items[pd.Series(here)].iloc[np.flatnonzero(known)])
    if not parts or not sum(part.shape[1] for part in parts):
        return None
    table = pd.concat(columns, ignore_index=True)
    return replace(items, scores_RI=np.concatenate(parts, axis=1), items=table)


def _options(file: Path, task: str, ids: npt.NDArray[np.int_]) -> list[Array] | None:
    """Return the log-likelihoods of the options of every item; None where some has none."""
    keep = [("task", "==", task), ("metric", "==", METRIC)]
    table = pq.read_table(file, columns=COLUMNS, filters=keep)
    said = dict(zip(table["doc_id"].to_pylist(), table["loglikelihoods"].to_pylist(), strict=True))
    found = [said.get(int(number)) for number in ids]
    if any(one is None or len(one) < 2 for one in found):
        return None
    return [np.asarray(one, dtype=np.float64) for one in found]


def _margins(found: list[list[Array]], scores_RI: npt.NDArray[np.float32]) -> Array:
    """Return the margins, (R, I), NaN for an item whose right option no run shows."""
    margins_RI = np.full(scores_RI.shape, np.nan)
    for i in range(scores_RI.shape[1]):
        right = np.flatnonzero(scores_RI[:, i] == RIGHT)
        if not len(right):
            continue
        gold = int(found[right[0]][i].argmax())
        for r, own in enumerate(found):
            options_L = own[i]
            margins_RI[r, i] = options_L[gold] - np.delete(options_L, gold).max()
    return margins_RI

"""The log-likelihood margin of every multiple-choice item in every run, beside its score.

The margin of an item is log p(right option) − the largest log p of another, in nats: above zero
exactly where the item is right by `acc`. A record holds the log-likelihoods of an item's options in
the task's order but not which is right; that is the likeliest option of any run that was right.
Items that no run answered rightly have no margin.

Letters in names: R runs, I items, K rows of a file, L options.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.engine.linalg import Array, Index, Mask
from analysis.table.items import FILE, RIGHT, Items, Scores

METRIC = "acc"  # whose right answers are those of the highest log-likelihood
COLUMNS = ["task", "metric", "doc_id", "loglikelihoods"]

Options = tuple[npt.NDArray[np.int32], Index, Scores]  # of K rows: doc ids, counts, all in a row


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
    name = items.items["task"].astype(str)
    binary = items.items["binary"].astype(bool).groupby(name).all()
    tasks = [task for task in items.tasks if binary[task]]
    found = [_of_run(file, tasks) for file in files]
    parts, columns = [], []
    for task in tasks:
        here = (name == task).to_numpy()
        options_RIL = _options([one.get(task) for one in found], items.items["doc_id"][here])
        if options_RIL is not None:
            own = _margins(options_RIL, items.scores_RI[:, here] == RIGHT)
            known = np.isfinite(own).all(axis=0)
            parts.append(own[:, known])
            columns.append(items.items[here].iloc[np.flatnonzero(known)])
    if not parts or not sum(part.shape[1] for part in parts):
        return None
    table = pd.concat(columns, ignore_index=True)
    return replace(items, scores_RI=np.concatenate(parts, axis=1), items=table)


def _of_run(file: Path, tasks: Sequence[str]) -> dict[str, Options]:
    """Return the log-likelihoods of the options of every item of some tasks in one run.

    Nothing where the file has none: not every writer of items keeps them.
    """
    with pq.ParquetFile(file) as opened:
        if not set(COLUMNS) <= set(opened.schema_arrow.names):
            return {}
        table = opened.read(COLUMNS)
    table = table.filter(pc.equal(table["metric"], METRIC))
    found = {}
    for task in tasks:
        own = table.filter(pc.equal(table["task"], task))
        said = own["loglikelihoods"].combine_chunks()
        counts_K = pc.fill_null(pc.list_value_length(said), 0).to_numpy(zero_copy_only=False)
        values = said.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        found[task] = own["doc_id"].to_numpy().astype(np.int32), counts_K.astype(np.intp), values
    return found


def _options(found: Sequence[Options | None], ids: "pd.Series[int]") -> Scores | None:
    """Return the log-likelihoods of the options of one task's items, (R, I, L).

    Items of fewer options have -inf in the places of the others. None where an item has fewer than
    two options in some run.
    """
    ids_I = ids.to_numpy()
    widest = max((int(one[1].max(initial=0)) for one in found if one is not None), default=0)
    options_RIL = np.empty((len(found), len(ids_I), widest), dtype=np.float32)
    for r, one in enumerate(found):
        if one is None or not len(one[0]):
            return None
        doc_K, counts_K, values = one
        order = np.argsort(doc_K, kind="stable")
        place_I = order[np.searchsorted(doc_K[order], ids_I, side="right") - 1]
        if not ((doc_K[place_I] == ids_I) & (counts_K[place_I] > 1)).all():
            return None
        there_KL = np.arange(widest) < counts_K[:, None]
        options_KL = np.full(there_KL.shape, -np.inf, dtype=np.float32)
        options_KL[there_KL] = values
        options_RIL[r] = options_KL[place_I]
    return options_RIL


def _margins(options_RIL: Scores, right_RI: Mask) -> Array:
    """Return the margins, (R, I), NaN for an item whose right option no run shows."""
    items = np.arange(right_RI.shape[1])
    shown_IL = options_RIL[right_RI.argmax(axis=0), items]  # of the first run that was right
    gold_I = shown_IL.argmax(axis=1)
    gold_RI = options_RIL[:, items, gold_I].astype(np.float64)
    others_RIL = options_RIL.copy()
    others_RIL[:, items, gold_I] = -np.inf
    with np.errstate(invalid="ignore"):  # a run may have said -inf, or nothing, of every option
        margins_RI = gold_RI - others_RIL.max(axis=2)
    margins_RI[:, ~right_RI.any(axis=0)] = np.nan
    return margins_RI

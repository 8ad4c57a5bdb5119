"""Every benchmark item's score in every run of a results folder, as one table.

All runs of a study are scored on the same items, so the table is held as a matrix: a row per run,
a column per item, four bytes a score (400 runs x 6,000 items are 10 MB). `Items.long` gives the
long table of the same numbers with categorical codes. A run is read once, whatever its aliases.

Scores are in points, higher is better, as in `analysis.table.frame`.

Letters in names: R runs, I items.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, listed, nearest
from analysis.table.factors import run_columns

Scores = npt.NDArray[np.float32]
FILE = "items.parquet"
COLUMNS = ["task", "metric", "doc_id", "score"]  # of it; it holds what was answered too
KEY = "score_key"  # of it, in records of schema 3
APART = 0.01  # points by which the items' mean may differ from the recorded score
RIGHT = 100.0  # points of an item that is right


@dataclass(frozen=True, slots=True)
class Items:
    """Scores of R runs on I items; NaN where a run was not scored on an item."""

    scores_RI: Scores
    runs: pd.DataFrame  # (R, ...): run and its factor levels
    items: pd.DataFrame  # (I, ...): task, doc_id, binary
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the columns."""
        return [str(t) for t in dict.fromkeys(self.items["task"])]

    def of(
        self, *, runs: "pd.Series[bool] | None" = None, tasks: Sequence[str] | None = None
    ) -> "Items":
        """Return some of the runs and tasks.

        Raises:
            AnalysisError: a task that is not here, or no run.
        """
        for name in tasks or ():
            if name not in self.tasks:
                near = nearest(name, self.tasks)
                raise AnalysisError(f"task={name}: not one of {listed(self.tasks)}.{near}")
        rows = np.ones(len(self.runs), bool) if runs is None else runs.to_numpy(dtype=bool)
        columns = np.ones(len(self.items), bool)
        if tasks is not None:
            columns = self.items["task"].isin(list(tasks)).to_numpy()
        if not rows.any():
            raise AnalysisError("items: no run is left")
        return replace(
            self,
            scores_RI=self.scores_RI[np.ix_(rows, columns)],
            runs=self.runs[rows].reset_index(drop=True),
            items=self.items[columns].reset_index(drop=True),
        )

    def long(self) -> pd.DataFrame:
        """Return one row per run and item: run, task, item, score; all but the score are codes."""
        there = ~np.isnan(self.scores_RI)
        row, column = np.nonzero(there)
        task = pd.Categorical(self.items["task"].astype(str), categories=self.tasks)
        names = self.items["task"].astype(str) + ":" + self.items["doc_id"].astype(str)
        table = {
            "run": _coded(row, self.runs["run"].astype(str)),
            "task": _coded(np.asarray(task.codes)[column], pd.Series(self.tasks)),
            "item": _coded(column, names),
            "score": self.scores_RI[there],
        }
        return pd.DataFrame(table)


def _coded(codes: npt.NDArray[Any], names: "pd.Series[str]") -> "pd.Categorical[str]":
    return pd.Categorical.from_codes(pd.Index(codes), pd.Index(names))


def read_items(rows: pd.DataFrame, folder: str | Path) -> Items:
    """Return the items behind the benchmark rows of a prepared frame.

    Args:
        rows: rows of a frame of `analysis.table.frame`, of the runs and tasks that are wanted.
        folder: the results folder, with cells/<run>/items.parquet.

    Raises:
        AnalysisError: no run has items that average to the recorded score.
    """
    scale = _scales(rows)
    pairs = rows[["task", "metric"]].drop_duplicates().astype(str)
    wanted = set(pairs.itertuples(index=False, name=None))
    keys = set(rows["score_key"].astype(str)) if "score_key" in rows else None
    runs = rows.drop_duplicates("run")[run_columns(rows)].reset_index(drop=True)
    files = [Path(folder) / "cells" / str(run) / FILE for run in runs["run"]]
    found = [_of_run(file, wanted, keys) for file in files]
    there = np.array([bool(one) for one in found])
    if not there.any():
        raise AnalysisError(f"items: no run under {folder} has an {FILE}")
    columns = _columns([one for one in found if one], [t for t in scale if t in _known(found)])
    scores_RI = _matrix([one for one in found if one], columns)
    for task, own in columns.groupby("task", sort=False):
        scores_RI[:, own.index] *= np.float32(scale[str(task)])
    missing = int((~there).sum())
    notes = (f"{missing} runs have no items file; they are not in here.",) if missing else ()
    every = Items(scores_RI, runs[there].reset_index(drop=True), columns, notes)
    return _checked(every, rows)


def item_weights(items: Items) -> Array:
    """Return what every item counts in a mean over tasks, (I,): equal tasks, equal items within."""
    size = items.items.groupby("task", observed=True)["doc_id"].transform("size").to_numpy()
    return np.asarray(1.0 / (len(items.tasks) * size), dtype=np.float64)


def _scales(rows: pd.DataFrame) -> dict[str, float]:
    """Return what turns an item's score into points, by task; the order is that of the rows."""
    first = rows.drop_duplicates("task").set_index("task")["to_points"]
    return {str(task): float(scale) for task, scale in first.items()}


Found = Mapping[str, tuple[npt.NDArray[np.int32], Scores]]  # task -> doc ids, scores


def _of_run(path: Path, wanted: Collection[tuple[str, ...]], keys: Collection[str] | None) -> Found:
    """Return the wanted items of one file; nothing where there is none.

    Items that state their score are those of the scores `keys`: a task may be scored at two limits.
    """
    if not path.is_file():
        return {}
    try:
        with pq.ParquetFile(path, read_dictionary=["task", "metric"]) as file:
            stated = keys is not None and KEY in file.schema_arrow.names
            table = file.read([*COLUMNS, KEY] if stated else COLUMNS)
    except (pa.ArrowInvalid, OSError) as error:
        raise AnalysisError(f"items={path}: cannot be read: {str(error).splitlines()[0]}") from None
    coded = {n: table[n].combine_chunks() for n in ("task", "metric")}
    if stated:
        coded[KEY] = table[KEY].combine_chunks().dictionary_encode()
    codes = {n: pc.fill_null(c.indices, -1).to_numpy() for n, c in coded.items()}
    names = {n: c.dictionary.to_pylist() for n, c in coded.items()}
    doc, score = table["doc_id"].to_numpy(), table["score"].to_numpy()
    there = ~np.isnan(score)
    if stated:
        there &= np.isin(codes[KEY], [i for i, key in enumerate(names[KEY]) if key in (keys or ())])
    found = {}
    for t, m in dict.fromkeys(zip(codes["task"][there], codes["metric"][there], strict=True)):
        if min(t, m) >= 0 and (pair := (str(names["task"][t]), str(names["metric"][m]))) in wanted:
            own = there & (codes["task"] == t) & (codes["metric"] == m)
            found[pair[0]] = doc[own].astype(np.int32), score[own].astype(np.float32)
    return found


def _known(found: Sequence[Found]) -> set[str]:
    return {task for one in found for task in one}


def _columns(found: Sequence[Found], tasks: Sequence[str]) -> pd.DataFrame:
    """Return the items that any run has: task by task, by number."""
    parts = []
    for task in tasks:
        ids = [one[task][0] for one in found if task in one]
        parts.append(pd.DataFrame({"task": task, "doc_id": np.unique(np.concatenate(ids))}))
    return pd.concat(parts, ignore_index=True).astype({"task": "category"})


def _matrix(found: Sequence[Found], columns: pd.DataFrame) -> Scores:
    scores_RI = np.full((len(found), len(columns)), np.nan, dtype=np.float32)
    for task, own in columns.groupby("task", observed=True, sort=False):
        start, ids = int(own.index[0]), own["doc_id"].to_numpy()
        for r, one in enumerate(found):
            if task in one:
                doc, score = one[str(task)]
                scores_RI[r, start + np.searchsorted(ids, doc)] = score
    return scores_RI


def _checked(items: Items, rows: pd.DataFrame) -> Items:
    """Return the tasks whose items average to the recorded score, each told binary or not."""
    recorded = rows.pivot_table(index="run", columns="task", values="score", observed=True)
    recorded = recorded.reindex(items.runs["run"])
    kept, notes, binary = [], list(items.notes), {}
    for task, own in items.items.groupby("task", observed=True, sort=False):
        block_RI = items.scores_RI[:, own.index]
        mean_R = np.nanmean(block_RI, axis=1, dtype=np.float64)
        gap = np.nanmax(np.abs(mean_R - recorded[task].to_numpy(dtype=float)))
        if gap < APART:
            kept.append(str(task))
            known = block_RI[~np.isnan(block_RI)]
            binary[str(task)] = bool(((known == 0) | (known == RIGHT)).all())
        else:
            notes.append(f"{task}: its score is not the mean of its items; it is left out here.")
    if not kept:
        raise AnalysisError("items: no task's score is the mean of its items")
    chosen = items.of(tasks=kept)
    table = chosen.items.assign(binary=chosen.items["task"].astype(str).map(binary))
    return replace(chosen, items=table, notes=tuple(notes))

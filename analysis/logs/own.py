"""Recorded cells of `ablate`, each as a log: OUT/cells/KEY with its record and its items."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.errors import AnalysisError
from analysis.logs.log import ITEMS, SCORES, Log, flat
from analysis.logs.places import is_cell
from analysis.table.columns import is_results
from analysis.table.factors import level_columns
from analysis.table.frame import SCORED, read
from analysis.table.items import FILE
from analysis.table.metrics import preference
from analysis.table.records import read_record

MADE = ("ablate", "torch", "transformers", "peft", "lm_eval")  # packages that may change scores
SILENT = ("execution.", "out", "study", "evaluate.tasks", "model.path", "dataset.path")


def read_cell(folder: Path, levels: Mapping[str, str] | None = None) -> Log:
    """Return one recorded cell.

    Raises:
        AnalysisError: its record or its items are damaged.
    """
    record = read_record(folder.parents[1], folder.name)
    if not record:
        raise AnalysisError(f"{folder}: its record is damaged; `ablate store repair` moves it away")
    scores = [s for s in record["scores"] if _counts(s)]
    config = record["config"]
    settings = {k: v for k, v in flat(config).items() if not k.startswith(SILENT)}
    made = record.get("provenance") or {}
    packages = made.get("packages") or {}
    settings |= flat({"versions": {k: packages[k] for k in MADE if k in packages}})
    settings |= flat({"code": made.get("code")}) if isinstance(made.get("code"), Mapping) else {}
    return Log(
        name=folder.name,
        model=folder.name,
        source=folder,
        seed=str(config.get("seed", "")),
        levels=dict(levels or {}),
        config=settings,
        items=_items(folder, scores),
        scores=_scores(scores),
        lower=frozenset((s["task"], s["metric"]) for s in scores if not s["higher_is_better"]),
    )


def _counts(score: Mapping[str, Any]) -> bool:
    """Return whether a score is a benchmark's, and has a value and a better direction."""
    known = score.get("value") is not None and score.get("higher_is_better") is not None
    return known and score.get("task_type", SCORED[0]) in SCORED


def _scores(scores: list[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        (s["task"], s["task"], s["metric"], s["value"], s.get("se"), s.get("n")) for s in scores
    ]
    return pd.DataFrame(rows, columns=SCORES).astype({"value": float, "se": float})


def _items(folder: Path, scores: list[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the items of the metric that every task is judged by; a task counts once."""
    path = folder / FILE
    if not path.is_file() or not scores:
        return pd.DataFrame(columns=ITEMS)
    try:
        table = pd.read_parquet(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise AnalysisError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    chosen = {
        task: min((s for s in scores if s["task"] == task), key=lambda s: preference(s["metric"]))
        for task in dict.fromkeys(s["task"] for s in scores)
    }
    if "score_key" in table:
        table = table[table["score_key"].isin([s["score_key"] for s in chosen.values()])]
    metric = table["task"].astype(str).map({t: s["metric"] for t, s in chosen.items()})
    own = table[table["metric"].astype(str) == metric].reset_index(drop=True)
    number = own["doc_id"].astype(str)
    return pd.DataFrame({
        "task": own["task"].astype(str), "group": own["task"].astype(str),
        "metric": own["metric"].astype(str), "doc": number, "item": number, "cluster": "",
        "score": own["score"].astype(float),
    })  # fmt: skip


def read_folder(folder: Path) -> list[Log]:
    """Return every recorded cell of a folder of results under its first name.

    Raises:
        AnalysisError: there is no table of results, or a cell is damaged.
    """
    if not (folder / "results.parquet").is_file():
        raise AnalysisError(f"{folder}: has no results.parquet; `ablate report {folder}` makes it")
    raw = read(folder)
    if not is_results(raw.columns):
        raise AnalysisError(f"{folder}: its results.parquet is no table of results")
    if "alias" in raw:
        raw = raw.sort_values("alias", kind="stable")
    names = [n for n in level_columns(raw) if n != "seed"]
    first = raw.drop_duplicates("train_key")
    cells = [folder / "cells" / str(key) for key in first["train_key"]]
    rows = first[names].astype(str).to_dict("records")
    return [
        read_cell(cell, {str(k): v for k, v in row.items()})
        for cell, row in zip(cells, rows, strict=True)
        if is_cell(cell)
    ]

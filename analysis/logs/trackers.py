"""Runs of W&B and MLflow: settings and scores, a run a row; neither keeps the scores of items.

Read are

    a CSV of W&B's table of runs, or of `api.runs(...)` as a data frame
    a folder `wandb`, with run-*/files/{config.yaml,wandb-summary.json}
    a CSV of `mlflow.search_runs()`: params.*, metrics.*, tags.*
    a folder `mlruns`, with EXPERIMENT/RUN/{meta.yaml,params,metrics}
    a database `mlflow.db`
"""

import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.errors import AnalysisError, listed, nearest
from analysis.logs.log import SCORES, Log, flat
from analysis.table.frame import read

NAMES = ("Name", "name", "run_name", "tags.mlflow.runName", "display_name", "run_id", "ID", "id")
LOW_IS_GOOD = re.compile(r"loss|perplexity|ppl|error|nll|wer\b|cer\b|bits_per|rmse|mae\b", re.I)
PARAMETER, METRIC = "params.", "metrics."
STATE = ("State", "state", "status")
FAILED = ("crashed", "failed", "killed", "FAILED", "KILLED")


def is_source(path: Path) -> bool:
    """Return whether a path is one of the forms that are read here."""
    if path.is_dir():
        return bool(_offline(path)) or any(path.glob("*/*/meta.yaml"))
    return path.suffix in (".csv", ".tsv", ".parquet", ".db", ".sqlite")


def runs(path: Path) -> pd.DataFrame:
    """Return a row per run: its settings and its last scores, in columns.

    Raises:
        AnalysisError: nothing of the kind is there, or it cannot be read.
    """
    if path.is_dir():
        rows = list(_of_wandb(path)) or list(_of_mlruns(path))
        if not rows:
            raise AnalysisError(f"{path}: has no run of W&B or MLflow")
        return pd.DataFrame(rows)
    if path.suffix in (".db", ".sqlite"):
        return _of_database(path)
    return read(path)


def _offline(path: Path) -> list[Path]:
    return sorted(path.glob("*/files/wandb-summary.json"))


def _of_wandb(path: Path) -> Iterator[dict[str, Any]]:
    for file in _offline(path):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
            settings = yaml.safe_load((file.parent / "config.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            settings = {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise AnalysisError(f"{file.parent}: cannot be read: {_line(error)}") from None
        row: dict[str, Any] = {"Name": file.parents[1].name}
        for key, value in (settings or {}).items():
            if key != "_wandb" and key != "wandb_version":
                inner = value.get("value") if isinstance(value, Mapping) else value
                row |= flat(inner, f"{key}.") if isinstance(inner, Mapping) else {key: inner}
        yield row | {k: v for k, v in summary.items() if isinstance(v, int | float)}


def _of_mlruns(path: Path) -> Iterator[dict[str, Any]]:
    for meta in sorted(path.glob("*/*/meta.yaml")):
        run = meta.parent
        try:
            about = yaml.safe_load(meta.read_text(encoding="utf-8")) or {}
            row: dict[str, Any] = {
                "run_name": about.get("run_name") or run.name, "run_id": run.name,
            }  # fmt: skip
            for file in sorted(p for p in (run / "params").rglob("*") if p.is_file()):
                name = file.relative_to(run / "params").as_posix()
                row[f"{PARAMETER}{name}"] = file.read_text(encoding="utf-8").strip()
            for file in sorted(p for p in (run / "metrics").rglob("*") if p.is_file()):
                lines = file.read_text(encoding="utf-8").split("\n")
                last = [line for line in lines if line.strip()][-1].split()
                name = file.relative_to(run / "metrics").as_posix()
                row[f"{METRIC}{name}"] = float(last[1])
        except (OSError, ValueError, IndexError, yaml.YAMLError) as error:
            raise AnalysisError(
                f"{run}: cannot be read as a run of MLflow: {_line(error)}"
            ) from None
        if "run_id" in about or "run_uuid" in about:
            yield row


def _of_database(path: Path) -> pd.DataFrame:
    """Return the runs of MLflow's database of SQLite, opened for reading alone."""
    query = {
        "runs": "select run_uuid, name from runs where lifecycle_stage = 'active'",
        PARAMETER: "select run_uuid, key, value from params",
        METRIC: "select run_uuid, key, value from latest_metrics where is_nan = 0",
    }
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = {name: database.execute(text).fetchall() for name, text in query.items()}
    except sqlite3.Error as error:
        raise AnalysisError(f"{path}: is no database of MLflow: {error}") from None
    rows = {run: {"run_name": name or run, "run_id": run} for run, name in found["runs"]}
    for prefix in (PARAMETER, METRIC):
        for run, key, value in found[prefix]:
            if run in rows:
                rows[run][f"{prefix}{key}"] = value
    if not rows:
        raise AnalysisError(f"{path}: has no run")
    return pd.DataFrame(list(rows.values()))


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def logs(table: pd.DataFrame, source: Path, metrics: Sequence[str]) -> list[Log]:
    """Return a log for every run of a table that has one of the metrics.

    Args:
        table: as `runs` returns it.
        source: where it is from.
        metrics: the columns with the scores; where none is named, those that begin with "metrics.".

    Raises:
        AnalysisError: no column is named and none says so itself, or one is not there.
    """
    columns = list(map(str, table.columns))
    chosen = [_column(name, columns) for name in metrics]
    if not chosen:
        chosen = [c for c in columns if c.startswith(METRIC)]
    if not chosen:
        numbers = [c for c in columns if pd.api.types.is_numeric_dtype(table[c])]
        raise AnalysisError(
            f"{source}: which column is the score? --metric COLUMN, one of {listed(numbers)}"
        )
    name = next((n for n in NAMES if n in columns), None)
    settings = [c for c in columns if c not in chosen and not c.startswith((METRIC, "tags.", "_"))]
    state = next((n for n in STATE if n in columns), None)
    found, lost = [], 0
    for number, row in enumerate(table.to_dict("records")):
        scores = [(m, float(row[m])) for m in chosen if _is_score(row[m])]
        if not scores or (state is not None and row[state] in FAILED):
            lost += 1
            continue
        config = {c: row[c] for c in settings if _stated(row[c])}
        found.append(
            _of_row(str(row[name]) if name else f"row {number + 1}", source, config, scores)
        )
    if not found:
        raise AnalysisError(f"{source}: no run has a score in {listed(chosen)}")
    if lost:
        said = f"{source.name}: {lost} runs failed or have no score; they are left out."
        found[0] = replace(found[0], notes=(said,))
    return found


def _column(name: str, columns: Sequence[str]) -> str:
    for form in (name, f"{METRIC}{name}"):
        if form in columns:
            return form
    raise AnalysisError(f"--metric={name}: no such column.{nearest(name, columns)}")


def _is_score(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _stated(value: Any) -> bool:
    return value is not None and value == value and value != ""


def _of_row(
    name: str, source: Path, config: Mapping[str, Any], scores: Sequence[tuple[str, float]]
) -> Log:
    told = {k.removeprefix(PARAMETER): v for k, v in flat(config).items()}
    seed = next((v for k, v in told.items() if k.split(".")[-1].split("/")[-1] == "seed"), "")
    nan = float("nan")
    own = [(column.removeprefix(METRIC), value) for column, value in scores]
    rows = [(m, m, m, value, nan, None) for m, value in own]
    lower = frozenset((task, task) for task, *_ in rows if LOW_IS_GOOD.search(task))
    return Log(
        name, name, source, seed=seed.removesuffix(".0"), config=told,
        scores=pd.DataFrame(rows, columns=SCORES), lower=lower,
    )  # fmt: skip

"""Runs of W&B and MLflow: settings and scores, a run a row; neither keeps the scores of items.

Read are

    a CSV of W&B's table of runs, or of `api.runs(...)` as a data frame, the columns `config` and
    `summary` of dictionaries as W&B's own example writes them too
    a folder `wandb`, with run-*/files/{config.yaml,wandb-summary.json}
    a CSV of `mlflow.search_runs()`: params.*, metrics.*, tags.*
    a folder `mlruns`, or that of one experiment, with RUN/{meta.yaml,params,metrics}
    a database `mlflow.db`

Runs that did not finish, that MLflow deleted or that are there twice do not count.
"""

import ast
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
from analysis.table import states
from analysis.table.frame import read
from analysis.table.metrics import lower_is_better

NAMES = ("Name", "name", "run_name", "tags.mlflow.runName", "display_name", "run_id", "ID", "id")
IDS = ("ID", "id", "run_id")
PARAMETER, METRIC = "params.", "metrics."
SYSTEM = f"{METRIC}system/"  # MLflow's own, of processors and memory
UNSAID = (METRIC, "tags.", "_", "Unnamed: ")  # beginnings of columns that are no settings
MACHINE = ("artifact_uri", "start_time", "end_time")
STATUS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}  # in meta.yaml
WANDB_RUN = ("run-*", "offline-run-*")
MLFLOW_RUN = ("*/meta.yaml", "*/*/meta.yaml")
PLAIN = ("config", "summary", "summary_metrics")  # whose keys are columns by themselves
WORDS = {"nan": math.nan, "NaN": math.nan, "inf": math.inf, "Infinity": math.inf, "null": None,
         "true": True, "false": False}  # fmt: skip


def is_source(path: Path) -> bool:
    """Return whether a path is one of the forms that are read here."""
    if path.is_dir():
        return bool(_wandb_runs(path)) or any(_mlflow_runs(path))
    return path.suffix in (".csv", ".tsv", ".parquet", ".db", ".sqlite")


def runs(path: Path) -> pd.DataFrame:
    """Return a row per run: its settings and its last scores, in columns.

    Raises:
        AnalysisError: nothing of the kind is there, or it cannot be read.
    """
    if path.is_dir():
        found = list(_of_wandb(path)) or list(_of_mlruns(path))
        if not found:
            raise AnalysisError(f"{path}: has no run of W&B or MLflow")
        return pd.DataFrame(found)
    if path.suffix in (".db", ".sqlite"):
        return _of_database(path)
    return _spread(read(path))


def _wandb_runs(path: Path) -> list[Path]:
    """Return the folders of W&B's runs, each once: `latest-run` is a link to one of them."""
    return sorted(f for form in WANDB_RUN for f in path.glob(form) if (f / "files").is_dir())


def _of_wandb(path: Path) -> Iterator[dict[str, Any]]:
    folders = _wandb_runs(path)
    ended = [f for f in folders if (f / "files" / "wandb-summary.json").is_file()]
    if folders and not ended:
        raise AnalysisError(
            f"{path}: its {len(folders)} runs have no wandb-summary.json: W&B keeps offline runs "
            f"in files of its own; `wandb sync {path}/offline-run-*` uploads them, then export "
            f"the table of runs as CSV"
        )
    for folder in folders:
        file, settings = folder / "files" / "wandb-summary.json", folder / "files" / "config.yaml"
        try:
            summary = json.loads(file.read_text(encoding="utf-8")) if folder in ended else {}
            about = yaml.safe_load(settings.read_text("utf-8")) if settings.is_file() else {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise AnalysisError(f"{file.parent}: cannot be read: {_line(error)}") from None
        row: dict[str, Any] = {"Name": folder.name}
        for key, value in (about or {}).items():
            if key not in ("_wandb", "wandb_version"):
                inner = value.get("value") if isinstance(value, Mapping) else value
                row |= flat(inner, f"{key}.") if isinstance(inner, Mapping) else {key: inner}
        yield row | {k: v for k, v in _levelled(summary) if isinstance(v, int | float)}


def _levelled(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is nested in one level, with W&B's own names: `{"eval": {"f1": 1}}`, eval.f1."""
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _levelled(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _spread(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of which the columns of dictionaries are columns of their keys."""
    parts = {}
    for name in table.columns:
        if pd.api.types.is_numeric_dtype(table[name]):
            continue
        own = [_dictionary(value) if _stated(value) else {} for value in table[name]]
        if all(one is not None for one in own) and any(own):
            prefix = "" if name in PLAIN else f"{name}."
            rows = [{f"{prefix}{k}": v for k, v in _levelled(one or {})} for one in own]
            parts[name] = pd.DataFrame(rows, index=table.index)
    found = table.drop(columns=list(parts))
    for name, new in parts.items():
        found = found.join(new.rename(columns={c: f"{name}.{c}" for c in new if c in found}))
    return found


def _dictionary(value: Any) -> dict[str, Any] | None:
    """Return the dictionary in a cell, as Python or JSON writes it; None for anything else."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        tree = _Words().visit(ast.parse(value.strip(), mode="eval"))
        found = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else None


class _Words(ast.NodeTransformer):
    """Takes the words that stand for values where literals have none, `nan` and JSON's."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Return the constant that a word stands for."""
        return ast.Constant(WORDS[node.id]) if node.id in WORDS else node


def _mlflow_runs(path: Path) -> Iterator[Path]:
    return (meta for form in MLFLOW_RUN for meta in sorted(path.glob(form)))


def _of_mlruns(path: Path) -> Iterator[dict[str, Any]]:
    for meta in _mlflow_runs(path):
        run = meta.parent
        try:
            about = yaml.safe_load(meta.read_text(encoding="utf-8")) or {}
            if not {"run_id", "run_uuid"} & set(about) or _deleted(about):
                continue
            row: dict[str, Any] = {
                "run_name": about.get("run_name") or run.name, "run_id": run.name,
                "experiment": _experiment(run.parent),
            }  # fmt: skip
            if "status" in about:
                row["status"] = STATUS.get(about["status"], str(about["status"]))
            for file in sorted(p for p in (run / "params").rglob("*") if p.is_file()):
                name = file.relative_to(run / "params").as_posix()
                row[f"{PARAMETER}{name}"] = file.read_text(encoding="utf-8").strip()
            for file in sorted(p for p in (run / "metrics").rglob("*") if p.is_file()):
                name = file.relative_to(run / "metrics").as_posix()
                row[f"{METRIC}{name}"] = _latest(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, IndexError, TypeError, yaml.YAMLError) as error:
            raise AnalysisError(
                f"{run}: cannot be read as a run of MLflow: {_line(error)}"
            ) from None
        yield row


def _deleted(about: Mapping[str, Any]) -> bool:
    return str(about.get("lifecycle_stage", "active")) == "deleted"


def _experiment(folder: Path) -> str:
    """Return the name of an experiment, else that of its folder."""
    meta = folder / "meta.yaml"
    about = (yaml.safe_load(meta.read_text(encoding="utf-8")) or {}) if meta.is_file() else {}
    return str(about.get("name") or folder.name)


def _latest(text: str) -> float:
    """Return a metric's last value: of the highest step, then the latest, as MLflow has it.

    A line is "milliseconds value step"; they stand in the order in which they were written.
    """
    lines = [line.split() for line in text.split("\n") if line.strip()]
    steps = [int(parts[2]) if len(parts) > 2 else 0 for parts in lines]
    values = zip(steps, [int(p[0]) for p in lines], [float(p[1]) for p in lines], strict=True)
    return max(values)[2]


def _of_database(path: Path) -> pd.DataFrame:
    """Return the runs of MLflow's database of SQLite, opened for reading alone."""
    query = {
        "runs": "select r.run_uuid, r.name, r.status, e.name from runs r left join experiments e "
        "on r.experiment_id = e.experiment_id where r.lifecycle_stage = 'active' and "
        "coalesce(e.lifecycle_stage, 'active') = 'active'",
        PARAMETER: "select run_uuid, key, value from params",
        METRIC: "select run_uuid, key, value from latest_metrics where is_nan = 0",
    }
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = {name: database.execute(text).fetchall() for name, text in query.items()}
    except sqlite3.Error as error:
        raise AnalysisError(f"{path}: is no database of MLflow: {error}") from None
    rows = {
        run: {"run_name": name or run, "run_id": run, "experiment": where, "status": status}
        for run, name, status, where in found["runs"]
    }
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
        chosen = [c for c in columns if c.startswith(METRIC) and not c.startswith(SYSTEM)]
    if not chosen:
        numbers = [c for c in columns if pd.api.types.is_numeric_dtype(table[c])]
        raise AnalysisError(
            f"{source}: which column is the score? --metric COLUMN, one of {listed(numbers)}"
        )
    name = next((n for n in NAMES if n in columns), None)
    settings = [c for c in columns if c not in chosen and not c.startswith(UNSAID)]
    settings = [c for c in settings if c not in MACHINE]
    table, lost = _counted(table, columns, name)
    scored = table[chosen].map(_is_score).any(axis=1)
    if not scored.all():
        lost.append(f"{int((~scored).sum())} without a score")
    table = table[scored]
    if not len(table):
        raise AnalysisError(
            f"{source}: no run has a score in {listed(chosen)}; left out: {', '.join(lost)}"
        )
    seed = _seed_column(table, settings)
    said = (f"{source.name}: runs are left out: {', '.join(lost)}.",) if lost else ()
    found = []
    for number, row in enumerate(table.to_dict("records")):
        scores = [(m, float(row[m])) for m in chosen if _is_score(row[m])]
        config = {c: row[c] for c in settings if _stated(row[c])}
        own = _of_row(str(row[name]) if name else f"row {number + 1}", source, config, scores)
        stated = str(row[seed]) if seed and _stated(row[seed]) else ""
        model = next((str(row[i]) for i in IDS if i in row and _stated(row[i])), own.name)
        found.append(replace(own, model=model, seed=stated.removesuffix(".0"), notes=said))
    return found


def _counted(
    table: pd.DataFrame, columns: Sequence[str], name: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs that finished, each once, and in words how many were left out."""
    lost = []
    late = states.unfinished(table)
    if late.any():
        lost.append(states.said(table, late))
        table = table[~late]
    known = next((i for i in IDS if i in columns), None)
    # Of runs without a name nothing says that equal rows are one run.
    subset = [known] if known else columns if name else []
    if subset:
        text = table[subset].astype(str)
        again = text.duplicated(keep="last") & table[subset].notna().any(axis=1)
        if again.any():
            lost.append(f"{int(again.sum())} that are there again")
            table = table[~again]
    return table, lost


def _seed_column(table: pd.DataFrame, settings: Sequence[str]) -> str | None:
    """Return the column of the seed; of several one that varies, the plainest name first."""
    parts = {c: re.split(r"[./]", c.removeprefix(PARAMETER).lower()) for c in settings}
    named = [c for c, own in parts.items() if own[-1] == "seed"]
    named = named or [c for c, own in parts.items() if own[-1] in ("random_seed", "random_state")]
    return min(
        named, key=lambda c: (table[c].astype(str).nunique() < 2, len(parts[c])), default=None
    )


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
    if isinstance(value, list | tuple | set | Mapping):
        return bool(value)
    return value is not None and value == value and value != ""


def _of_row(
    name: str, source: Path, config: Mapping[str, Any], scores: Sequence[tuple[str, float]]
) -> Log:
    told = {k.removeprefix(PARAMETER): v for k, v in flat(config).items()}
    nan = float("nan")
    own = [(column.removeprefix(METRIC), value) for column, value in scores]
    rows = [(m, m, m, value, nan, None) for m, value in own]
    lower = frozenset((task, task) for task, *_ in rows if lower_is_better(task))
    return Log(
        name, name, source, config=told, scores=pd.DataFrame(rows, columns=SCORES), lower=lower
    )

"""A folder of results as tables that other programs read: parquet, CSV, or a data set of the hub.

    scores.parquet    results.parquet: one row per name of a cell, task and metric
    runs.parquet      one row per run: its configuration as JSON, parameters, costs
    items.parquet     one row per run, score and item
    history.parquet   one row per run and step of training
    results.csv       the same as scores.parquet, as text

The tables are written record by record: a folder of any size takes the memory of one record.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ablate.results.items import with_score_keys
from ablate.results.spreadsheet import write_csv
from ablate.results.store import Store

Record = Mapping[str, Any]
SCORES, CSV = "scores.parquet", "results.csv"
TABLES = ("items", "history")  # of which every record has a file
KEY = "train_key"
JSON = ("config", "data", "training", "provenance")  # parts of a record that are one column each


def parquet(store: Store, keys: Sequence[str], to: Path) -> None:
    """Write the tables of the records `keys` to `to`, which has `SCORES` already."""
    runs = pd.DataFrame([_run(key, record) for key, record in records(store, keys)])
    runs.to_parquet(to / "runs.parquet", index=False)
    for name in TABLES:
        _write_all(store, keys, name, to / f"{name}.parquet")


def as_csv(table: Path) -> Path:
    """Return `CSV` beside a table of scores, newly written in the table's place."""
    path = table.with_name(CSV)
    write_csv(pd.read_parquet(table), path)
    table.unlink()
    return path


def describe(runs: int, to: Path) -> None:
    """Make `to`, with tables in data/, a folder that `datasets.load_dataset(to, TABLE)` reads."""
    names = ("scores", "runs", *TABLES)
    configs: list[dict[str, str | bool]] = [
        {"config_name": name, "data_files": f"data/{name}.parquet"} for name in names
    ]
    configs[0]["default"] = True
    head = yaml.safe_dump({"configs": configs}, sort_keys=False)
    told = (
        f"# Results of {runs} runs\n\n"
        "`scores` has a row per name of a cell, task and metric, `runs` one per run, `items` one "
        "per run, score and item, `history` one per run and step of training. `train_key` joins "
        "them.\n"
    )
    (to / "README.md").write_text(f"---\n{head}---\n\n{told}", encoding="utf-8")


def records(store: Store, keys: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yield the whole records of `keys`."""
    for key in keys:
        record = store.record(key)
        if record is not None:
            yield key, record


def read_items(store: Store, key: str, record: Record) -> pd.DataFrame:
    """Return the items of a record with the keys of their scores."""
    return with_score_keys(pd.read_parquet(store.folder(key) / "items.parquet"), record["scores"])


def _run(key: str, record: Record) -> dict[str, Any]:
    parts = ("parameters", "costs")
    numbers = {f"{part}_{name}": value for part in parts for name, value in record[part].items()}
    return {KEY: key} | numbers | {part: json.dumps(record[part]) for part in JSON}


def _write_all(store: Store, keys: Sequence[str], name: str, path: Path) -> None:
    """Write one table of all records after another into one file with the columns of all."""
    schemas = [pq.read_schema(store.folder(key) / f"{name}.parquet") for key in keys]
    columns = {field.name: field.type for schema in schemas for field in _known(schema)}
    own = [(KEY, pa.string()), *([("score_key", pa.string())] if name == "items" else [])]
    columns = {n: kind for n, kind in columns.items() if n not in dict(own)}
    target = pa.schema([*own, *columns.items()])
    with pq.ParquetWriter(path, target, compression="zstd") as writer:
        for key, record in records(store, keys):
            if name == "items":
                table = pa.Table.from_pandas(read_items(store, key, record), preserve_index=False)
            else:
                table = pq.read_table(store.folder(key) / f"{name}.parquet")
            writer.write_table(_fitted(table, key, target))


def _known(schema: pa.Schema) -> Iterator[Any]:
    """Yield the columns whose type a file tells; of one without values it tells none."""
    for field in schema:
        if not pa.types.is_null(field.type):
            yield pa.field(field.name, pa.string()) if _is_text(field.type) else field


def _is_text(kind: Any) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _fitted(table: pa.Table, key: str, target: pa.Schema) -> pa.Table:
    """Return a record's table in the columns of all, with its key."""
    columns = []
    for field in target:
        if field.name == KEY:
            columns.append(pa.array([key] * len(table), field.type))
        elif field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(len(table), field.type))
    return pa.Table.from_arrays(columns, schema=target)

"""Records as small as a record can be, for tests of what reads them."""

import json

import pandas as pd

PARTS = ("config", "parameters", "training", "data", "costs", "provenance")


def record(key, **content):
    """Return the content of a record of schema 2, which has no seal."""
    parts = {part: {} for part in PARTS} | {"schema": 2, "scores": [], "score_keys": []}
    return parts | {"train_key": key} | content


def fill(folder, key, *, items=None, **content):
    """Write such a record with its tables into a folder that is there."""
    empty = pd.DataFrame({"score": [1.0]})
    for name, table in {"items": empty if items is None else items, "history": empty}.items():
        table.to_parquet(folder / f"{name}.parquet")
    (folder / "config.yaml").write_text("{}")
    (folder / "record.json").write_text(json.dumps(record(key, **content)))
    return folder


def put(out, key, **content):
    """Write such a record where the records of `out` stand."""
    folder = out / "cells" / key
    folder.mkdir(parents=True)
    return fill(folder, key, **content)

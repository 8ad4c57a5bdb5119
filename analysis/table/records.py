"""The record of a run, where it lies beside the results table."""

import json
from pathlib import Path
from typing import Any


def read_record(folder: Path | None, key: object) -> dict[str, Any]:
    """Return the record of the run `key` beside the table in `folder`; empty where there is none.

    Args:
        folder: of the results table; None for a table in memory.
        key: the run's train_key.
    """
    file = folder / "cells" / str(key) / "record.json" if folder is not None else None
    if file is None or not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found

"""The record of a run, where it lies beside the results table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.results.record import fault_of, flattened


def read_record(folder: Path | None, key: object) -> dict[str, Any]:
    """Return the record of the run `key` beside the table in `folder`; empty without a whole one.

    Args:
        folder: of the results table; None for a table in memory.
        key: the run's train_key.
    """
    file = folder / "cells" / str(key) / "record.json" if folder is not None else None
    if file is None or not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {} if fault_of(found, str(key)) else found


def settings_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return every setting of a run by its dotted path, as JSON; empty without a record."""
    return {k: json.dumps(v) for k, v in flattened(record.get("config", {})).items()}

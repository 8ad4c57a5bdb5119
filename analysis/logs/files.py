"""Files of JSON as other programs write them; what cannot be read is told in a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError


def json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one JSON object a line.

    Raises:
        AnalysisError: a line is none.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise AnalysisError(
                    f"{path}: line {number} is no JSON object; was the file cut off while written?"
                )
            yield found

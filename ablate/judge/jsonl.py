"""Files with one JSON object a line, to which several processes may append; no torch."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file; nothing of a line that is none, as a killed writer leaves."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def append(file: Path, some: Iterable[Mapping[str, Any]]) -> None:
    """Write objects behind those of a file, each line whole and at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 1, 0))
        torn = stream.read(1) not in (b"", b"\n")  # what a killed writer left
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        stream.write(("\n" * torn + lines).encode(errors="replace"))

"""Failed attempts at runs, a file each, beside the records; and when a run is given up."""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.results.files import write
from ablate.results.leases import Holder

MAX_KILLS = 3  # of RETRIED at one place, after which a cell counts as failed
RETRIED = ("killed", "device")  # kinds of failure that say nothing about the cell


def add(folder: Path, key: str, what: Mapping[str, Any]) -> None:
    """Write one failed attempt at `key` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    number = next(n for n in itertools.count() if _read(_file(folder, key, n)) is None)
    body = {"train_key": key, "time": time.time()} | dict(what)
    write(_file(folder, key, number), json.dumps(body, indent=1).encode())


def of(folder: Path, key: str) -> list[dict[str, Any]]:
    """Return the failed attempts at `key`, oldest first; files that say nothing are left out."""
    return [found for path in _files(folder, key) if (found := _read(path))]


def clear(folder: Path, key: str) -> None:
    """Remove the failed attempts at `key`."""
    for path in _files(folder, key):
        path.unlink(missing_ok=True)


def _file(folder: Path, key: str, number: int) -> Path:
    return folder / f"{key}-{number}.json"


def _files(folder: Path, key: str) -> list[Path]:
    """Return the files of failed attempts at `key`, by name: a listing would be of all keys."""
    files = (_file(folder, key, number) for number in itertools.count())
    return list(itertools.takewhile(os.path.lexists, files))


def attempted(folder: Path) -> dict[str, int]:
    """Return how many files of failed attempts each key has, from one listing of the folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return Counter(n.rpartition("-")[0] for n in names if n.endswith(".json") and n[0] != ".")


def damaged(folder: Path) -> list[Path]:
    """Return the files of failed attempts that say nothing."""
    return [path for path in sorted(folder.glob("[!.]*")) if _read(path) is None]


def given_up(attempts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the failure among `attempts` because of which a run is not tried again, or None.

    After an error a cell is tried again only on request. A kill, or the loss of a GPU, says
    nothing about the cell until it has happened `MAX_KILLS` times at the same place.
    """
    errors = [f for f in attempts if f["kind"] not in RETRIED]
    if errors:
        return errors[-1]
    places = Counter((f["kind"], f.get("place")) for f in attempts)
    return attempts[-1] if max(places.values(), default=0) >= MAX_KILLS else None


def killed(dead: Holder, how: str, log: list[str]) -> dict[str, Any]:
    """Return the failure of an attempt whose process died."""
    place = f" at {dead.place}" if dead.place else ""
    text = f"the worker was killed{place}{f' ({how})' if how else ''}"
    return {"kind": "killed", "error": text, "place": dead.place, "log": log}


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file says of a failed attempt; None where it is damaged and says nothing."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    parts = ("kind", "error", "train_key")
    whole = isinstance(found, dict) and all(isinstance(found.get(part), str) for part in parts)
    return found if whole else None

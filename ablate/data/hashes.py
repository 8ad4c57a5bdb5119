"""Content hashes of what determines the rows: files, generator code, a hub's data set.

Files are hashed once per process and per (path, size, time of change).
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from ablate.config.schema import Dataset
from ablate.data import sources
from ablate.results.files import sha256


def source_hash(dataset: Dataset) -> str:
    """Return a hash of the content that `dataset` reads, before any setting acts on it.

    A hub data set at a commit is its name; at a branch its rows are read and hashed.
    """
    if dataset.source == "local":
        return _joined([file_hash(file) for file in sources.local_files(dataset)])
    if dataset.source == "micro":
        return _micro_hash()
    name = (dataset.path, dataset.subset, dataset.revision, dataset.split)
    if dataset.revision and re.fullmatch(r"[0-9a-f]{40}", dataset.revision):
        return _joined([str((*name, dataset.data_dir) if dataset.data_dir else name)])
    return _hub_hash(*name, dataset.data_dir)


def file_hash(file: str | Path) -> str:
    """Return the sha256 of a file's bytes, or "absent": a pipe or a device would have no end.

    Plain strings instead of pathlib: a plan of 10,000 cells calls this 150,000 times.
    """
    try:
        stat = os.stat(file)
    except OSError:
        return "absent"
    if not S_ISREG(stat.st_mode):
        return "absent"
    return _file_hash(str(file), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _file_hash(path: str, size: int, changed: int) -> str:
    return sha256(path)


@functools.cache
def _micro_hash() -> str:
    """Return the hash of the generator's code, which determines all rows of the micro world."""
    code = sorted((Path(__file__).parents[1] / "micro").glob("*.py"))
    return _joined([file_hash(file) for file in code])


@functools.cache
def _hub_hash(
    path: str, subset: str | None, revision: str | None, split: str, data_dir: str | None
) -> str:
    dataset = Dataset(
        name="", source="hub", path=path, subset=subset, revision=revision, split=split,
        data_dir=data_dir,
    )  # fmt: skip
    found = sources.records(dataset, "train")
    return _joined(json.dumps(record.fields, default=str) for record in found)


def _joined(texts: Iterable[str]) -> str:
    """Return the hash of the texts with a null between each two."""
    found = hashlib.sha256()
    for number, text in enumerate(texts):
        found.update(f"{chr(0) if number else ''}{text}".encode())
    return found.hexdigest()

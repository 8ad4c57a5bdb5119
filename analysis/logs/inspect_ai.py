"""Logs of Inspect: `.eval`, a zip archive of JSON, and `.json`, all of it in one file.

The archive has `header.json` and a file a sample and epoch under `samples/`; one whose run did not
end has `_journal/start.json` in the header's place. Newer archives are packed with zstandard, which
`zipfile` does not know and pyarrow does. An item is its input and its target; of several epochs the
mean counts.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.errors import AnalysisError
from analysis.logs.log import ITEMS, Log, flat, seed_in, with_places

VALUES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}
ZSTANDARD = 93  # the method of a zip archive
LARGEST = 1 << 30  # bytes of a member: what says that it is larger is not unpacked
HEADERS = ("header.json", "_journal/start.json")


def is_log(found: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a log of Inspect."""
    own = found.get("eval")
    return isinstance(own, Mapping) and "task" in own and "model" in own


def read_json(path: Path, found: Mapping[str, Any], cluster: str) -> Log:
    """Return a log that is one JSON object.

    Args:
        path: of the file.
        found: its content.
        cluster: the field of the samples' metadata that says which belong together; "" for none.
    """
    return _log(path, found, found.get("samples") or [], cluster)


def read_archive(path: Path, cluster: str) -> Log:
    """Return a log that is an archive.

    Raises:
        AnalysisError: it is none, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            header = next((name for name in HEADERS if name in names), None)
            if header is None:
                raise AnalysisError(f"{path}: is no log of Inspect: it has no header.json")
            about = _member(archive, path, header)
            inside = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
            return _log(path, about, (_member(archive, path, name) for name in inside), cluster)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as error:
        raise AnalysisError(f"{path}: cannot be read as a log of Inspect: {error}") from None


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of an archive.

    Raises:
        AnalysisError: it is none.
    """
    info = archive.getinfo(name)
    if info.file_size > LARGEST:
        raise AnalysisError(f"{path}: {name} is larger than {LARGEST >> 30} GiB")
    try:
        if info.compress_type == ZSTANDARD:
            raw = pa.Codec("zstd").decompress(_packed(path, info), info.file_size, asbytes=True)
        else:
            raw = archive.read(info)
        found = json.loads(raw)
    except (ValueError, OSError, NotImplementedError, RecursionError, zipfile.BadZipFile) as error:
        raise AnalysisError(f"{path}: {name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise AnalysisError(f"{path}: {name} is no JSON object")
    return found


def _packed(path: Path, info: zipfile.ZipInfo) -> bytes:
    """Return a member's bytes as they lie in the archive, behind its local header."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(name + extra, 1)
        return file.read(info.compress_size)


def _log(path: Path, about: Mapping[str, Any], samples: Any, cluster: str) -> Log:
    own = about.get("eval") or {}
    plan = about.get("plan") or {}
    task, model = str(own.get("task", path.stem)), str(own.get("model", ""))
    rows = [row for sample in samples for row in _of_sample(sample, task, cluster)]
    items = _over_epochs(pd.DataFrame(rows, columns=[*ITEMS, "epoch"]))
    generate = {**(own.get("model_generate_config") or {}), **(plan.get("config") or {})}
    parts = ("task_args", "model_args", "config", "packages", "task_version", "dataset")
    config = flat({name: own[name] for name in parts if own.get(name) is not None})
    config |= flat({"model": model, "generate": generate})
    config = {k: v for k, v in config.items() if k not in ("dataset.sample_ids",)}
    status = about.get("status", "started")
    said = () if status == "success" else (
        f"{path.name}: this evaluation did not end ({status}); what it scored counts.",
    )  # fmt: skip
    seed = str(generate.get("seed") or "") or seed_in(model, path.name, path.parent.name)
    return Log(model, model, path, seed=seed, config=config, items=items, notes=said)


def _of_sample(sample: Mapping[str, Any], task: str, cluster: str) -> Iterator[tuple[Any, ...]]:
    """Yield a row of `ITEMS` and the epoch for every score; without a value where it failed."""
    about = sample.get("metadata")
    own = str(about.get(cluster, "")) if cluster and isinstance(about, Mapping) else ""
    asked = json.dumps([sample.get("input"), sample.get("target")], sort_keys=True)
    item = hashlib.sha256(asked.encode()).hexdigest()[:16]
    number, epoch = str(sample.get("id", "")), int(sample.get("epoch") or 1)
    for scorer, score in (sample.get("scores") or {}).items():
        value = score.get("value") if isinstance(score, Mapping) else None
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, one in parts.items():
            metric = f"{scorer}.{part}" if part else str(scorer)
            yield task, task, metric, number, item, own, _number(one), epoch


def _number(value: Any) -> float:
    """Return the number that stands for a score's value; NaN for none."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return float("nan")
    known = VALUES.get(value, VALUES.get(value.lower()))
    if known is not None:
        return known
    try:
        return float(value)
    except ValueError:
        return float("nan")


def _over_epochs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the items with the mean of their epochs."""
    if not len(rows):
        return pd.DataFrame(columns=ITEMS)
    first = [with_places(own) for _, own in rows.groupby("epoch", sort=True)]
    every = pd.concat(first, ignore_index=True)
    names = [n for n in ITEMS if n not in ("score", "doc")]
    grouped = every.groupby(names, sort=False, dropna=False)
    return grouped.agg(doc=("doc", "first"), score=("score", "mean")).reset_index()[ITEMS]

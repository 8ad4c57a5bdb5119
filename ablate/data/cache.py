"""The cache of tokenised data: an .npz of arrays and a .json of facts per content key.

The key hashes everything that determines the result, so an entry is never stale: a changed file,
tokenizer or generator gives another key. Entries are written to a temporary name and renamed, the
.json last, so that several processes may write the same entry at once.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ablate import paths
from ablate.config.build import plain
from ablate.config.schema import TEMPLATES, Dataset
from ablate.data.hashes import file_hash, source_hash
from ablate.errors import UserError

DATA_VERSION = 15  # increase it when the same settings give other ids, roles or reasons

Arrays = dict[str, np.ndarray]
_keys: dict[tuple[str, ...], str] = {}
_infos: dict[tuple[Path, str], dict[str, Any]] = {}


def key(dataset: Dataset, part: str, tokenizer_hash: str, settings: Mapping[str, object]) -> str:
    """Return the content key of a tokenised part; memoised, as a plan asks for it 10,000 times."""
    own = "" if dataset.template in TEMPLATES else file_hash(dataset.template)
    asked = (repr(dataset), part, tokenizer_hash, repr(settings), own, source_hash(dataset))
    if asked not in _keys:
        facts = plain(dataset) | {"name": "", "published": {}, "content": asked[-1], "part": part}
        if dataset.source == "local":
            facts["path"] = ""  # the content counts, not its place
        if own:
            facts["template"] = own
        facts |= {"tokenizer": tokenizer_hash, "version": DATA_VERSION, **settings}
        text = json.dumps(facts, sort_keys=True)
        _keys[asked] = hashlib.sha256(text.encode()).hexdigest()
    return _keys[asked]


def info(name: str) -> dict[str, Any] | None:
    """Return the facts stored under a key, or None."""
    folder = paths.cache_dir()
    if (folder, name) not in _infos:
        try:
            text = _place(folder, f"{name}.json").read_text(encoding="utf-8")
            _infos[folder, name] = json.loads(text)
        except (OSError, ValueError):
            return None
    return _infos[folder, name]


def _place(folder: Path, name: str) -> Path:
    return folder / "tokens" / name


def load(name: str) -> tuple[Arrays, dict[str, Any]] | None:
    """Return the arrays and facts stored under a key, or None where one is missing or broken."""
    facts = info(name)
    if facts is None:
        return None
    try:
        # opened here: numpy leaves the file open when it is no archive
        with _place(paths.cache_dir(), f"{name}.npz").open("rb") as file, np.load(file) as stored:
            return {key: stored[key] for key in stored.files}, facts
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def save(name: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Store arrays, then facts, under a key.

    Raises:
        UserError: the cache folder cannot be written to.
    """
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # its stub takes a bool for allow_pickle
    folder = paths.cache_dir()
    try:
        write(_place(folder, f"{name}.npz"), packed.getbuffer())
        write(_place(folder, f"{name}.json"), json.dumps(facts, allow_nan=False).encode())
    except OSError as error:
        raise UserError(f"ABLATE_CACHE={folder}: cannot be written ({error.strerror})") from None


def write(file: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all; several processes may write the same one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as stream:
        stream.write(content)
    os.replace(stream.name, file)

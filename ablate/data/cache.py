"""The cache of tokenised data: an .npy for each column and a .json of facts per content key.

The key hashes everything that determines the result, so an entry is never stale: a changed file,
tokenizer or generator gives another key. Entries are written to a temporary name and renamed, the
.json last, so that several processes may write the same entry at once.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ablate import paths
from ablate.config.build import plain
from ablate.config.schema import TEMPLATES, Dataset
from ablate.data.hashes import file_hash, source_hash
from ablate.errors import UserError

DATA_VERSION = 16  # increase it when the same settings give other ids, roles or reasons

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


def load(name: str, columns: Iterable[str]) -> tuple[Arrays, dict[str, Any]] | None:
    """Return the facts stored under a key and those of `columns` that are, mapped from files.

    None where the facts are missing or a file is broken.
    """
    facts = info(name)
    if facts is None:
        return None
    arrays = {}
    for column in columns:
        file = _place(paths.cache_dir(), f"{name}.{column}.npy")
        try:
            # as a plain array: slices of numpy's own class take microseconds
            arrays[column] = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, EOFError):
            return None
    return arrays, facts


class Draft:
    """Columns that grow on disk, chunk by chunk, until they are kept under a key."""

    def __init__(self) -> None:
        """Begin without columns."""
        self._folder = paths.cache_dir()
        self._files: dict[str, IO[bytes]] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def add(self, columns: Arrays) -> None:
        """Put arrays of one dimension behind what their columns hold.

        Raises:
            UserError: the cache folder cannot be written to.
        """
        with _writing(self._folder):
            for column, values in columns.items():
                if column not in self._files:
                    self._begin(column, values.dtype)
                self._files[column].write(np.ascontiguousarray(values).data)
                self._sizes[column] += len(values)

    def _begin(self, column: str, dtype: np.dtype[Any]) -> None:
        folder = _place(self._folder, "")
        folder.mkdir(parents=True, exist_ok=True)
        self._files[column] = _temporary(folder)
        self._types[column], self._sizes[column] = dtype, 0
        self._head(column)

    def _head(self, column: str) -> None:
        """Write the header of a column's file: numpy leaves room in it for a length that grows."""
        kind = np.lib.format.dtype_to_descr(self._types[column])
        facts = {"descr": kind, "fortran_order": False, "shape": (self._sizes[column],)}
        self._files[column].seek(0)
        np.lib.format.write_array_header_1_0(self._files[column], facts)

    def hashed(self, columns: Sequence[str]) -> str:
        """Return the sha256 of the bytes of `columns`, one after the other."""
        found = hashlib.sha256()
        for column in columns:
            file = self._files[column]
            file.seek(-self._sizes[column] * self._types[column].itemsize, os.SEEK_END)
            while block := file.read(1 << 20):
                found.update(block)
        return found.hexdigest()

    def keep(self, name: str, columns: Iterable[str], facts: Mapping[str, Any]) -> None:
        """Store `columns`, then facts, under the key `name`.

        Raises:
            UserError: the cache folder cannot be written to.
        """
        with _writing(self._folder):
            for column in columns:
                self._head(column)
                file = self._files.pop(column)
                file.close()
                os.replace(file.name, _place(self._folder, f"{name}.{column}.npy"))
            text = json.dumps(facts, allow_nan=False).encode()
            write(_place(self._folder, f"{name}.json"), text)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"ABLATE_CACHE={folder}: cannot be written ({error.strerror})") from None


def _temporary(folder: Path) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(  # closed and renamed, or removed, later
        "w+b", dir=folder, suffix=".tmp", delete=False
    )


def write(file: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all; several processes may write the same one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as stream:
        stream.write(content)
    os.replace(stream.name, file)

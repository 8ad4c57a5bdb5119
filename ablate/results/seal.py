"""Whether a record is whole: its own digest, and the size and digest of each of its files.

`sealed` writes into a record what its files are; `read` says what of it is no longer so. A file
whose size and time of change are as recorded is not read again: to verify a folder costs a look at
each file, not its bytes. A file of which only the time differs, as after a copy, is hashed, and
`retime` gives it the recorded time again. `every_byte` hashes all.

Records of schema 1 and 2 have no seal. They are taken as they are where they have the parts of a
record and their tables are whole parquet files.
"""

import functools
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablate.results.files import sha256, write
from ablate.results.record import RECORD, SCHEMA, digest, fault_of

TABLES = ("history.parquet", "items.parquet")
UNSEALED = ("log.txt",)  # a diary: it grows when further scores are added, and no result is in it
MADE = ".made.json"  # in a folder of files made from another
MAGIC = b"PAR1"  # begins and ends every parquet file
REMEMBERED = 2**18  # hashes that a process remembers
DENIED = "cannot be read (no permission)"

_sound: set[tuple[Any, ...]] = set()  # record files whose content was found right in this process


def sealed(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return `record` with the size, time and SHA-256 of every file of `folder`, and its own."""
    body = {k: v for k, v in record.items() if k != "seal"} | {"schema": SCHEMA}
    files = {path.relative_to(folder).as_posix(): _mark(path) for path in sorted(_files(folder))}
    return body | {"seal": {"files": files, "sha256": digest(body | {"files": files})}}


def read(folder: Path, key: str, *, every_byte: bool = False) -> tuple[dict[str, Any] | None, str]:
    """Return the record in `folder`, as it stands in its file, and what is wrong with it.

    Args:
        folder: of the record.
        key: the run's.
        every_byte: hash every file, whatever its time of change.

    Returns:
        The record and ""; None and a reason in a few words; None and "" where nothing is there.
    """
    file = folder / RECORD
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return None, f"{RECORD} is no file"
        text = file.read_bytes()
    except OSError as error:
        return None, _unreadable(folder, error)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None, f"{RECORD} is no JSON" if text.strip() else f"{RECORD} is empty"
    mark = (str(file), key, found.st_ino, found.st_size, found.st_mtime_ns)
    reason = "" if mark in _sound else fault_of(record, key)
    if not reason:
        _sound.add(mark)
        reason = _fault_of_files(record, folder, every_byte=every_byte)
    return (None, reason) if reason else (record, "")


def note_made(folder: Path, source: Path) -> None:
    """Write down which file the files of `folder` were made from, and what they are."""
    files = {path.relative_to(folder).as_posix(): _mark(path) for path in _files(folder)}
    about = {"source": _mark(source)["sha256"], "files": files}
    write(folder / MADE, json.dumps(about).encode())


def is_made(folder: Path, source: Path) -> bool:
    """Return whether the files of `folder` are those that were made from `source` as it is."""
    try:
        about = _read_json(folder / MADE)
        files = about["files"]
        return about["source"] == _mark(source)["sha256"] and not any(
            _fault_of_file(folder / name, known, every_byte=False) for name, known in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _read_json(path: Path) -> Any:
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(path)
    return json.loads(path.read_bytes())


def raw(folder: Path) -> dict[str, Any] | None:
    """Return what the record in `folder` says, whether or not it is whole; None if it is none."""
    try:
        found = _read_json(folder / RECORD)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def retime(record: Mapping[str, Any], folder: Path) -> None:
    """Give the files of a record that was found whole their recorded times of change again."""
    for name, known in record.get("seal", {}).get("files", {}).items():
        found = (folder / name).stat()
        if found.st_mtime_ns // 1000 != known["changed_us"]:
            os.utime(folder / name, ns=(found.st_atime_ns, known["changed_us"] * 1000))


def _unreadable(folder: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{RECORD} is missing" if os.path.lexists(folder) else ""
    if isinstance(error, NotADirectoryError):
        return "is no folder"
    if isinstance(error, PermissionError):
        return f"{RECORD} {DENIED}"
    return f"{RECORD} cannot be read ({error.strerror})"


def _fault_of_files(record: Mapping[str, Any], folder: Path, *, every_byte: bool) -> str:
    """Return what is wrong with the first file of a record that is not as it was written."""
    try:
        if "seal" not in record:
            return next(filter(None, (_fault_of_table(folder / name) for name in TABLES)), "")
        files = record["seal"]["files"]
        faults = (_fault_of_file(folder / n, k, every_byte=every_byte) for n, k in files.items())
        return next(filter(None, faults), "")
    except PermissionError as error:
        return f"{Path(str(error.filename)).name} {DENIED}"


def _fault_of_file(path: Path, known: Mapping[str, Any], *, every_byte: bool) -> str:
    try:
        found = path.stat()
    except PermissionError:
        raise
    except OSError:
        return f"{path.name} is missing"
    if not stat.S_ISREG(found.st_mode):
        return f"{path.name} is no file"
    if found.st_size != known["bytes"]:
        return f"{path.name} has {found.st_size:,} bytes, not {known['bytes']:,}"
    when = found.st_mtime_ns // 1000
    if not every_byte and when == known["changed_us"]:
        return ""
    digest_of = _sha256.__wrapped__ if every_byte else _sha256  # not what is remembered
    same = digest_of(path, found.st_ino, found.st_size, found.st_mtime_ns) == known["sha256"]
    return "" if same else f"{path.name} has been changed"


def _fault_of_table(path: Path) -> str:
    """Return what is wrong with a parquet file of a record without a seal."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{path.name} is no file"
        with path.open("rb") as file:
            ends = [file.read(len(MAGIC))]
            file.seek(-min(len(MAGIC), found.st_size), os.SEEK_END)
            ends.append(file.read())
    except PermissionError:
        raise
    except OSError:
        return f"{path.name} is missing"
    return "" if ends == [MAGIC, MAGIC] else f"{path.name} is no whole parquet file"


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files that belong to a record: neither itself, its log, nor hidden ones."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.as_posix() not in (RECORD, *UNSEALED):
            yield path


def _mark(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {
        "bytes": found.st_size,
        "changed_us": found.st_mtime_ns // 1000,
        "sha256": _sha256(path, found.st_ino, found.st_size, found.st_mtime_ns),
    }


@functools.lru_cache(maxsize=REMEMBERED)
def _sha256(path: Path, *_: int) -> str:
    """Return the SHA-256 of a file; the further numbers are what it is remembered by."""
    return sha256(path)

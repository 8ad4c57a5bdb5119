"""The folder of results: each record is written whole or not at all, and claimed by one worker.

    OUT/cells/<train_key>/   record.json, config.yaml, items.parquet, history.parquet, log.txt
    OUT/failures/<train_key>-<n>.json    an error; never in place of a record
    OUT/claims/<train_key>               locked by the worker that trains it
    OUT/trained/<train_key>/             a run that is trained and not yet scored
    OUT/checkpoints/<train_key>/         what a run that still trains goes on from

What took long is safe before what may fail: a run that is trained stays under `trained/` until its
record is written, so an attempt that ends while it is scored costs the scores alone.

A claim is an advisory lock of the operating system: it ends with the process that holds it, so a
killed worker never blocks a cell. A claim file that no process locks, of a cell without a record,
means that the worker was killed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.results.record import RECORD, upgraded

DRAFT_GRACE_SECONDS = 5  # a new draft is not locked in its first instant
MAX_KILLS = 3  # of RETRIED, after which a cell counts as failed; before that it is tried again
RETRIED = ("killed", "device")  # kinds of failure that say nothing about the cell


class Store:
    """The results under one folder; it holds no state but the path."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cells = out / "cells"
        self.failed = out / "failures"
        self.claims = out / "claims"
        self.trained = out / "trained"
        self.checkpointed = out / "checkpoints"

    def prepare(self) -> None:
        """Make the folders and remove drafts that a killed writer left.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            for folder in (self.cells, self.failed, self.claims, self.trained):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cells):
                pass
        except OSError as error:
            raise UserError(f"out={self.out}: cannot be written ({error.strerror})") from None
        self.clear_drafts()

    def clear_drafts(self) -> None:
        """Remove the drafts of writers that were killed, and what was kept of recorded runs."""
        for draft in (*self.cells.glob(".tmp-*"), *self.trained.glob(".tmp-*")):
            if _abandoned(draft):
                shutil.rmtree(draft, ignore_errors=True)
        for state in (*self.trained.glob("[!.]*"), *self.checkpointed.glob("*")):
            if (self.folder(state.name) / RECORD).exists():
                self._forget(state.name)

    def folder(self, key: str) -> Path:
        """Return the folder of the record of `key`, whether or not it exists."""
        return self.cells / key

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of `key`, or None where there is none."""
        try:
            text = (self.folder(key) / RECORD).read_text()
        except FileNotFoundError:
            return None
        return upgraded(json.loads(text))

    def scored(self, key: str) -> frozenset[str]:
        """Return the score keys that the record of `key` holds; empty where there is none."""
        record = self.record(key)
        return frozenset(record["score_keys"]) if record else frozenset()

    def recorded(self) -> list[str]:
        """Return the keys of all records."""
        return sorted(p.parent.name for p in self.cells.glob(f"*/{RECORD}"))

    def newest(self, count: int) -> list[str]:
        """Return the keys of the records that were written last."""
        files = [(p.stat().st_mtime, p.parent.name) for p in self.cells.glob(f"*/{RECORD}")]
        return [key for _, key in sorted(files, reverse=True)[:count]]

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """Give a folder that becomes the record of `key` unless the block raises.

        It holds what an earlier attempt kept by `keep_trained`, else nothing. What a second writer
        of the same key wrote is discarded: equal keys mean equal records.
        """
        with _draft(self.cells, key) as draft:
            if self.is_trained(key):
                _link(self.trained / key, draft)
            yield draft
            _settle(draft, self.folder(key))
        self._forget(key)

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """Give an empty folder, which is removed at the end; `keep_trained` keeps what it holds."""
        self.trained.mkdir(exist_ok=True)
        with _draft(self.trained, key) as draft:
            yield draft

    def keep_trained(self, key: str, draft: Path) -> None:
        """Keep what `draft` holds, whole or not at all, for the attempts to come.

        Files are shared with the draft: replace one to change it.
        """
        self.trained.mkdir(exist_ok=True)
        with _draft(self.trained, key) as state:
            _link(draft, state)
            for file in (path for path in state.rglob("*") if path.is_file()):
                _sync(file)  # the folders may wait: without them there is no state, not a half one
            _name(state, self.trained / key)

    def is_trained(self, key: str) -> bool:
        """Return whether an attempt at `key` ended after training and before its record."""
        return (self.trained / key).exists()

    def checkpoints(self, key: str) -> Path:
        """Return the folder of the checkpoints of `key`, which its record makes needless."""
        return self.checkpointed / key

    def _forget(self, key: str) -> None:
        """Remove what `keep_trained` kept, in one step, and checkpoints."""
        shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        if self.is_trained(key):
            gone = self.trained / f".tmp-{key}-{os.getpid()}"
            with contextlib.suppress(OSError):
                os.rename(self.trained / key, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def amend(self, key: str, files: dict[str, bytes]) -> None:
        """Replace files of an existing record, `record.json` last.

        Readers use only the scores that record.json lists, so after a kill between two files the
        old record is still valid.
        """
        for name in sorted(files, key=lambda n: n == RECORD):
            target = self.folder(key) / name
            draft = target.with_name(f".{name}.{os.getpid()}")
            draft.write_bytes(files[name])
            _sync(draft)
            os.replace(draft, target)
        _sync(self.folder(key))

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Give True to the worker that holds `key` until the block ends, False to all others."""
        self.claims.mkdir(parents=True, exist_ok=True)
        path = self.claims / key
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            if not _same_file(handle.fileno(), path):  # the holder before us removed it meanwhile
                yield False
                return
            handle.truncate(0)
            handle.write(json.dumps(_worker()))
            handle.flush()
            yield True
            path.unlink(missing_ok=True)

    def claimed(self, key: str) -> dict[str, Any] | None:
        """Return the worker that holds `key` now (pid, host, since), or None."""
        return self._holder(key)[0]

    def _holder(self, key: str) -> tuple[dict[str, Any] | None, bool]:
        """Return the live holder of `key`, and whether a dead one left its claim file."""
        try:
            with (self.claims / key).open() as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return json.loads(handle.read() or "{}"), False
                # Empty: its worker is between making the file and locking it, not dead.
                return None, bool(handle.read())
        except FileNotFoundError:
            return None, False

    def reap(self, key: str) -> bool:
        """Return whether the holder of `key` was dead; if so, record one killed attempt."""
        if not self._holder(key)[1]:
            return False
        with self.claim(key) as mine:
            if not mine:
                return False
            if self.record(key) is None:
                self.fail(key, {"kind": "killed", "error": "the worker was killed"})
        return True

    def fail(self, key: str, what: dict[str, Any]) -> None:
        """Write one failed attempt at `key`, beside the records."""
        self.failed.mkdir(parents=True, exist_ok=True)
        number = len(self.failures(key))
        body = {"train_key": key, "time": time.time()} | what
        draft = self.failed / f".{key}-{os.getpid()}"
        draft.write_text(json.dumps(body, indent=1))
        _sync(draft)
        os.replace(draft, self.failed / f"{key}-{number}.json")

    def failures(self, key: str) -> list[dict[str, Any]]:
        """Return the failed attempts at `key`, oldest first."""
        files = sorted(self.failed.glob(f"{key}-*.json"), key=lambda p: int(p.stem.split("-")[-1]))
        return [json.loads(p.read_text()) for p in files]

    def attempted(self) -> frozenset[str]:
        """Return the keys with failed attempts, from one listing of the folder."""
        return frozenset(p.stem.rsplit("-", 1)[0] for p in self.failed.glob("*-*.json"))

    def given_up(self, key: str) -> dict[str, Any] | None:
        """Return the failure because of which `key` is not tried again, or None.

        After an error a cell is tried again only on request; after a kill, or the loss of a GPU, up
        to `MAX_KILLS` times.
        """
        attempts = self.failures(key)
        errors = [f for f in attempts if f["kind"] not in RETRIED]
        if errors:
            return errors[-1]
        return attempts[-1] if len(attempts) >= MAX_KILLS else None

    def clear_failures(self, key: str) -> None:
        """Remove the failed attempts at `key` and at its scores, so that they are tried again."""
        for path in self.failed.glob(f"{key}-*.json"):
            path.unlink(missing_ok=True)
        record = self.record(key)
        if record and record.get("unscored"):
            lost = {one["score_key"] for one in record["unscored"]}
            left = [known for known in record["score_keys"] if known not in lost]
            changed = record | {"unscored": [], "score_keys": left}
            self.amend(key, {RECORD: json.dumps(changed, indent=1, allow_nan=False).encode()})


def _worker() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}


@contextlib.contextmanager
def _draft(parent: Path, key: str) -> Iterator[Path]:
    """Give a new folder in `parent`, locked while the block runs; it is removed at the end."""
    draft = Path(tempfile.mkdtemp(dir=parent, prefix=f".tmp-{key}-"))
    lock = os.open(draft, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield draft
    finally:
        os.close(lock)
        shutil.rmtree(draft, ignore_errors=True)


def _settle(draft: Path, place: Path) -> None:
    """Flush `draft` to the disk and give it its name, unless another writer was first.

    A file with a second link is one that `keep_trained` has flushed already.
    """
    for file in draft.rglob("*"):
        if file.is_dir() or file.stat().st_nlink == 1:
            _sync(file)
    _sync(draft)
    _name(draft, place)
    _sync(place.parent)


def _name(draft: Path, place: Path) -> None:
    with contextlib.suppress(OSError):  # another writer was first
        os.rename(draft, place)


def _link(source: Path, target: Path) -> None:
    """Make the files under `source` files under `target` too: links, or copies where need be."""
    for path in source.rglob("*"):
        made = target / path.relative_to(source)
        if path.is_dir():
            made.mkdir(parents=True, exist_ok=True)
            continue
        made.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, made)
        except OSError:  # a file system without links
            shutil.copy2(path, made)


def _abandoned(draft: Path) -> bool:
    """Return whether the writer of `draft` is dead: it holds a lock on it while it lives."""
    try:
        if time.time() - draft.stat().st_mtime < DRAFT_GRACE_SECONDS:
            return False
        descriptor = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk: a record must survive a power cut after its rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

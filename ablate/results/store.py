"""The folder of results: each record is written whole or not at all, and claimed by one worker.

    OUT/cells/<train_key>/   record.json, config.yaml, items.parquet, history.parquet, log.txt
    OUT/failures/<train_key>-<n>.json    an error; never in place of a record
    OUT/claims/<train_key>.<n>           the lease of the worker that trains it (`leases`)
    OUT/trained/<train_key>/             a run that is trained and not yet scored
    OUT/checkpoints/<train_key>/         what a run that still trains goes on from
    OUT/damaged/<train_key>/             what was found damaged, or in a record's place
    OUT/kept/<train_key>/                a result that could not be put in its place

A record is read whole or not at all: one that is no longer what was written (`results.seal`) is
damaged, which is told and never taken for a result. A sweep moves it away and trains the run again.
Further scores are added in a new folder, which takes the place of the old one in one step.

What took long is safe before what may fail: a run that is trained stays under `trained/` until its
record is written, so an attempt that ends while it is scored costs the scores alone.

A cell is claimed by a lease. Whoever finds that its holder is dead takes it over, removes what the
holder left half written and, where the holder alone died, records a killed attempt.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.results import heart, leases, process, seal
from ablate.results.files import (
    DRAFT,
    draft_of,
    link,
    open_up,
    put_back,
    set_aside,
    swap,
    sync,
    write,
)
from ablate.results.leases import Holder
from ablate.results.log import LOG, last_lines, say
from ablate.results.record import RECORD, text, upgraded

DRAFT_SECONDS = 86400.0  # after which a file that another machine has not finished is left over
MAX_KILLS = 3  # of RETRIED at one place, after which a cell counts as failed
RETRIED = ("killed", "device")  # kinds of failure that say nothing about the cell
OTHERS = ("designs", "bundles")  # folders beside those of a store, where drafts may be left


class Store:
    """The results under one folder; it holds no state but the path."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cells = out / "cells"
        self.failed = out / "failures"
        self.claims = out / "claims"
        self.trained = out / "trained"
        self.checkpointed = out / "checkpoints"
        self.damaged = out / "damaged"
        self.kept = out / "kept"

    def prepare(self) -> None:
        """Make the folders and remove drafts that a killed writer left.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for folder in (self.cells, self.failed, self.claims, self.trained):
                if os.path.lexists(folder) and not folder.is_dir():
                    set_aside(folder, self.damaged)
                folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cells):
                pass
        except OSError as error:
            raise UserError(f"out={self.out}: cannot be written ({error.strerror})") from None
        self.clear_drafts()

    def clear_drafts(self) -> None:
        """Remove the drafts of writers that were killed, and what was kept of recorded runs."""
        put_back(self.cells)
        own = (self.cells, self.trained, self.failed, self.claims)
        for folder in (*own, self.out, *(self.out / name for name in OTHERS)):
            for draft in folder.glob(f"{DRAFT}*"):
                if self._abandoned(draft):
                    _remove(draft)
        for state in (*self.trained.glob("[!.]*"), *self.checkpointed.glob("*")):
            if self.record(state.name) is not None:
                self._forget(state.name)

    def folder(self, key: str) -> Path:
        """Return the folder of the record of `key`, whether or not it exists."""
        return self.cells / key

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of `key`, or None where there is none, or a damaged one."""
        found, _ = seal.read(self.folder(key), key)
        return None if found is None else upgraded(found)

    def fault(self, key: str, *, every_byte: bool = False) -> str:
        """Return what is damaged of the record of `key`; empty where it is whole or not there."""
        return seal.read(self.folder(key), key, every_byte=every_byte)[1]

    def scored(self, key: str) -> frozenset[str]:
        """Return the score keys that the record of `key` holds; empty where there is none."""
        record = self.record(key)
        return frozenset(record["score_keys"]) if record else frozenset()

    def recorded(self) -> list[str]:
        """Return the keys of all records."""
        return sorted(key for key in self.present() if self.record(key) is not None)

    def present(self) -> list[str]:
        """Return the names of all that stands where records stand, damaged or not."""
        try:
            return sorted(name for name in os.listdir(self.cells) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def newest(self, count: int) -> list[str]:
        """Return the keys of the records that were written last."""
        files = []
        for path in self.cells.glob(f"*/{RECORD}"):
            with contextlib.suppress(OSError):  # a link to nothing, or it is being moved away
                files.append((path.stat().st_mtime, path.parent.name))
        return [key for _, key in sorted(files, reverse=True)[:count]]

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """Give a folder that becomes the record of `key` unless the block raises.

        It holds what an earlier attempt kept by `keep_trained`, else nothing. What a second writer
        of the same key wrote is discarded: equal keys mean equal records.
        """
        with _draft(self.cells, key) as draft:
            if self.is_trained(key):
                self._go_on(key, draft)
            yield draft
            _seal(draft)
            _flush(draft)
            heart.check(self.claims, key)
            self._settle(draft, key)
        self._forget(key)

    def _go_on(self, key: str, draft: Path) -> None:
        """Put into `draft` what `keep_trained` kept of `key`, unless that is damaged."""
        state = self.trained / key
        _, fault = seal.read(state, key)
        if fault:
            place = set_aside(state, self.damaged)
            say(f"trained/{key} is damaged ({fault}): moved to damaged/{place.name}")
        else:
            link(state, draft)

    def _settle(self, draft: Path, key: str) -> None:
        """Give `draft` its place, unless another writer was first.

        What else has the place is moved to `damaged/`. A result that can have its place by no means
        is kept under `kept/`, for the next sweep to try again.

        Raises:
            UserError: the result was kept so.
        """
        place = self.folder(key)
        try:
            os.rename(draft, place)
        except OSError:
            if self.record(key) is not None:  # another writer was first
                return
            try:
                found = set_aside(place, self.damaged)
                say(f"cells/{key} was in the way of its result: moved to damaged/{found.name}")
                os.rename(draft, place)
            except OSError as error:
                kept = set_aside(draft, self.kept, key)
                raise UserError(
                    f"{place}: the result cannot have its place ({error.strerror}); it is kept in "
                    f"{kept}, from where the next sweep takes it"
                ) from None
        sync(place.parent)

    def put(self, path: Path, content: bytes) -> None:
        """Write a file whole or not at all; what else has its name is moved to `damaged/`.

        A file that has this content already is not written.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if path.parent.is_file() or (path.parent.is_symlink() and not path.parent.exists()):
                set_aside(path.parent, self.damaged)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                set_aside(path, self.damaged)
            if not path.exists() or path.read_bytes() != content:
                write(path, content)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def take(self, key: str, folder: Path) -> None:
        """Make a copy of the record of `key` in `folder`, of another store, ours."""
        with _draft(self.cells, key) as draft:
            shutil.copytree(folder, draft, dirs_exist_ok=True)
            _seal(draft)
            _flush(draft)
            self._settle(draft, key)

    def migrate(self, key: str) -> bool:
        """Write the record of `key` in today's schema if it is an older one; say whether it was."""
        found = seal.raw(self.folder(key)) or {}
        if "seal" in found or self.record(key) is None:
            return False
        with self.claim(key) as mine:
            if mine and (record := self.record(key)):
                self.amend(key, record)
        return mine

    def kept_results(self) -> list[Path]:
        """Return what is under `kept/`."""
        return sorted(self.kept.glob("*"))

    def damaged_failures(self) -> list[Path]:
        """Return the files of failed attempts that say nothing."""
        return [path for path in sorted(self.failed.glob("[!.]*")) if _failure(path) is None]

    def take_kept(self) -> list[str]:
        """Give results under `kept/` their places; return a line for each."""
        told = []
        for state in self.kept_results():
            key = str((seal.raw(state) or {}).get("train_key", ""))
            if not key or seal.read(state, key)[0] is None or self.record(key) is not None:
                continue
            with self.claim(key) as mine, contextlib.suppress(OSError):
                if mine:
                    if os.path.lexists(self.folder(key)):
                        set_aside(self.folder(key), self.damaged)
                    os.rename(state, self.folder(key))
                    told.append(f"kept/{state.name} was given its place in cells/")
        return told

    def set_damaged_aside(self, keys: Iterable[str], *, every_byte: bool = False) -> list[str]:
        """Move damaged records of `keys` to `damaged/`; return a line for each.

        Those that another worker holds are its own to replace.

        Raises:
            UserError: one may not be read or moved by this user.
        """
        told = []
        for key in keys:
            found, fault = seal.read(self.folder(key), key, every_byte=every_byte)
            if found is not None:
                with contextlib.suppress(OSError):
                    seal.retime(found, self.folder(key))
            if seal.DENIED in fault:
                raise UserError(
                    f"{self.folder(key)}: {fault}; its owner may allow it by chmod -R a+rX"
                )
            if not fault:
                continue
            with self.claim(key) as mine:
                if mine and self.fault(key, every_byte=every_byte):
                    told.append(f"{self._aside(key)} ({fault})")
        return told

    def _aside(self, key: str) -> str:
        try:
            place = set_aside(self.folder(key), self.damaged)
        except OSError as error:
            raise UserError(
                f"{self.folder(key)}: is damaged and cannot be moved to {self.damaged} "
                f"({error.strerror})"
            ) from None
        return f"damaged: cells/{key} was moved to damaged/{place.name}"

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
            link(draft, state)
            _seal(state)
            for file in (path for path in state.rglob("*") if path.is_file()):
                sync(file)  # the folders may wait: without them there is no state, not a half one
            heart.check(self.claims, key)
            with contextlib.suppress(OSError):  # another writer was first
                os.rename(state, self.trained / key)

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
            gone = draft_of(self.trained / f"{key}-gone")
            with contextlib.suppress(OSError):
                os.rename(self.trained / key, gone)
            shutil.rmtree(gone, ignore_errors=True)

    @contextlib.contextmanager
    def amending(self, key: str) -> Iterator[Path]:
        """Give a folder with the files of the record of `key`, which it replaces at the end.

        That is one step: readers find the old record or the new one. Files are shared with the old
        record: replace one to change it. If the block raises, the old record stays.
        """
        with _draft(self.cells, key) as draft:
            link(self.folder(key), draft)
            if (draft / LOG).is_dir():  # in place of the log
                shutil.rmtree(draft / LOG)
            yield draft
            _seal(draft)
            _flush(draft)
            heart.check(self.claims, key)
            swap(draft, self.folder(key))  # the draft is the old record now, and removed

    def amend(self, key: str, record: Mapping[str, Any]) -> None:
        """Replace what the record of `key` says; its files stay."""
        with self.amending(key) as draft:
            write(draft / RECORD, text(record), durable=False)

    @contextlib.contextmanager
    def claim(self, key: str, *, sweep: str = "") -> Iterator[bool]:
        """Give True to the worker that holds `key` until the block ends, False to all others.

        `sweep` is the mark of the process whose sweep the worker is one of.
        """
        self.reap(key, sweep=sweep)
        lease = leases.take(self.claims, key, sweep=sweep)
        if lease is None:
            yield False
            return
        with heart.holding(lease):
            yield True

    def claimed(self, key: str) -> Holder | None:
        """Return the worker that holds `key` and is not known to be dead, or None."""
        found = leases.holder(self.claims, key)
        return None if found is None or leases.is_dead(self.claims, found) else found

    def reap(self, key: str, *, sweep: str = "", how: str = "") -> bool:
        """Return whether the holder of `key` was dead; if so, nothing of it is left.

        A kill counts as an attempt at the cell only where the worker was one of `sweep`, whose
        process is alive: of a machine that went down, or a sweep that was killed as a whole, no
        cell is the cause. `how` the worker ended, if that is known.
        """
        dead = leases.holder(self.claims, key)
        if dead is None or not leases.is_dead(self.claims, dead):
            return False
        lease = leases.take(self.claims, key, over=dead)
        if lease is None:
            return False
        with heart.holding(lease):
            left = list(self._drafts(key, dead.process.mark))
            if sweep and dead.sweep == sweep and self.record(key) is None:
                self.fail(key, _killed(dead, how, [line for d in left for line in last_lines(d)]))
            for draft in left:
                _remove(draft)
        return True

    def reap_all(self, *, sweep: str = "", how: str = "") -> None:
        """Reap every cell whose holder is dead."""
        for found in leases.holders(self.claims):
            self.reap(found.key, sweep=sweep, how=how)

    def _drafts(self, key: str, mark: str) -> Iterator[Path]:
        for folder in (self.cells, self.trained):
            yield from folder.glob(f"{DRAFT}{mark}-{key}-*")

    def _abandoned(self, draft: Path) -> bool:
        """Return whether the writer of a draft, which its name tells, is dead or was taken over.

        On another machine a folder's writer is who holds its cell; a file is written in an instant.
        """
        mark, _, rest = draft.name.removeprefix(DRAFT).partition("-")
        writer = process.of_mark(mark)
        if writer is None or writer.has_ended:
            return True
        if writer.is_here:
            return False
        if not draft.is_dir():
            return _age(draft) > DRAFT_SECONDS
        holder = self.claimed(rest.partition("-")[0])
        return holder is None or holder.process.mark != mark

    def fail(self, key: str, what: dict[str, Any]) -> None:
        """Write one failed attempt at `key`, beside the records."""
        heart.check(self.claims, key)
        self.failed.mkdir(parents=True, exist_ok=True)
        number = next(n for n in itertools.count() if _failure(self._failure_file(key, n)) is None)
        body = {"train_key": key, "time": time.time()} | what
        write(self._failure_file(key, number), json.dumps(body, indent=1).encode())

    def failures(self, key: str) -> list[dict[str, Any]]:
        """Return the failed attempts at `key`, oldest first."""
        return [found for path in self._failure_files(key) if (found := _failure(path))]

    def _failure_file(self, key: str, number: int) -> Path:
        return self.failed / f"{key}-{number}.json"

    def _failure_files(self, key: str) -> list[Path]:
        """Return the files of failed attempts at `key`, by name: a listing would be of all keys."""
        files = (self._failure_file(key, number) for number in itertools.count())
        return list(itertools.takewhile(os.path.lexists, files))

    def attempted(self) -> dict[str, int]:
        """Return how many files of failed attempts each key has, from one listing of the folder."""
        try:
            names = os.listdir(self.failed)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return Counter(n.rpartition("-")[0] for n in names if n.endswith(".json") and n[0] != ".")

    def given_up(self, key: str) -> dict[str, Any] | None:
        """Return the failure because of which `key` is not tried again, or None.

        After an error a cell is tried again only on request. A kill, or the loss of a GPU, says
        nothing about the cell until it has happened `MAX_KILLS` times at the same place.
        """
        attempts = self.failures(key)
        errors = [f for f in attempts if f["kind"] not in RETRIED]
        if errors:
            return errors[-1]
        places = Counter((f["kind"], f.get("place")) for f in attempts)
        return attempts[-1] if max(places.values(), default=0) >= MAX_KILLS else None

    def clear_failures(self, key: str) -> None:
        """Remove the failed attempts at `key` and at its scores, so that they are tried again."""
        for path in self._failure_files(key):
            path.unlink(missing_ok=True)
        record = self.record(key)
        if record and record.get("unscored"):
            lost = {one["score_key"] for one in record["unscored"]}
            left = [known for known in record["score_keys"] if known not in lost]
            changed = record | {"unscored": [], "score_keys": left}
            self.amend(key, changed)


def _failure(path: Path) -> dict[str, Any] | None:
    """Return what a file says of a failed attempt; None where it is damaged and says nothing."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    parts = ("kind", "error", "train_key")
    whole = isinstance(found, dict) and all(isinstance(found.get(part), str) for part in parts)
    return found if whole else None


def _killed(dead: Holder, how: str, log: list[str]) -> dict[str, Any]:
    """Return the failure of an attempt whose process died."""
    place = f" at {dead.place}" if dead.place else ""
    text = f"the worker was killed{place}{f' ({how})' if how else ''}"
    return {"kind": "killed", "error": text, "place": dead.place, "log": log}


def _age(path: Path) -> float:
    """Return how old a file is, in seconds of the file system's own clock."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=DRAFT) as new:
        try:
            return os.stat(new.name).st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)


def _seal(draft: Path) -> None:
    """Write into the record in `draft` what its files are, and give these the user's umask."""
    open_up(draft)
    record = json.loads((draft / RECORD).read_text())
    write(draft / RECORD, text(seal.sealed(record, draft)), durable=False)


@contextlib.contextmanager
def _draft(parent: Path, key: str) -> Iterator[Path]:
    """Give a new folder in `parent` whose name tells its writer; it is removed at the end."""
    draft = draft_of(parent / f"{key}-{secrets.token_hex(4)}")
    draft.mkdir()  # under the user's umask
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush(draft: Path) -> None:
    """Flush `draft` to the disk; what has a second link `keep_trained` has flushed already."""
    for file in draft.rglob("*"):
        if file.is_dir() or file.stat().st_nlink == 1:
            sync(file)
    sync(draft)

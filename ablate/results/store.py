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
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.results import drafts, failures, heart, leases, seal, trained
from ablate.results.files import DRAFT, copy, link, put_back, set_aside, swap, sync, write
from ablate.results.leases import Holder
from ablate.results.log import LOG, last_lines, say
from ablate.results.record import RECORD, text, upgraded

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
            UserError: the folder cannot be written, or lies among the records of another.
        """
        place = self.out.resolve()
        for cells in (place, *place.parents):
            if cells.name == "cells" and (cells.parent / "designs").is_dir():
                raise UserError(
                    f"out={self.out}: lies among the records of {cells.parent}; give that folder, "
                    "or another one"
                )
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
                if drafts.is_abandoned(draft, self.claims):
                    drafts.remove(draft)
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
        with drafts.new(self.cells, key) as draft:
            if self.is_trained(key):
                trained.go_on(self.trained, key, draft, damaged=self.damaged)
            yield draft
            drafts.finish(draft)
            heart.check(self.claims, key)
            self._settle(draft, key)
        self._forget(key)

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
        with drafts.new(self.cells, key) as draft:
            copy(folder, draft)
            drafts.finish(draft)
            self._settle(draft, key)

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """Give an empty folder, which is removed at the end; `keep_trained` keeps what it holds."""
        self.trained.mkdir(exist_ok=True)
        with drafts.new(self.trained, key) as draft:
            yield draft

    def keep_trained(self, key: str, draft: Path) -> None:
        """Keep what `draft` holds, whole or not at all, for the attempts to come.

        Files are shared with the draft: replace one to change it.
        """
        trained.keep(self.trained, key, draft, claims=self.claims)

    def is_trained(self, key: str) -> bool:
        """Return whether an attempt at `key` ended after training and before its record."""
        return (self.trained / key).exists()

    def checkpoints(self, key: str) -> Path:
        """Return the folder of the checkpoints of `key`, which its record makes needless."""
        return self.checkpointed / key

    def _forget(self, key: str) -> None:
        """Remove what `keep_trained` kept, in one step, and checkpoints."""
        shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        trained.forget(self.trained, key)

    @contextlib.contextmanager
    def amending(self, key: str) -> Iterator[Path]:
        """Give a folder with the files of the record of `key`, which it replaces at the end.

        That is one step: readers find the old record or the new one. Files are shared with the old
        record: replace one to change it. If the block raises, the old record stays.
        """
        with drafts.new(self.cells, key) as draft:
            link(self.folder(key), draft)
            if (draft / LOG).is_dir():  # in place of the log
                shutil.rmtree(draft / LOG)
            yield draft
            drafts.finish(draft)
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
        return leases.living(self.claims, key)

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
            left = drafts.of((self.cells, self.trained), key, dead.process.mark)
            if sweep and dead.sweep == sweep and self.record(key) is None:
                log = [line for draft in left for line in last_lines(draft)]
                self.fail(key, failures.killed(dead, how, log))
            for draft in left:
                drafts.remove(draft)
        return True

    def reap_all(self, *, sweep: str = "", how: str = "") -> None:
        """Reap every cell whose holder is dead."""
        for found in leases.holders(self.claims):
            self.reap(found.key, sweep=sweep, how=how)

    def fail(self, key: str, what: Mapping[str, Any]) -> None:
        """Write one failed attempt at `key`, beside the records."""
        heart.check(self.claims, key)
        failures.add(self.failed, key, what)

    def failures(self, key: str) -> list[dict[str, Any]]:
        """Return the failed attempts at `key`, oldest first."""
        return failures.of(self.failed, key)

    def attempted(self) -> dict[str, int]:
        """Return how many files of failed attempts each key has, from one listing of the folder."""
        return failures.attempted(self.failed)

    def given_up(self, key: str) -> dict[str, Any] | None:
        """Return the failure because of which `key` is not tried again, or None."""
        return failures.given_up(self.failures(key))

    def clear_failures(self, key: str) -> None:
        """Remove the failed attempts at `key` and at its scores, so that they are tried again."""
        failures.clear(self.failed, key)
        record = self.record(key)
        if record and record.get("unscored"):
            lost = {one["score_key"] for one in record["unscored"]}
            left = [known for known in record["score_keys"] if known not in lost]
            changed = record | {"unscored": [], "score_keys": left}
            self.amend(key, changed)

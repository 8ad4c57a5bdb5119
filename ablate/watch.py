"""Observes a sweep from beside: how far it is, and whether all that it tries fails alike."""

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ablate.experiment.design import Design
from ablate.results.failures import RETRIED
from ablate.results.record import RECORD
from ablate.results.store import Store

POLL_SECONDS = 0.5


class Watch:
    """Observes a sweep and shows nothing; `ablate.progress.Shown` draws."""

    stop_after: int | None = None  # runs that fail alike, where none was trained, until it stops
    stopped = ""  # why the sweep is to stop

    def over(self, store: Store, plan: Design) -> "Watch":
        """Return the context in which the sweep is observed."""
        self.store, self.plan = store, plan
        self.bundles: Sequence[Path] = ()
        self._before: frozenset[str] | None = None
        self._told: set[tuple[str, int]] | None = None  # attempts that were interrupted
        self._recorded: set[str] = set()
        self._given_up: dict[tuple[str, int], bool] = {}  # by key and number of attempts
        return self

    def __enter__(self) -> "Watch":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.close()

    def _poll(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a file system that is away for a moment
                self._look()
            if self._stop.wait(POLL_SECONDS):
                return

    def _look(self) -> None:
        keys = list(self.plan.runs)
        done = self._done(keys)
        tried = {key: n for key, n in self.store.attempted().items() if key in self.plan.runs}
        fresh = tried.items() - self._given_up.keys()
        known = {mark: it for mark, it in self._given_up.items() if mark in tried.items()}
        self._given_up = known | {mark: self.store.given_up(mark[0]) is not None for mark in fresh}
        failed = [key for key in keys if key in tried and self._given_up[key, tried[key]]]
        changed = [key for key in keys if (key, tried.get(key)) in fresh]
        for line in self._interrupted(changed):
            self.tell(line)
        self.show(done, failed, len(keys))
        if self._before is None:
            self._before = frozenset([*done, *failed])
        trained = [key for key in done if not self.plan.runs[key][0].cell.is_base]
        if self.stop_after and not set(trained) - self._before and not self.stopped:
            self._judge([key for key in failed if key not in self._before])

    def _done(self, keys: Sequence[str]) -> list[str]:
        """Return the runs that are recorded; a look costs what is new, not what is there."""
        present = self.plan.runs.keys() & set(self.store.present())
        self._recorded &= present
        for key in present - self._recorded:
            if (self.store.folder(key) / RECORD).exists():
                self._recorded.add(key)
        return [key for key in keys if key in self._recorded]

    def _interrupted(self, tried: Sequence[str]) -> Iterator[str]:
        """Yield a line for each attempt that ended since, and not by an error of the cell.

        `tried` are the runs with other attempts than at the last look.
        """
        found = {
            (key, number): str(failure["error"])
            for key in tried
            for number, failure in enumerate(self.store.failures(key))
            if failure["kind"] in RETRIED
        }
        known, self._told = self._told, {*(self._told or ()), *found}
        if known is None:  # of earlier sweeps
            return
        for (key, number), error in found.items():
            if (key, number) not in known:
                given_up = self.store.given_up(key)
                yield f"{key}: {error}; {'it counts as failed' if given_up else 'tried again'}"

    def _judge(self, failed: Sequence[str]) -> None:
        """Stop the sweep where the first runs to end have all failed alike."""
        failures = [f for key in failed if (f := self.store.given_up(key))]
        if self.stop_after and len(failures) >= self.stop_after and alike(failures):
            self.stopped = (
                f"the first {len(failures)} runs failed alike: {failures[0]['error']}; when that "
                "is mended --retry-failed tries them again, stop_after=null tries all"
            )
            self.end()

    def end(self) -> None:
        """Take the work that is handed out back: a worker ends where its bundle is gone."""
        for bundle in self.bundles:
            bundle.unlink(missing_ok=True)

    def show(self, done: Sequence[str], failed: Sequence[str], total: int) -> None:
        """Show how far the sweep is: the keys of runs that ended, and how many there are."""

    def tell(self, line: str) -> None:
        """Show a line."""

    def close(self) -> None:
        """Show nothing more."""


def alike(failures: Iterable[dict[str, Any]]) -> bool:
    """Return whether failures are of one kind and text, numbers apart.

    A loss that is not finite is what a cell of a grid of rates may well come to: it is never alike.
    """
    marks = {(f["kind"], re.sub(r"[0-9a-f]{8,}|\d+", "#", str(f["error"]))) for f in failures}
    return len(marks) == 1 and not any(kind == "diverged" for kind, _ in marks)

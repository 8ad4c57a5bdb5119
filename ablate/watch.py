"""Observes a sweep from beside: how far it is, and whether all that it tries fails alike.

A look costs what is new: listings of three folders, the leases of what is under way, and the files
of what has ended since. It only reads, so it may be of a folder that another machine fills.
"""

import contextlib
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.experiment.design import Design
from ablate.results import leases
from ablate.results.failures import RETRIED
from ablate.results.leases import Holder
from ablate.results.record import RECORD
from ablate.results.store import Store

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a sweep is: keys of its runs."""

    done: Sequence[str]
    failed: Sequence[str]
    total: int
    running: Mapping[str, Holder]  # who carries them out
    leaders: Sequence[Holder] = ()  # of the sweeps whose workers do


class Observer:
    """Looks at some runs of a folder of results; each look costs what is new since the last."""

    def __init__(self, store: Store, keys: Collection[str]) -> None:
        """Observe the runs `keys`, in their order."""
        self.store, self.keys = store, dict.fromkeys(keys)
        self.tried: dict[str, int] = {}  # of each run, attempts that failed
        self.changed: list[str] = []  # runs with other such attempts than at the last look
        self._recorded: set[str] = set()
        self._given_up: dict[tuple[str, int], bool] = {}  # by key and number of attempts

    def __call__(self) -> Seen:
        """Return what is seen."""
        done = self._done()
        self.tried = {key: n for key, n in self.store.attempted().items() if key in self.keys}
        fresh = self.tried.items() - self._given_up.keys()
        known = {mark: it for mark, it in self._given_up.items() if mark in self.tried.items()}
        self._given_up = known | {mark: self.store.given_up(mark[0]) is not None for mark in fresh}
        tried = [key for key in self.keys if key in self.tried] if self.tried else []
        given_up = [key for key in tried if self._given_up[key, self.tried[key]]]
        failed = [key for key in given_up if key not in self._recorded]
        self.changed = [key for key in tried if (key, self.tried[key]) in fresh]
        claims = self.store.claims
        alive = [one for one in leases.holders(claims) if not leases.is_dead(claims, one)]
        running = {one.key: one for one in alive if one.key in self.keys}
        leaders = [one for one in alive if one.key.startswith(leases.LEADER)]
        return Seen(done, failed, len(self.keys), running, leaders)

    def _done(self) -> list[str]:
        present = self.keys.keys() & set(self.store.present())
        self._recorded &= present
        for key in present - self._recorded:
            if (self.store.folder(key) / RECORD).exists():
                self._recorded.add(key)
        return [key for key in self.keys if key in self._recorded]


class Watch:
    """Observes a sweep and shows nothing; `ablate.progress.Shown` draws."""

    stop_after: int | None = None  # runs that fail alike, where none was trained, until it stops
    stopped = ""  # why the sweep is to stop

    def over(self, store: Store, plan: Design) -> "Watch":
        """Return the context in which the sweep is observed."""
        self.store, self.plan = store, plan
        self.bundles: Mapping[Path, Sequence[str]] = {}  # files, and the runs that each hands out
        self.observer = Observer(store, plan.runs)
        self._before: frozenset[str] | None = None
        self._told: set[tuple[str, int]] | None = None  # attempts that were told
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
        seen = self.observer()
        for line in self._ended_badly(self.observer.changed):
            self.tell(line)
        self.show(seen)
        if self._before is None:
            self._before = frozenset([*seen.done, *seen.failed])
        trained = [key for key in seen.done if not self.plan.runs[key][0].cell.is_base]
        if self.stop_after and not set(trained) - self._before and not self.stopped:
            self._judge([key for key in seen.failed if key not in self._before])

    def _ended_badly(self, tried: Sequence[str]) -> Iterator[str]:
        """Yield a line for each attempt that failed since.

        `tried` are the runs with other attempts than at the last look.
        """
        found = {
            (key, number): failure
            for key in tried
            for number, failure in enumerate(self.store.failures(key))
        }
        known, self._told = self._told, {*(self._told or ()), *found}
        if known is None:  # of earlier sweeps
            return
        for (key, number), failure in found.items():
            if (key, number) not in known:
                what = ""
                if failure["kind"] in RETRIED:
                    given_up = self.store.given_up(key)
                    what = "; it counts as failed" if given_up else "; tried again"
                where = f"{self.store.failed}/{key}-{number}.json"
                error = " ".join(str(failure["error"]).split())
                yield f"failed: {self.name(key)}: {error}{what}; traceback and log in {where}"

    def name(self, key: str) -> str:
        """Return what a run is called."""
        return key

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

    def show(self, seen: Seen) -> None:
        """Show how far the sweep is."""

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

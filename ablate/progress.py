"""The progress of a sweep: what is under way and the time left, estimated as it goes."""

import time
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from ablate.experiment.aliases import cell_name
from ablate.experiment.pace import ended, process_of
from ablate.experiment.time_left import Expected, HowFar, TimeLeft
from ablate.live import View
from ablate.results import heart, leases
from ablate.results.leases import Holder
from ablate.results.process import here
from ablate.terminal import duration
from ablate.watch import Seen, Watch

SCORING = ("scoring", "the record")  # what a lease says of a run that is trained
ESTIMATE_SECONDS = 2.0  # between two estimates of the time left


class Shown(Watch):
    """Shows a sweep's progress."""

    def __init__(
        self,
        console: Console,
        expected: Mapping[str, Expected] | None = None,
        *,
        workers: int = 1,
        start_seconds: float = 0.0,
        basis: str = "",
    ) -> None:
        """Draw on `console`.

        Args:
            console: the terminal.
            expected: what runs are expected to take, by key.
            workers: how many are at work at once.
            start_seconds: that a worker takes to start.
            basis: what the expected times are from, in words.
        """
        self.view = View(console, self.name)
        self.time_left = TimeLeft(expected or {}, workers, start_seconds)
        self.basis = basis
        self._first: frozenset[str] | None = None
        self._known: set[str] = set()  # runs that ended, of which is noted what they took
        self._ends: dict[object, float] = {}  # when a process ended its last run
        self._places = Places()
        self._estimated = float("-inf")
        self._began = float("inf")  # when it was first looked at: the workers start then
        self._note, self._left = "", dict[str, float]()

    def name(self, key: str) -> str:
        """Return the levels of a run that vary in the grid, and its key."""
        return f"{cell_name(self.plan.runs[key][0])} {key}"

    def show(self, seen: Seen) -> None:
        """Draw what is seen, with the time left."""
        now = time.monotonic()
        self._began = min(self._began, now)
        if self._first is None:
            self._first = frozenset([*seen.done, *seen.failed])
        ended_now = self._measure(seen)
        if ended_now or now - self._estimated >= ESTIMATE_SECONDS:
            self._estimated = now
            self._estimate(seen)
        self.view.show(seen, self._note, self._left)

    def _measure(self, seen: Seen) -> bool:
        """Note what the runs took that have ended since; return whether any has."""
        first = self._first or frozenset()
        new = [key for key in seen.done if key not in first]
        fresh = [key for key in new if key not in self._known]
        for record in sorted(filter(None, map(self.store.record, fresh)), key=ended):
            costs, process = record["costs"], process_of(record)
            train, score = costs.get("train_seconds") or 0.0, costs.get("eval_seconds") or 0.0
            since = self._ends.get(process)
            rest = None if since is None else ended(record) - since - train - score
            self.time_left.took(
                record["train_key"], train, score, rest if rest and rest > 0 else None
            )
            self._ends[process] = ended(record)
        self._known.update(fresh)
        return bool(fresh)

    def _estimate(self, seen: Seen) -> None:
        running = {key: self._places.underway(key, one) for key, one in seen.running.items()}
        ended_runs = {*seen.done, *seen.failed}
        given = [[k for k in keys if k not in ended_runs] for keys in self.bundles.values()]
        handed = {key for keys in given for key in keys}
        others = [k for k in self.plan.runs if k not in ended_runs and k not in handed]
        for keys in given:
            beside = [key for key in keys if key in running]
            running |= {key: replace(running[key], lanes=len(beside)) for key in beside}
        bundles = [*filter(None, given), *([key] for key in others)]
        left = self.time_left.left(bundles, running, waited=self._estimated - self._began)
        each = self.time_left.of_runs(list(running), running)
        self._left = {key: train + rest for key, (train, rest) in each.items()}
        self._note = ""
        if len(ended_runs) < seen.total:
            known = self.time_left.knows or any(one.train_seconds for one in running.values())
            told = "" if known or not self.basis else f" (from {self.basis})"
            self._note = f", about {duration(left)} left{told}"
        # For `ablate status --watch`: it is written with the next beat of this sweep's own lease.
        facts = {"left": left, "done": float(len(seen.done)), "total": float(seen.total)}
        heart.note(self.store.claims, leases.leader_key(here()), facts)

    def tell(self, line: str) -> None:
        """Print a line above what is drawn."""
        self.view.tell(line)

    def close(self) -> None:
        """Stop drawing; the bar stays."""
        self.view.close()


class Places:
    """Where runs are, and since when that is seen."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}

    def underway(self, key: str, one: Holder) -> HowFar:
        """Return how far a run is, from what its lease says now."""
        now, mark = time.monotonic(), (one.process.mark, one.place)
        if self._seen.get(key, (None, 0.0))[0] != mark:
            self._seen[key] = (mark, now)
        waited = now - self._seen[key][1]
        step, of = one.facts.get("step"), one.facts.get("of")
        if step and of:
            pace = one.facts.get("step_seconds")
            return HowFar(step / of, pace * of if pace else None, waited=waited)
        return HowFar(scoring=one.place in SCORING, waited=waited)

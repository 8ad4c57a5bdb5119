"""Follows a folder of results that other processes or machines fill; it only reads."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from ablate.errors import UserError
from ablate.experiment.design import names
from ablate.experiment.time_left import HowFar
from ablate.live import View
from ablate.progress import Places
from ablate.results.store import Store
from ablate.terminal import duration
from ablate.watch import Observer, Seen

RECORDS = 20  # of runs that ended, whose scoring says how long that of others takes


class Following:
    """Shows how far the sweeps in a folder are, a look at a time."""

    def __init__(self, out: Path, console: Console, *, every: float) -> None:
        """Follow `out`.

        Args:
            out: the folder of results.
            console: where it is shown.
            every: seconds between two lines, where that is no terminal.

        Raises:
            UserError: no sweep was started there.
        """
        self.out, self.store = out, Store(out)
        self._designs: object = None
        self._named: dict[str, str] = {}
        self._known: set[str] | None = None  # of the runs that ended
        self._told: set[str] | None = None  # of those that failed
        self._scoring: list[float] = []
        self._places = Places()
        self.view = View(console, lambda key: self._named[key], every=every)
        self._name()

    def __enter__(self) -> "Following":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, trace: TracebackType | None
    ) -> None:
        self.view.close()

    def look(self) -> bool:
        """Show what is to be seen now; return whether any run has not ended."""
        self._name()
        seen = self._look()
        self._read(seen)
        for key in seen.failed:
            if self._told is not None and key not in self._told:
                error = (self.store.given_up(key) or {}).get("error", "")
                self.view.tell(f"failed: {self._named[key]}: {' '.join(str(error).split())}")
        self._told = set(seen.failed)
        self.view.show(seen, self._note(seen), self._left(seen))
        return len(seen.done) + len(seen.failed) < seen.total

    def _name(self) -> None:
        """Read the names of the runs, where a sweep has written others."""
        files = sorted((self.out / "designs").glob("*.json"))
        mark = [(path.name, path.stat().st_mtime_ns) for path in files]
        if mark == self._designs:
            return
        self._designs = mark
        found = {name["train_key"]: name["levels"] for name in reversed(names(self.out))}
        if not found:
            raise UserError(f"{self.out}: no sweep was started here, or its designs are damaged")
        vary = _varying(list(found.values()))
        self._named = {
            key: f"{' '.join(f'{k}={levels.get(k)}' for k in vary)} {key}".strip()
            for key, levels in found.items()
        }
        self._look = Observer(self.store, self._named)

    def _read(self, seen: Seen) -> None:
        """Read how long the scoring of the runs took that ended last."""
        done = set(seen.done)
        new = done - (self._known or set())
        fresh = sorted(new) if self._known is not None else self.store.newest(RECORDS)
        for record in filter(None, map(self.store.record, fresh[:RECORDS])):
            self._scoring.append(float(record["costs"].get("eval_seconds") or 0.0))
        del self._scoring[:-RECORDS]
        self._known = done

    def _left(self, seen: Seen) -> dict[str, float]:
        """Return the seconds left of the runs that say how far they are."""
        left: dict[str, float] = {}
        scoring = statistics.median(self._scoring) if self._scoring else 0.0
        for key, one in seen.running.items():
            how: HowFar = self._places.underway(key, one)
            if how.scoring and self._scoring:
                left[key] = max(0.0, scoring - how.waited)
            elif how.train_seconds is not None:
                left[key] = how.train_seconds * (1 - how.share) + scoring
        return left

    def _note(self, seen: Seen) -> str:
        """Return what the sweeps that are at work say of their time left."""
        if len(seen.done) + len(seen.failed) == seen.total:
            return ""
        told: list[Any] = [one.facts.get("left") for one in seen.leaders]
        known = [left for left in told if left is not None]
        if known:
            return f", about {duration(max(known))} left"
        return "" if seen.leaders or seen.running else ", no sweep is at work here"


def _varying(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the factors that have more than one level."""
    factors = dict.fromkeys(key for own in levels for key in own)
    return [key for key in factors if len({repr(own.get(key)) for own in levels}) > 1]

"""The progress of a sweep: a bar with time left on a terminal, lines elsewhere."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ablate.terminal import duration
from ablate.watch import Watch

LINE_SECONDS = 30.0  # between two lines where the output is not a terminal


class Shown(Watch):
    """Shows a sweep's progress; time left is estimated from the runs done so far."""

    def __init__(
        self, console: Console, seconds: Mapping[str, float] | None = None, *, workers: int = 1
    ) -> None:
        """Draw on `console`.

        Args:
            console: the terminal.
            seconds: that runs are expected to take, by key; only their ratios count.
            workers: runs that are under way at once.
        """
        self.console, self.seconds, self.workers = console, seconds or {}, workers
        self.started = time.monotonic()
        self.first: frozenset[str] | None = None
        self.said = float("-inf")
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.task = self.bar.add_task("cells", total=None, note="")

    def show(self, done: Sequence[str], failed: Sequence[str], total: int) -> None:
        """Draw the bar or, every LINE_SECONDS, print a line."""
        self.first = frozenset(done) if self.first is None else self.first
        note = self._note(done, failed)
        if self.console.is_terminal:
            self.bar.start()
            self.bar.update(self.task, completed=len(done), total=total, note=note)
        elif time.monotonic() - self.said > LINE_SECONDS and len(done) < total:
            self.said = time.monotonic()
            self.console.print(f"{len(done)}/{total} cells{note}")

    def _note(self, done: Sequence[str], failed: Sequence[str]) -> str:
        left = self.left(done, failed, spent=time.monotonic() - self.started)
        told = "" if left is None else f", about {duration(left)} left"
        return (f", {len(failed)} failed" if failed else "") + told

    def left(self, done: Sequence[str], failed: Sequence[str], *, spent: float) -> float | None:
        """Return the seconds left after `spent`; None before a run is done.

        Runs count by the time that they are expected to take; those under way are half done.
        """
        new = [key for key in done if key not in (self.first or ())]
        if not new:
            return None
        keys = [named for named in self.plan.runs if named not in {*done, *failed}]
        remaining = sum(map(self._expected, keys))
        half = remaining / len(keys) * min(self.workers, len(keys)) / 2 if keys else 0.0
        return (remaining - half) * spent / (sum(map(self._expected, new)) + half)

    def _expected(self, key: str) -> float:
        usual = sum(self.seconds.values()) / len(self.seconds) if self.seconds else 1.0
        return self.seconds.get(key, usual)

    def close(self) -> None:
        """Stop redrawing; the bar stays."""
        self.bar.stop()

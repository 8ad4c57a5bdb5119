"""The progress of a sweep: a bar with time left on a terminal, lines elsewhere."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Console

from ablate.terminal import bar, duration
from ablate.watch import Watch

SILENT_SECONDS = 10.0  # without a run that ended
LINE_SECONDS = 30.0  # between two lines where the output is not a terminal


class Shown(Watch):
    """Shows a sweep's progress; time left is estimated from the runs done so far."""

    def __init__(
        self,
        console: Console,
        seconds: Mapping[str, float] | None = None,
        *,
        workers: int = 1,
        beside: Sequence[Sequence[str]] = (),
    ) -> None:
        """Draw on `console`.

        Args:
            console: the terminal.
            seconds: that runs are expected to take, by key; only their ratios count.
            workers: how many are at work at once.
            beside: the keys of runs that a worker trains side by side, which end together.
        """
        self.group = {key: number for number, keys in enumerate(beside) for key in keys}
        self.console, self.seconds, self.workers = console, seconds or {}, workers
        self.usual = sum(self.seconds.values()) / len(self.seconds) if self.seconds else 1.0
        self.started = time.monotonic()
        self.first: frozenset[str] | None = None
        self.said = float("-inf")
        self.bar = bar(console)
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
        spent = time.monotonic() - self.started
        left = self.left(done, failed, spent=spent)
        told = "" if left is None else f", about {duration(left)} left"
        if left is None and spent > SILENT_SECONDS:
            told = f", workers began {duration(spent)} ago, no run has ended yet"
        return (f", {len(failed)} failed" if failed else "") + told

    def left(self, done: Sequence[str], failed: Sequence[str], *, spent: float) -> float | None:
        """Return the seconds left after `spent`; None before a run is done.

        Runs count by the time that they are expected to take; those under way are half done. Runs
        that train side by side are under way together, and about to end once one of them has.
        """
        new = [key for key in done if key not in (self.first or ())]
        if not new:
            return None
        begun = {self.group[key] for key in (*new, *failed) if key in self.group}
        left: dict[int | str, float] = {}  # of every run, or runs side by side, not yet ended
        ending = 0.0
        ended = {*done, *failed}
        for key in self.plan.runs:
            group = self.group.get(key)
            if key in ended:
                continue
            if group in begun:
                ending += self._expected(key)
            else:
                name = key if group is None else group
                left[name] = left.get(name, 0.0) + self._expected(key)
        remaining = sum(left.values())
        half = remaining / len(left) * min(self.workers, len(left)) / 2 if left else 0.0
        return (remaining - half) * spent / (sum(map(self._expected, new)) + ending + half)

    def _expected(self, key: str) -> float:
        return self.seconds.get(key, self.usual)

    def tell(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Stop redrawing; the bar stays."""
        self.bar.stop()

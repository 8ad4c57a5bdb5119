"""The progress of a sweep: a bar with time left on a terminal, lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ablate.sweep import Watch
from ablate.terminal import duration

LINE_SECONDS = 30.0  # between two lines where the output is not a terminal


class Shown(Watch):
    """Shows a sweep's progress; time left is estimated from the cells done so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.first: int | None = None
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

    def show(self, done: int, failed: int, total: int) -> None:
        """Draw the bar or, every LINE_SECONDS, print a line."""
        self.first = done if self.first is None else self.first
        note = self._note(done, failed, total)
        if self.console.is_terminal:
            self.bar.start()
            self.bar.update(self.task, completed=done, total=total, note=note)
        elif time.monotonic() - self.said > LINE_SECONDS and done < total:
            self.said = time.monotonic()
            self.console.print(f"{done}/{total} cells{note}")

    def _note(self, done: int, failed: int, total: int) -> str:
        new = done - (self.first or 0)
        spent = time.monotonic() - self.started
        left = f", about {duration(spent / new * (total - done - failed))} left" if new else ""
        return (f", {failed} failed" if failed else "") + left

    def close(self) -> None:
        """Stop redrawing; the bar stays."""
        self.bar.stop()

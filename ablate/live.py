"""What is seen of a sweep while it runs: a region of a terminal drawn anew, lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ablate.results.leases import Holder
from ablate.terminal import bar, duration
from ablate.watch import Seen

LINE_SECONDS = 30.0  # between two lines where the output is not a terminal
ROWS = 12  # runs under way that are shown
STILL = 10  # times as long between them where nothing changed
STILL_SECONDS = 120.0  # without a run that ended or a step that was taken, until that is told


class View:
    """Draws how far a sweep is on a terminal; elsewhere prints a line where something changed."""

    def __init__(
        self,
        console: Console,
        name: Callable[[str], str],
        *,
        every: float = LINE_SECONDS,
    ) -> None:
        """Draw on `console`.

        Args:
            console: the terminal, or what stands for it.
            name: from the key of a run to what it is called.
            every: seconds between two lines, where there is no terminal.
        """
        self.console, self.name, self.every = console, name, every
        self._bar = bar(console)
        self._task = self._bar.add_task("cells", total=None, note="")
        self._live = Live(console=console, auto_refresh=False)
        self._said = float("-inf")
        self._last: object = None
        self._line: object = None  # what was seen when the last line was printed
        self._moved = time.monotonic()

    def __enter__(self) -> "View":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, seen: Seen, note: str, left: Mapping[str, float] | None = None) -> None:
        """Show how far the sweep is.

        Args:
            seen: what was seen of it.
            note: its time left, in words.
            left: of runs under way, the seconds left.
        """
        now = time.monotonic()
        steps = {key: (one.place, one.facts.get("step")) for key, one in seen.running.items()}
        mark = (len(seen.done), len(seen.failed), steps)
        if mark != self._last:
            self._last, self._moved = mark, now
        told = _failed(seen) + _speed(seen) + note + self._still(seen, now)
        if self.console.is_terminal:
            self._bar.update(self._task, completed=len(seen.done), total=seen.total, note=told[2:])
            self._live.start()
            self._live.update(Group(self._table(seen, left or {}), self._bar), refresh=True)
        elif len(seen.done) < seen.total:
            wait = self.every if mark != self._line else STILL * self.every
            if now - self._said >= wait and not (mark == self._line and not wait):
                self._said, self._line = now, mark
                self.tell(f"{len(seen.done)}/{seen.total} cells{told}")

    def _still(self, seen: Seen, now: float) -> str:
        still = now - self._moved
        if still < STILL_SECONDS or len(seen.done) == seen.total:
            return ""
        return f", nothing has moved for {duration(still)}"

    def _table(self, seen: Seen, left: Mapping[str, float]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        if not seen.running:
            return table
        table.add_column("under way", no_wrap=True, overflow="ellipsis", ratio=1)
        for head in ("at", "loss", "tokens/s", "left"):
            table.add_column(head, no_wrap=True, justify="right")
        shown = list(seen.running.items())
        for key, one in shown[:ROWS]:
            table.add_row(Text(self.name(key)), *map(escape, _row(one, left.get(key))))
        if len(shown) > ROWS:
            table.add_row(f"and {len(shown) - ROWS} more")
        return table

    def tell(self, line: str) -> None:
        """Print a line above what is drawn."""
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Stop drawing; the bar stays."""
        if self._live.is_started:
            self._live.update(self._bar, refresh=True)
            self._live.stop()


def _row(one: Holder, left: float | None) -> tuple[str, str, str, str]:
    loss, speed = one.facts.get("loss"), one.facts.get("tokens_per_second")
    return (
        one.place,
        "" if loss is None else f"{loss:.3f}",
        "" if speed is None else f"{speed:,.0f}",
        "" if left is None else duration(left),
    )


def _failed(seen: Seen) -> str:
    return f", {len(seen.failed)} failed" if seen.failed else ""


def _speed(seen: Seen) -> str:
    speeds = [one.facts.get("tokens_per_second") for one in seen.running.values()]
    known = [speed for speed in speeds if speed is not None]
    return f", {sum(known):,.0f} tokens/s" if known else ""

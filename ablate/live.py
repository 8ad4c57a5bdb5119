"""What is seen of a sweep while it runs: a region of a terminal drawn anew, lines elsewhere."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ablate.results.leases import Holder
from ablate.terminal import bar, duration
from ablate.watch import Seen

LINE_SECONDS = 30.0  # between two lines where the output is not a terminal
HEADS = ("at", "loss", "tokens/s", "left")  # of the runs under way
GAP = 2  # characters behind a column
NAME = 24  # characters of a run's name for which columns give way, at most
TIGHT = 12  # characters from which a name is cut to what tells it from others, there
BAR = 37  # characters of the bar
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
        self._foot: RenderableType = self._bar
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
        still = self._still(seen, now)
        told = _failed(seen) + _speed(seen) + note + still
        if self.console.is_terminal:
            self._bar.update(self._task, completed=len(seen.done), total=seen.total, note=told[2:])
            self._live.start()
            self._foot = self._short(seen, note, still) or self._bar
            self._live.update(Group(self._table(seen, left or {}), self._foot), refresh=True)
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
        shown = list(seen.running.items())
        rows = [dict(zip(HEADS, _row(one, left.get(k)), strict=True)) for k, one in shown[:ROWS]]
        names = [self.name(key) for key, _ in shown[:ROWS]]
        need = min(NAME, max(map(len, _apart(names, TIGHT))))
        heads, room = _columns(rows, need, self.console.width)
        table.add_column("under way", no_wrap=True, overflow="ellipsis", ratio=1)
        for head in heads:
            table.add_column(head, no_wrap=True, justify="right")
        for name, row in zip(_apart(names, room), rows, strict=True):
            table.add_row(Text(name), *(escape(row[head]) for head in heads))
        if len(shown) > ROWS:
            table.add_row(f"and {len(shown) - ROWS} more")
        return table

    def _short(self, seen: Seen, note: str, still: str) -> Text | None:
        """Return the line in place of the bar where that is too long, the most important first."""
        told, _, basis = note.partition(" (")
        rest = [told, _failed(seen), still, _speed(seen), f" ({basis}" if basis else ""]
        count = f"{len(seen.done)}/{seen.total}"
        whole = len(f"cells {count} 0:00:00 ") + BAR
        for kept in (rest, rest[:-1], rest[:-2]):
            if whole + len(note := "".join(kept)) <= self.console.width:
                self._bar.update(self._task, note=note.removeprefix(", "))
                return None
        line = f"{count} cells"
        for part in rest:
            if len(line) + len(part) < self.console.width:
                line += part
        return Text(line, no_wrap=True, overflow="ellipsis")

    def tell(self, line: str) -> None:
        """Print a line above what is drawn."""
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Stop drawing; the bar stays."""
        if self._live.is_started:
            self._live.update(self._foot, refresh=True)
            self._live.stop()


def _columns(rows: Sequence[dict[str, str]], name: int, width: int) -> tuple[list[str], int]:
    """Return the columns that fit beside the names of runs, and the room for a name.

    A name needs `name` characters. What can be done without goes first: the speed, then the words
    of the steps, then the loss.
    """

    def room(heads: Sequence[str]) -> int:
        used = sum(max(len(h), *(len(row[h]) for row in rows)) + GAP for h in heads)
        return width - used - GAP

    heads = list(HEADS)
    for spare in ("tokens/s", "loss"):
        if room(heads) >= name:
            return heads, room(heads)
        if spare == "loss":
            for row in rows:
                row["at"] = re.sub(r"^step (\d+) of (\d+)$", r"\1/\2", row["at"])
            if room(heads) >= name:
                return heads, room(heads)
        heads.remove(spare)
    return heads, room(heads)


def _apart(names: Sequence[str], room: int) -> list[str]:
    """Return names that fit a room, or are at least shorter, and still tell the runs apart."""
    parts = [name.split(" ") for name in names]

    def fit(found: Sequence[Sequence[str]]) -> bool:
        return all(len(" ".join(own)) <= room for own in found)

    def differ(found: Sequence[Sequence[str]]) -> bool:
        return all(found) and len({tuple(own) for own in found}) == len(found)

    if not fit(parts) and differ(bare := [own[:-1] for own in parts]):
        parts = bare  # without the key
    if not fit(parts) and len(parts) > 1:
        same = set(parts[0]).intersection(*parts[1:])
        if differ(left := [[p for p in own if p not in same] for own in parts]):
            parts = left
    if not fit(parts):
        values = [[p.partition("=")[2] or p for p in own] for own in parts]
        parts = values if differ(values) else parts
    return [" ".join(own) for own in parts]


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

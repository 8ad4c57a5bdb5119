"""The terminal that verbs and sweeps print to, and how a duration is written there."""

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


class _Console(Console):
    """A console whose reader may leave."""

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on; what the command does goes on."""
        to_nowhere(sys.stdout)


CONSOLE = _Console(highlight=False)
QUIET_SECONDS = 2.0  # of work of which nothing is shown
LINE_SECONDS = 10.0  # between two lines where the output is not a terminal


def to_nowhere(stream: Any) -> None:
    """Send what is written to a stream to nowhere from now on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Unbroken:
    """A text stream whose reader may leave: what is written then goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, if anybody still reads."""
        try:
            return int(self._stream.write(text) or 0)
        except (OSError, ValueError):
            to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, if anybody still reads."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            to_nowhere(self._stream)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Run a block in which output that nobody reads is no error (`ablate sweep ... | head`)."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbroken(sys.stdout), _Unbroken(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def paragraph(console: Console, text: str, *, lead: str = "") -> None:
    """Print a text in lines no longer than the console is wide; those after the first are indented.

    Words stay whole: a path or a setting that is longer than a line can be copied.

    Args:
        console: where to.
        text: what is printed, without markup; spaces before it are before each line.
        lead: words before it, in bold.
    """
    indent = " " * (len(text) - len(text.lstrip()))
    lines = textwrap.wrap(
        f"{lead} {text}" if lead else text,
        console.width,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, line in enumerate(lines):
        shown = Text(line)
        shown.stylize("bold", 0, len(lead) if number == 0 else 0)
        console.print(shown, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return `seconds` in the unit that a reader would choose: 42 s, 12 min, 3.5 h, 1,200 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours = seconds / 3600
    if hours < 2:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


class Counting:
    """Shows on standard error how far a long piece of work is; nothing of a short one.

    A bar with the time left on a terminal, elsewhere a line every LINE_SECONDS.
    """

    def __init__(self, what: str, unit: str, total: int | None = None) -> None:
        """Count up to `total`, where it is known, of what `unit` names."""
        self.what, self.unit, self.total = what, unit, total
        self.done = 0
        self._started = time.monotonic()
        self._console = Console(file=sys.stderr, highlight=False)
        wait = QUIET_SECONDS if self._console.is_terminal else LINE_SECONDS
        self._due = self._started + wait
        self._bar: Progress | None = None

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def through(self, found: Iterable[T]) -> Iterator[T]:
        """Yield what is found, counted."""
        for number, each in enumerate(found, start=1):
            yield each
            if not number % 1024:
                self.advance(1024)

    def advance(self, count: int) -> None:
        """Count `count` more as done."""
        self.done += count
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LINE_SECONDS
        console = self._console
        if self._bar is None and console.is_terminal:
            self._bar = bar(console, transient=True)
            self._task = self._bar.add_task(escape(self.what), total=self.total, note="")
            self._bar.start()
        if self._bar:
            self._due = 0.0
            self._bar.update(self._task, completed=self.done, note=self._left())
        else:
            of = f" of {self.total:,}" if self.total else ""
            line = f"{self.what}: {self.done:,}{of} {self.unit}{self._left()}"
            console.print(line, markup=False, soft_wrap=True)

    def _left(self) -> str:
        if not self.total or not self.done:
            return ""
        spent = time.monotonic() - self._started
        return f", about {duration(spent / self.done * max(0, self.total - self.done))} left"


def bar(console: Console, *, transient: bool = False) -> "Progress":
    """Return a bar of things done, with the time that passed and a note behind it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=36),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
    )

"""The terminal that verbs and sweeps print to, and how a duration is written there."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text


class _Console(Console):
    """A console whose reader may leave."""

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on; what the command does goes on."""
        to_nowhere(sys.stdout)


CONSOLE = _Console(highlight=False)


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

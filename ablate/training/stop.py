"""A request that training stops after the step that it takes now. No torch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_asked: int | None = None  # the signal that was taken for a request


class TrainingStopped(KeyboardInterrupt):
    """Training was asked to stop, and did between two steps: an interruption, no failure."""

    def __init__(self, line: str, number: int) -> None:
        super().__init__(line)
        self.line, self.number = line, number

    @property
    def status(self) -> int:
        """The exit status of a process that ends of it."""
        return 128 + self.number


def request_stop(number: int = signal.SIGTERM) -> None:
    """Ask the training of this process to stop; a handler of the signal `number` may call it."""
    global _asked
    _asked = number


def withdraw() -> None:
    """Take a request back."""
    global _asked
    _asked = None


def stop_requested() -> bool:
    """Return whether the training of this process was asked to stop."""
    return _asked is not None


def check(line: str) -> None:
    """Stop where training was asked to.

    Raises:
        TrainingStopped: it was; `line` says where.
    """
    if _asked is not None:
        number = _asked
        withdraw()
        raise TrainingStopped(line, number)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Run a block in which the first SIGTERM or SIGUSR1 asks training to stop.

    A second one does what it did before the block. Signals that are ignored stay so, and outside
    the main thread, where no handler can be set, all do.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, frame: FrameType | None) -> None:
        request_stop(number)
        for other, handler in mine.items():
            signal.signal(other, handler)

    for number in mine:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)

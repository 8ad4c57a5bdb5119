"""A request that training stops after the step that it takes now. No torch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STATUS = 128 + signal.SIGTERM  # exit status of a process that was asked to stop

_asked = threading.Event()


class Stopped(SystemExit):
    """Training was asked to stop, and did so between two steps. No failure: nothing is lost."""

    def __init__(self, line: str) -> None:
        super().__init__(STATUS)
        self.line = line


def request_stop() -> None:
    """Ask the training of this process to stop; a handler of signals may call it."""
    _asked.set()


def stop_requested() -> bool:
    """Return whether the training of this process was asked to stop."""
    return _asked.is_set()


def check(line: str) -> None:
    """Stop where training was asked to.

    Raises:
        Stopped: it was; `line` says where.
    """
    if stop_requested():
        raise Stopped(line)


def withdraw() -> None:
    """Take a request back."""
    _asked.clear()


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Run a block in which SIGTERM and SIGUSR1 ask training to stop, the second time at once.

    A signal that the program handles already is left to it, and so are all outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _ask)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def _ask(number: int, frame: FrameType | None) -> None:
    request_stop()
    signal.signal(number, signal.SIG_DFL)

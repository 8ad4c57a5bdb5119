"""What ends work from outside: signals, and the end of the process that it is done for.

An interruption is no failure: nothing is recorded of it, and the same command goes on.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ablate.results import leases
from ablate.results.process import Process, here

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_SECONDS = 1.0  # between two looks at the process that the work is done for
LEAVE_SECONDS = 10.0  # from the request to stop until a process that does not is ended
STOPPED = "stopped; records are kept, the same command continues from them"


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_asked: Interrupted | None = None
_followed: set[Process] = set()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Run a block in which the first signal to stop raises Interrupted, later ones do nothing.

    A signal that the parent of this process chose to ignore (`nohup`) is ignored. Outside the main
    thread, and inside another such block, the block changes nothing.
    """
    global _asked
    main = threading.current_thread() is threading.main_thread()
    mine = [n for n in SIGNALS if main and signal.getsignal(n) not in (signal.SIG_IGN, _raise)]
    before = {number: signal.signal(number, _raise) for number in mine}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: _lost_in_del(lost, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _asked = None


def _raise(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is None:
        _asked = Interrupted(number)
        raise _asked


def _lost_in_del(lost: Any, hook: Callable[[Any], object]) -> None:
    """Say nothing of an interruption that was raised in a `__del__`; `check` raises it again."""
    if not isinstance(lost.exc_value, Interrupted):
        hook(lost)


def check() -> None:
    """Raise Interrupted where a signal came whose exception got lost in somebody's handler."""
    if _asked is not None:
        raise _asked


def told(stop: KeyboardInterrupt) -> int:
    """Return the exit status after an interruption, which is told in a line."""
    print(f"ablate: {STOPPED}", file=sys.stderr)
    return 128 + int(getattr(stop, "number", signal.SIGINT))


def follow(leader: Process, folder: Path) -> None:
    """Interrupt this process when `leader`, for which it works, ends or is no longer heard of.

    On this machine its end is seen; on another its lease in `folder` tells.
    """
    if leader != here() and leader not in _followed:
        _followed.add(leader)
        threading.Thread(target=_follow, args=(leader, folder.resolve()), daemon=True).start()


def _follow(leader: Process, folder: Path) -> None:
    key = leases.leader_key(leader)
    while not leader.has_ended:
        if not leader.is_here:
            with contextlib.suppress(OSError):
                holder = leases.holder(folder, key)
                if holder is None or leases.is_dead(folder, holder, leases.LEADER_SECONDS):
                    break
        time.sleep(LOOK_SECONDS)
    leave()


def leave() -> None:
    """Interrupt this process, from any of its threads, and end it if it does not stop itself."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGTERM)
    time.sleep(LEAVE_SECONDS)
    os._exit(128 + signal.SIGTERM)

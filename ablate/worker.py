"""A worker process of the launcher `local`: takes bundles from a pipe until it is closed.

Lines from the sweep are paths of bundles. Lines to it are JSON: {"beat"} every second, {"done"}
with a bundle's path, {"stop"} with a fault of the machine. The sweep's end closes the pipe, however
it comes about, and ends the worker.
"""

import contextlib
import json
import os
import queue
import signal
import threading
import time
from pathlib import Path
from typing import TextIO

from ablate import interrupts
from ablate.terminal import unbroken

BEAT_SECONDS = 1.0


def main(incoming: int, outgoing: int) -> None:
    """Work through the bundles that arrive on one pipe, tell so on another, and end the process."""
    bundles: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()
    orders, answers = os.fdopen(incoming), os.fdopen(outgoing, "w", buffering=1)
    threading.Thread(target=_listen, args=(orders, bundles, busy), daemon=True).start()
    threading.Thread(target=_beat, args=(answers,), daemon=True).start()
    with unbroken():
        try:
            with interrupts.raised():
                status = _serve(bundles, busy, answers)
        except KeyboardInterrupt as stop:
            status = 128 + int(getattr(stop, "number", signal.SIGINT))
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
    os._exit(status)  # at once: what torch takes apart at its end takes seconds


def _serve(bundles: "queue.Queue[str | None]", busy: threading.Event, answers: TextIO) -> int:
    from ablate.errors import Halted
    from ablate.work import work

    while (path := bundles.get()) is not None:
        busy.set()
        try:
            work(Path(path))
        except Halted as fault:
            _tell(answers, stop=str(fault))
            return 3
        _tell(answers, done=path)
        busy.clear()
    return 0


def _listen(orders: TextIO, bundles: "queue.Queue[str | None]", busy: threading.Event) -> None:
    for line in orders:
        bundles.put(line.rstrip("\n"))
    bundles.put(None)
    if busy.is_set():  # the sweep has ended and not waited for what is under way
        interrupts.leave()


def _beat(answers: TextIO) -> None:
    while True:
        _tell(answers, beat=True)
        time.sleep(BEAT_SECONDS)


def _tell(answers: TextIO, **what: object) -> None:
    with contextlib.suppress(OSError, ValueError):  # the sweep has ended
        answers.write(json.dumps(what) + "\n")

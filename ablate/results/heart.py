"""The leases that this process holds: a thread that shows it alive, and how far its work is."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ablate import interrupts
from ablate.errors import LeaseLost
from ablate.results.leases import Facts, Lease, beat_seconds

_held: dict[tuple[str, str], Lease] = {}
_lost: set[tuple[str, str]] = set()
_lock = threading.RLock()
_beating: threading.Thread | None = None
_current: tuple[str, str] | None = None
_relay: Callable[[str, Facts | None], None] | None = None


def _name(folder: Path, key: str) -> tuple[str, str]:
    return os.path.abspath(folder), key


@contextlib.contextmanager
def holding(lease: Lease) -> Iterator[None]:
    """Keep a lease alive while the block runs, then give it back."""
    global _beating
    name = _name(lease.path.parent, lease.key)
    with _lock:
        _held[name] = lease
        if _beating is None or not _beating.is_alive():
            _beating = threading.Thread(target=_beat, daemon=True)
            _beating.start()
    try:
        yield
    finally:
        with _lock:
            del _held[name]
            _lost.discard(name)
            lease.release()


def check(folder: Path, key: str) -> None:
    """Check that this process still holds the lease on `key`, if it ever did; before it writes.

    Raises:
        LeaseLost: it was stopped for so long that another process has taken the cell over.
    """
    name = _name(folder, key)
    lease = _held.get(name)
    if lease is not None and (name in _lost or not lease.held()):
        _lost.add(name)
        raise LeaseLost


def work_on(folder: Path, key: str | None) -> None:
    """Say which lease `at` speaks of from now on; None: all that are held."""
    global _current
    _current = None if key is None else _name(folder, key)


def relay(to: Callable[[str, Facts | None], None]) -> None:
    """Tell `to` too what `at` is told, in a process that works for the one with the leases."""
    global _relay
    _relay = to


def at(place: str, facts: Facts | None = None, *, key: str | None = None) -> None:
    """Say how far the work on the cell is, for who watches, or finds this process dead.

    Args:
        place: in words.
        facts: in numbers: `step`, `of`, `loss`, `tokens_per_second`, `step_seconds`.
        key: the lease that is meant, of several that are held; None: those of `work_on`.

    Raises:
        LeaseLost: another process has taken the cell over.
        Interrupted: this one was asked to stop.
    """
    interrupts.check()
    if _relay is not None:
        _relay(place, facts)
    with _lock:
        for name, lease in _held.items():
            if _current in (None, name) and key in (None, lease.key):
                if name in _lost:
                    raise LeaseLost
                lease.write(place=place, facts=facts)


def note(folder: Path, key: str, facts: Facts) -> None:
    """Say numbers with the next beat of the lease on `key`, where this process holds it."""
    with _lock:
        if lease := _held.get(_name(folder, key)):
            lease.note(facts)


def _beat() -> None:
    while True:
        time.sleep(beat_seconds())
        with _lock:
            for name, lease in _held.items():
                lease.write(beat=True)
                if not lease.held():
                    _lost.add(name)

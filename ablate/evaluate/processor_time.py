"""What a program's processes used of the processors, and how long they waited for one.

On a busy machine the clock runs on while a program waits for a processor. Linux counts that wait
(`schedstat`, its second number), so that it can be told from a program that sleeps.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROC = Path("/proc")
WITHOUT_WAITS = 6.0  # what counts as idle where waits are not counted is divided by this


@dataclass(frozen=True, slots=True)
class Used:
    """What a tree of processes has used until a moment, in seconds."""

    at: float  # on the clock
    processor: float  # user and system time, with that of ended children
    threads: dict[str, float] = field(default_factory=dict)  # running or waiting for a processor


def used(pid: int) -> Used:
    """Return what a process and those below it have used."""
    processor, threads = 0.0, {}
    for one in tree(pid):
        with contextlib.suppress(psutil.Error):
            processor += sum(psutil.Process(one).cpu_times()[:4])
        for file in _listed(PROC / str(one) / "task"):
            with contextlib.suppress(OSError, ValueError):
                ran, waited = (file / "schedstat").read_text().split()[:2]
                threads[f"{one}/{file.name}"] = (int(ran) + int(waited)) / 1e9
    return Used(time.monotonic(), processor, threads)


def idle(before: Used, after: Used) -> float:
    """Return the seconds between two moments in which no process ran or waited for a processor.

    Where the system counts no waits a sixth of the time without processor time, for it may have
    been spent waiting.
    """
    span = after.at - before.at
    ran = max(after.processor - before.processor, 0.0)
    if not after.threads:
        return max(span - ran, 0.0) / WITHOUT_WAITS
    busy = sum(max(t - before.threads.get(name, 0.0), 0.0) for name, t in after.threads.items())
    return max(span - max(busy, ran), 0.0)


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for one in found:  # grows as it is read
        found += _children(one)
    return found


def _children(pid: int) -> list[int]:
    threads = _listed(PROC / str(pid) / "task")
    if threads and not (threads[0] / "children").exists():  # a kernel without it, or it has ended
        threads = []
    if not threads:
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    found = []
    for thread in threads:
        with contextlib.suppress(OSError):
            found += [int(word) for word in (thread / "children").read_text().split()]
    return found


def _listed(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []

"""Faults of the machine: they say nothing about a cell, so the sweep stops and the cell is missing.

A full disk, a file system that is gone or may only be read, no memory for the process. Whatever
would be tried next would end like this too.
"""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

from ablate.errors import Halted

DISK = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system may only be read",
    errno.EIO: "the disk failed",
    errno.ESTALE: "the file system is gone",
    errno.ENOTCONN: "the file system is gone",
    errno.ENODEV: "the file system is gone",
    errno.ENFILE: "too many files are open on this machine",
    errno.EMFILE: "the process has too many files open",
}
MEMORY = "no memory is left on this machine"
# Texts of libraries that keep no number of the system's error.
TEXTS = {
    "no space left on device": DISK[errno.ENOSPC],
    "os error 28": DISK[errno.ENOSPC],
    "disk quota exceeded": DISK[errno.EDQUOT],
    "read-only file system": DISK[errno.EROFS],
    "stale file handle": DISK[errno.ESTALE],
    "defaultcpuallocator": MEMORY,
    "cannot allocate memory": MEMORY,
}
EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # lines "oom_kill N"


class MachineFault(Halted):
    """The machine cannot go on; the sweep stops, and the same command continues it."""

    def __init__(self, what: str, where: object = "") -> None:
        place = f" (out={where})" if where and f"{where}" not in what else ""
        super().__init__(f"{what}{place}; once it is mended the same command goes on")


def fault(error: BaseException) -> str:
    """Return what is wrong with the machine, in words; empty where `error` is no such fault."""
    for one in _causes(error):
        if isinstance(one, MemoryError) or getattr(one, "errno", None) == errno.ENOMEM:
            return MEMORY
        if isinstance(one, OSError) and one.errno in DISK:
            return f"{DISK[one.errno]}{f' ({one.filename})' if one.filename else ''}"
        if isinstance(one, OSError | RuntimeError) or type(one).__name__ == "SafetensorError":
            text = str(one).lower()
            if found := next((words for part, words in TEXTS.items() if part in text), ""):
                return found
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def killed_for_memory() -> int:
    """Return how many processes the system has killed here for want of memory, so far."""
    for file in EVENTS:
        try:
            lines = [line.split() for line in file.read_text().splitlines()]
        except OSError:
            continue
        counts = [int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill"]
        if counts:
            return counts[0]
    return 0

"""A process by name: on which machine, which process, started when; and whether it still runs.

A process id is used again, and says nothing on another machine or in another container. So a name
holds them all, and the start in ticks since the machine started, which no change of a clock moves.
"""

import functools
import os
import socket
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process on some machine."""

    host: str
    node: str  # the running system and, in a container, its own set of process ids
    pid: int
    start: str

    @property
    def mark(self) -> str:
        """A name for files: letters, digits and dots."""
        return f"{self.node}.{self.pid}.{self.start}"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to the system of this process, so that its end can be seen."""
        return self.node == node()

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended: of another system's processes that is not known."""
        return self.is_here and _start(self.pid) != self.start

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def here() -> Process:
    """Return this process."""
    return _here(os.getpid())  # a forked child is another one


@functools.cache
def _here(pid: int) -> Process:
    return of_pid(pid)


def of_pid(pid: int) -> Process:
    """Return a process of this system, as it is now."""
    return Process(socket.gethostname(), node(), pid, _start(pid))


def of_mark(mark: str) -> Process | None:
    """Return the process that a mark names, without its host; None where it is no mark."""
    parts = mark.split(".")
    if len(parts) != 3 or not parts[1].isdigit():
        return None
    return Process("", parts[0], int(parts[1]), parts[2])


@functools.cache
def node() -> str:
    """Return what tells this running system, and its set of process ids, from all others."""
    facts = [socket.gethostname()]
    for file in ("sys/kernel/random/boot_id", "self/ns/pid"):
        path = PROC / file
        try:
            facts.append(os.readlink(path) if path.is_symlink() else path.read_text())
        except OSError:  # no Linux: the host's name alone
            facts.append("")
    return sha256("\n".join(facts).encode()).hexdigest()[:12]


def _start(pid: int) -> str:
    """Return when a process started; empty where there is none, or one that has only its exit left.

    In Linux a number of ticks since the system started; elsewhere a time of day.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if PROC.joinpath("self", "stat").exists():
            return ""
    try:
        found = psutil.Process(pid)
        zombie = found.status() == psutil.STATUS_ZOMBIE
        return "" if zombie else f"{found.create_time():.0f}"
    except psutil.Error:
        return ""

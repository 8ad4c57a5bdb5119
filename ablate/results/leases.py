"""Leases: which process works on a cell, told by files that hold on a shared file system.

    OUT/claims/<key>.<n>    JSON of one size: the holder, its counter, how far it is

A lease is made under its name by one call that only one process can succeed in (`link`). Its holder
raises a counter in it every few seconds. An observer calls the holder dead where it sees that the
process has ended or, whatever machine that is on, where it watched the counter stand still for
`stale_seconds()` by its own clock; no two clocks are compared. A dead holder's lease `n` is taken
over by making `n + 1`: of several that try one succeeds, and none removes what another holds. A
holder that was stopped meanwhile finds the higher number, and gives way without writing.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.results.files import draft_of
from ablate.results.process import Process, here

SIZE = 1024  # bytes of a lease; it is written in place, so that it stays the file that was made
STALE_SECONDS = 60.0
BEATS = 12  # in the time after which a counter that stands still is stale
PLACE = 120  # characters that say how far a holder is
LEADER = "sweep-"  # with a mark: the key of a process that workers work for
LEADER_SECONDS = 25.0  # that its counter stands still, until its workers stop


Facts = Mapping[str, float | None]  # how far a holder is, in numbers


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, as its file says."""

    key: str
    number: int
    process: Process
    count: int
    place: str = ""  # how far it is
    sweep: str = ""  # the mark of the process whose sweep it works for
    since: float = 0.0  # by its own clock
    facts: Facts = field(default_factory=dict)


def leader_key(process: Process) -> str:
    """Return the key of the lease of a process that workers work for."""
    return f"{LEADER}{process.mark.replace('.', '-')}"


def stale_seconds() -> float:
    """Return for how long a counter stands still before its holder counts as dead."""
    return float(os.environ.get("ABLATE_LEASE_SECONDS") or STALE_SECONDS)


def beat_seconds() -> float:
    """Return the time between two beats of a holder."""
    return stale_seconds() / BEATS


class Lease:
    """A lease that this process holds."""

    def __init__(self, path: Path, descriptor: int, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self._descriptor = descriptor
        self.key, self._number = _split(path.name)

    def write(
        self, *, place: str | None = None, facts: Facts | None = None, beat: bool = False
    ) -> None:
        """Say how far this process is and, with `beat`, that it lives. What fails is tried again.

        A lease that was taken over is another file by then: this one is nobody's.
        """
        if place is not None:
            self.about["place"] = place[:PLACE]
            self.note(facts or {})
        self.about["count"] += beat
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, _content(self.about), 0)
            if beat:
                os.fsync(self._descriptor)

    def note(self, facts: Facts) -> None:
        """Keep numbers, which are written with the next beat."""
        self.about["facts"] = dict(facts)

    def held(self) -> bool:
        """Return whether this process still holds it."""
        return (
            self._is_there()
            and max(numbers(self.path.parent, self.key), default=-1) == self._number
        )

    def _is_there(self) -> bool:
        try:
            mine, there = os.fstat(self._descriptor), self.path.stat()
        except OSError:
            return False
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)

    def release(self) -> None:
        """Give it back."""
        if self._is_there():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def take(folder: Path, key: str, *, sweep: str = "", over: Holder | None = None) -> Lease | None:
    """Return the lease on `key` where this process gets it, None where another has it.

    Args:
        folder: of the leases.
        key: what is to be worked on; no dot in it.
        sweep: the mark of the process that this one works for.
        over: the holder that is dead, whose lease is taken over.

    Raises:
        OSError: no file can be made there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = numbers(folder, key)
    if known and over is None:
        return None
    number = over.number + 1 if over else 0
    about = {"process": here().plain(), "count": 0, "place": "", "sweep": sweep}
    about["since"] = time.time()
    path = folder / f"{key}.{number}"
    if not _made(path, _content(about)):
        return None
    if max(numbers(folder, key), default=number) > number:  # a listing may be older than what is
        path.unlink(missing_ok=True)
        return None
    for lower in (n for n in numbers(folder, key) if n < number):
        (folder / f"{key}.{lower}").unlink(missing_ok=True)
    return Lease(path, os.open(path, os.O_RDWR), about)


def _made(path: Path, content: bytes) -> bool:
    """Make a file with its content in one step; return False where it is there already."""
    draft = draft_of(path.with_name(uuid.uuid4().hex[:8]))
    try:
        draft.write_bytes(content)
        try:
            os.link(draft, path)
            return True
        except FileExistsError:
            # A server that lost its answer is asked twice: the second time the file is there.
            return draft.stat().st_nlink == 2
        except OSError:  # a file system without links
            return _made_alone(path, content)
    finally:
        draft.unlink(missing_ok=True)


def _made_alone(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    return True


def holder(folder: Path, key: str) -> Holder | None:
    """Return who holds the lease on `key`, dead or alive; None where nobody does."""
    known = numbers(folder, key)
    return _read(folder / f"{key}.{max(known)}") if known else None


def holders(folder: Path) -> Iterator[Holder]:
    """Yield who holds each lease, dead or alive."""
    newest: dict[str, int] = {}
    for name in _names(folder):
        key, number = _split(name)
        newest[key] = max(number, newest.get(key, -1))
    for key, number in newest.items():
        if found := _read(folder / f"{key}.{number}"):
            yield found


def numbers(folder: Path, key: str) -> list[int]:
    """Return the numbers of the leases on `key`: one but in the moment of a change."""
    return [number for name in _names(folder) for k, number in [_split(name)] if k == key]


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.rpartition(".")[2].isdigit()]
    except FileNotFoundError:
        return []


def _split(name: str) -> tuple[str, int]:
    key, _, number = name.rpartition(".")
    return key, int(number)


def _read(path: Path) -> Holder | None:
    key, number = _split(path.name)
    try:
        text = path.read_bytes()
        about = json.loads(text)
        return Holder(
            key=key,
            number=number,
            process=Process(**about["process"]),
            count=int(about["count"]),
            place=str(about["place"]),
            sweep=str(about["sweep"]),
            since=float(about["since"]),
            facts=dict(about.get("facts") or {}),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):  # half written, or damaged
        return Holder(key, number, Process("", "", 0, ""), count=-1)


def _content(about: dict[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False).encode().ljust(SIZE)


# What this process has seen of others: a holder's counter, how long it has stood still, and when
# it was looked at last.
_seen: dict[tuple[Path, str, int, str], tuple[int, float, float]] = {}


def is_dead(folder: Path, one: Holder, after: float | None = None) -> bool:
    """Return whether a holder is dead, from what this process sees and has seen.

    It is where its counter has stood still `after` so many seconds, `stale_seconds()` unless given.
    Only time in which it was watched counts: an observer that was stopped together with the holder
    has seen nothing.
    """
    if one.process.has_ended:
        return True
    key = (folder, one.key, one.number, one.process.mark)
    now = time.monotonic()
    count, still, last = _seen.get(key, (None, 0.0, now))
    still = still + min(now - last, beat_seconds()) if count == one.count else 0.0
    _seen[key] = (one.count, still, now)
    return still >= (stale_seconds() if after is None else after)


def living(folder: Path, key: str) -> Holder | None:
    """Return who holds the lease on `key` and is not known to be dead, or None."""
    found = holder(folder, key)
    return None if found is None or is_dead(folder, found) else found

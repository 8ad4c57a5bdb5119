"""The ledger of `ablate decide`: what was asked, by which rule, what was seen and what came of it.

    OUT/decisions.jsonl    one JSON object a line, never changed once written

    {"event": "campaign", ...}  the error rate of all decisions together, and how it is shared out;
                                the first line
    {"event": "open", ...}      a decision: its two arms by train_key, its rule and the rule's hash
    {"event": "look", ...}      the seeds and differences at a look
    {"event": "close", ...}     its verdict

The file is replaced as a whole under a lease, so that several processes, killed at any moment,
leave whole lines and spend no error twice. Each line ends with a `seal`, the SHA-256 of what it
says and of the line before it. A line that is none, was changed or follows a line that is lost is
damage, and refused: to go on without it could spend again what it says is spent. Lines of version 1
have no seal.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.results import heart
from ablate.results.files import write
from ablate.results.record import digest
from ablate.results.store import Store

FILE = "decisions.jsonl"
VERSION = 2  # 1: lines without a seal
LOCK = "decisions"  # the key of the lease under which it is written
WAIT_SECONDS = 0.05
OPEN = ("question", "settings", "rule", "sha256", "fresh_from", "passed_on", "about")
LOOK = ("seeds", "failed", "differences", "resolution")


@dataclass(slots=True)
class Entry:
    """One decision as the ledger has it."""

    number: int
    question: str
    settings: dict[str, Any]  # that were asked for
    rule: dict[str, Any]
    sha256: str  # of the rule
    fresh_from: int | None  # the first seed of its own; None where recorded runs count
    passed_on: list[int]  # decisions whose rate it got
    about: dict[str, Any]  # what is told of it: arms, score
    seeds: list[int] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    resolution: float = 0.0  # the smallest step of a score
    failed: list[int] = field(default_factory=list)
    closed: dict[str, Any] | None = None

    @property
    def verdict(self) -> str | None:
        """accept, reject or undecided; None of a decision that is open."""
        return None if self.closed is None else str(self.closed["verdict"])


@dataclass(slots=True)
class Campaign:
    """All that a ledger says."""

    settings: dict[str, Any] | None = None
    entries: dict[int, Entry] = field(default_factory=dict)
    version: int = 1  # of the file

    @property
    def seeds(self) -> int:
        """Seeds that its decisions have used together."""
        return sum(len(entry.seeds) for entry in self.entries.values())

    @property
    def next_seed(self) -> int:
        """The first seed that no decision has used or set apart."""
        ends = [max(e.seeds + e.failed, default=-1) + 1 for e in self.entries.values()]
        apart = [e.fresh_from + int(e.settings["reserved"]) for e in self.entries.values()
                 if e.fresh_from is not None]  # fmt: skip
        return max([0, *ends, *apart])

    def unused(self) -> list[Entry]:
        """Return the accepted decisions whose rate was not passed on yet."""
        given = {number for entry in self.entries.values() for number in entry.passed_on}
        return [e for e in self.entries.values() if e.verdict == "accept" and e.number not in given]


class DecisionLedger:
    """The file of a campaign's decisions; it holds no state but the path."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path: Path = store.out / FILE

    def read(self) -> Campaign:
        """Return what the file says.

        Raises:
            UserError: a line of it is damaged.
        """
        found, before = Campaign(), b""
        for number, line in enumerate(self._lines(), 1):
            try:
                _apply(found, _whole(json.loads(line), before, sealed=found.version >= VERSION))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise self._damaged(f"line {number} is damaged") from None
            before = line
        return found

    def _lines(self) -> list[bytes]:
        if not os.path.lexists(self.path):
            return []
        if not self.path.is_file():
            raise self._damaged("is no file")
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not lines:  # to begin anew could spend again what it said was spent
            raise self._damaged("is empty")
        return lines

    def _damaged(self, how: str) -> UserError:
        return UserError(
            f"{self.path}: {how}; put a copy of the file in its place, "
            "or begin another campaign with another out="
        )

    @contextlib.contextmanager
    def changing(self) -> Iterator[Campaign]:
        """Give what the file says to the one process that may add to it until the block ends."""
        while True:
            with self.store.claim(LOCK) as mine:
                if mine:
                    yield self.read()
                    return
            time.sleep(WAIT_SECONDS)

    def add(self, event: Mapping[str, Any]) -> None:
        """Write one line behind the others, whole or not at all; only inside `changing`.

        Raises:
            UserError: it cannot be written.
        """
        lines = self._lines()
        told = {**event, "at": time.time()}
        told["seal"] = _seal(told, lines[-1] if lines else b"")
        lines.append(json.dumps(told, allow_nan=False).encode())
        heart.check(self.store.claims, LOCK)
        try:
            write(self.path, b"\n".join(lines) + b"\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None


def _seal(event: Mapping[str, Any], before: bytes) -> str:
    """Return what a line is known by: the SHA-256 of it and of the line before it."""
    return digest({**event, "before": hashlib.sha256(before).hexdigest()})


def _whole(event: Any, before: bytes, *, sealed: bool) -> dict[str, Any]:
    """Return what a line says, without its seal.

    Raises:
        ValueError: it is not as it was written behind the line `before`.
    """
    if not isinstance(event, dict):
        raise ValueError("is no object")
    seal = event.pop("seal", None)
    if seal != _seal(event, before) and (sealed or seal is not None):
        raise ValueError("is not as it was written")
    return event


def _apply(campaign: Campaign, event: dict[str, Any]) -> None:
    kind = event["event"]
    if (kind == "campaign") != (campaign.settings is None):
        raise ValueError("the first line alone is that of the campaign")
    if kind == "campaign":
        campaign.settings = {k: event[k] for k in ("alpha", "decisions")}
        campaign.version = int(event["version"])  # its own seal was checked if it has one
        return
    if kind == "open":
        number = int(event["decision"])
        if number != len(campaign.entries) + 1:
            raise ValueError("decisions are numbered without a gap")
        campaign.entries[number] = Entry(number, **{name: event[name] for name in OPEN})
        return
    entry = campaign.entries[int(event["decision"])]
    if kind == "look":
        for name in LOOK:
            setattr(entry, name, event[name])
    elif kind == "close":
        entry.closed = dict(event)
    else:
        raise ValueError(kind)

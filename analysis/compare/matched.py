"""The runs of two sides, brought together: under equal conditions, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.errors import AnalysisError, listed
from analysis.logs.log import Log

Runs = Sequence[Log]


@dataclass(frozen=True)
class Matched:
    """Runs of two sides.

    Attributes:
        first: the runs of the first side.
        second: of the second; run s belongs to run s of the first where they have `partners`.
        partners: the number of runs with a partner; 0 where those of the sides are unrelated.
        condition: that of every pair of partners, by number; () for one.
        notes: what was left out, a sentence each.
    """

    first: tuple[Log, ...]
    second: tuple[Log, ...]
    partners: int
    condition: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def conditions(self) -> int:
        """Under how many conditions both sides ran."""
        return len(set(self.condition)) or 1

    @property
    def condition_S(self) -> npt.NDArray[np.int_] | None:
        """The condition of every pair as statistics take it; None where there is one."""
        return np.array(self.condition) if self.conditions > 1 else None

    @property
    def replicated(self) -> bool:
        """Whether both sides have several runs under one condition."""
        if self.partners:
            return self.partners > self.conditions
        return min(len(self.first), len(self.second)) > 1


def matched(first: Runs, second: Runs) -> Matched:
    """Return the runs of both sides under the conditions that both ran.

    What all runs of a side have in common and the other side's have not is what is compared; the
    other levels are the condition. One run a side is a pair, whatever its levels.

    Raises:
        AnalysisError: no condition is there on both sides, or their runs cannot be told apart.
    """
    if len(first) == len(second) == 1:
        return Matched((first[0],), (second[0],), 1)
    names = [n for n in _levels(first, second) if not _compared(n, first, second)]
    sides = [_by_condition(side, names) for side in (first, second)]
    shared = [c for c in sides[0] if c in sides[1]]
    if not shared:
        raise AnalysisError(
            f"compare: no run of A stands under the conditions of one of B; A has "
            f"{listed(_told(sides[0]), limit=3)}, B has {listed(_told(sides[1]), limit=3)}; name "
            f"one run of each"
        )
    found = [_by_seed(sides[0][c], sides[1][c]) for c in shared]
    pairs = [pair for own in found for pair in own]
    lost = len(first) + len(second) - 2 * len(pairs)
    if pairs:
        notes = (f"{lost} runs have no partner of their condition and seed.",) if lost else ()
        if len(pairs) == 1 and len(shared) == 1 and min(len(first), len(second)) > 1:
            return _apart(
                sides[0][shared[0]], sides[1][shared[0]], "one seed alone is on both sides"
            )
        ones, others = zip(*pairs, strict=True)
        condition = tuple(i for i, own in enumerate(found) for _ in own)
        return Matched(ones, others, len(pairs), condition, notes)
    if len(shared) > 1:
        told = listed(_told({condition: [] for condition in shared}), limit=3)
        raise AnalysisError(
            "compare: the runs of A and of B have no seed in common under any condition, and there "
            f"are {len(shared)} conditions ({told}); name the runs of one"
        )
    return _apart(sides[0][shared[0]], sides[1][shared[0]], _unpaired(first, second))


def _apart(first: Runs, second: Runs, why: str) -> Matched:
    """Return runs without partners, with a note on why their seeds do not pair them."""
    notes = (f"Runs are not paired by seed: {why}.",) if why else ()
    return Matched(tuple(first), tuple(second), 0, notes=notes)


def _unpaired(first: Runs, second: Runs) -> str:
    """Return why runs with seeds have no partner; "" where a side has none."""
    seeds = [[log.seed for log in side] for side in (first, second)]
    if not all(any(own) for own in seeds):
        return ""
    for letter, own in zip("AB", seeds, strict=True):
        if "" in own:
            return f"{own.count('')} runs of {letter} have none"
        if again := next((s for s in own if own.count(s) > 1), ""):
            return f"{letter} has seed {again} {own.count(again)} times"
    return "none is on both sides"


def _levels(first: Runs, second: Runs) -> list[str]:
    return list(dict.fromkeys(n for log in (*first, *second) for n in log.levels))


def _compared(name: str, first: Runs, second: Runs) -> bool:
    """Return whether a level is one value on either side, and another on the other."""
    values = [{log.levels.get(name, "") for log in side} for side in (first, second)]
    return all(len(v) == 1 for v in values) and values[0] != values[1]


def _by_condition(side: Runs, names: Sequence[str]) -> dict[tuple[str, ...], list[Log]]:
    found: dict[tuple[str, ...], list[Log]] = {}
    for log in side:
        found.setdefault(tuple(log.levels.get(n, "") for n in names), []).append(log)
    return found


def _told(side: dict[tuple[str, ...], list[Log]]) -> list[str]:
    return [" ".join(filter(None, condition)) or "one condition" for condition in side]


def _by_seed(first: Runs, second: Runs) -> list[tuple[Log, Log]]:
    """Return the runs of one condition with those of the same seed; none where seeds are unknown.

    One run a side is a pair.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    own = [{log.seed: log for log in side} for side in (first, second)]
    unique = all(
        len(o) == len(s) and "" not in o for o, s in zip(own, (first, second), strict=True)
    )
    return [(own[0][s], own[1][s]) for s in own[0] if s in own[1]] if unique else []

"""How long a sweep will still take: what was planned, corrected by what its runs have taken so far.

A run is expected to take the plan's seconds of training and of scoring (`experiment.cost`). What
runs have measured since, and those under way by their steps, says how much slower or faster that
goes: for runs of one kind, held towards that of all by the weight of `USUAL` runs, so that a few
of them do not speak for the rest. Newer ones count more: a machine may get other work. Then the
workers are followed through what is left, in order, to the end of the last.

Only the time of runs counts, never that between them: a sweep that stood still is not slower.
"""

import heapq
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Kind = tuple[object, ...]
PARTS = ("train", "score")
USUAL = 2.0  # runs: how much the pace of all counts in the pace of a kind
HALF = 0.5  # of all seconds measured, after which a run counts half as much
MOST = 4.0  # times as slow as the usual a run counts: beyond that it stood still


@dataclass(frozen=True, slots=True)
class Expected:
    """The seconds that a run is planned to take: of training, of scoring, and beside them."""

    kind: Kind  # runs of one kind have one pace
    train: float
    score: float
    rest: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.train + self.score + self.rest


@dataclass(frozen=True, slots=True)
class HowFar:
    """How far a run is."""

    share: float = 0.0  # of its training
    train_seconds: float | None = None  # that training takes in all, by its steps so far
    scoring: bool = False
    waited: float = 0.0  # seconds since that was seen to begin
    lanes: int = 1  # runs that train side by side, whose time that of the steps is


@dataclass(frozen=True, slots=True)
class _Evidence:
    part: str  # one of PARTS
    kind: Kind
    seconds: float
    expected: float
    at: float  # seconds that were measured before it, of all runs together


@dataclass(slots=True)
class TimeLeft:
    """Estimates the time left of the runs of a sweep."""

    expected: Mapping[str, Expected]
    workers: int = 1
    start_seconds: float = 0.0  # of a worker, until its first run begins
    _evidence: list[_Evidence] = field(default_factory=list)
    _measured: float = 0.0
    _rests: list[float] = field(default_factory=list)

    @property
    def knows(self) -> bool:
        """Whether a run has ended; before that the plan says nearly all."""
        return bool(self._evidence)

    def took(self, key: str, train: float, score: float, rest: float | None = None) -> None:
        """Note what a run took that has ended, in seconds; `rest` where it is known."""
        planned = self.expected.get(key)
        if planned is None:
            return
        for part, seconds in zip(PARTS, (train, score), strict=True):
            expected = getattr(planned, part)
            if expected > 0 and seconds > 0:
                self._note(self._evidence, part, planned.kind, seconds, expected)
                self._measured += seconds
        if rest is not None:
            self._rests.append(rest)

    def _note(
        self, to: list[_Evidence], part: str, kind: Kind, seconds: float, expected: float
    ) -> None:
        to.append(_Evidence(part, kind, seconds, expected, self._measured))

    def of_runs(
        self, keys: Sequence[str], running: Mapping[str, HowFar]
    ) -> dict[str, tuple[float, float]]:
        """Return the seconds left of training and of all else of each of `keys`."""
        pace = self._pace(running)
        usual = self._usual()
        rest = statistics.median(self._rests) if self._rests else None
        found = {}
        for key in keys:
            planned = self.expected.get(key, usual)
            train, score = (pace(part, planned.kind) * getattr(planned, part) for part in PARTS)
            beside = planned.rest if rest is None else rest
            found[key] = _left(train, score + beside, running.get(key))
        return found

    def left(
        self,
        bundles: Sequence[Sequence[str]],
        running: Mapping[str, HowFar],
        *,
        waited: float = 0.0,
    ) -> float:
        """Return the seconds left of a sweep.

        Args:
            bundles: the runs that have not ended, in the order in which workers take them; those of
                one bundle are one worker's.
            running: how far the runs are that are under way; several of one bundle train side by
                side, each with the whole time of their steps.
            waited: seconds since the workers were started; one that has no run yet still starts.
        """
        keys = [key for bundle in bundles for key in bundle]
        each = self.of_runs(keys, running)
        free, queue = [], []
        for bundle in bundles:
            here = [each[key] for key in bundle if key in running]
            waiting = [sum(each[key]) for key in bundle if key not in running]
            if here:
                training = max(train for train, _ in here)
                free.append(training + sum(rest for _, rest in here) + sum(waiting))
            elif waiting:
                queue.append(sum(waiting))
        idle = max(0, min(self.workers, len(free) + len(queue)) - len(free))
        starting = 0.0 if self.knows else max(0.0, self.start_seconds - waited)
        ends = list(free)  # not of a worker that has started when all is taken
        free += [starting] * idle
        heapq.heapify(free)
        for seconds in queue:
            ends.append(free[0] + seconds)
            heapq.heapreplace(free, ends[-1])
        return max(ends, default=0.0)

    def _usual(self) -> Expected:
        """Return what a run is expected to take of which nothing is planned."""
        planned = list(self.expected.values()) or [Expected((), 0.0, 0.0, 0.0)]
        mean = (
            statistics.fmean(getattr(one, part) for one in planned) for part in (*PARTS, "rest")
        )
        return Expected((), *mean)

    def _pace(self, running: Mapping[str, HowFar]) -> Callable[[str, Kind], float]:
        """Return how many times the planned seconds a part takes in runs of a kind."""
        found = list(self._evidence)
        for key, how in running.items():
            planned = self.expected.get(key)
            if planned and planned.train > 0 and how.train_seconds and how.share > 0:
                seconds = how.train_seconds * how.share / how.lanes
                self._note(found, "train", planned.kind, seconds, planned.train * how.share)
        weighed = _weighed(found, self._measured)
        if not weighed:
            return lambda part, kind: 1.0
        usual = self._usual()
        whole = _ratio([(s, e) for _, _, s, e in weighed], 0.0, 1.0)
        of_part, of_kind = {}, {}
        for part in PARTS:
            held = USUAL * getattr(usual, part)
            of_part[part] = _ratio([(s, e) for p, _, s, e in weighed if p == part], held, whole)
            by_kind: dict[Kind, list[tuple[float, float]]] = defaultdict(list)
            for p, kind, seconds, expected in weighed:
                if p == part:
                    by_kind[kind].append((seconds, expected))
            for kind, some in by_kind.items():
                of_kind[part, kind] = _ratio(some, held, of_part[part])
        return lambda part, kind: of_kind.get((part, kind), of_part[part])


def _weighed(found: Sequence[_Evidence], measured: float) -> list[tuple[str, Kind, float, float]]:
    """Return part, kind, seconds and planned seconds of what was measured, each with its weight."""
    if not found:
        return []
    most = MOST * statistics.median(one.seconds / one.expected for one in found)
    weighed = []
    for one in found:
        weight = 0.5 ** ((measured - one.at) / (HALF * measured)) if measured else 1.0
        seconds = min(one.seconds, most * one.expected)
        weighed.append((one.part, one.kind, weight * seconds, weight * one.expected))
    return weighed


def _ratio(pairs: Sequence[tuple[float, float]], held: float, towards: float) -> float:
    """Return the ratio of the sums of pairs, held towards another by `held` planned seconds."""
    above = sum(pair[0] for pair in pairs) + held * towards
    below = sum(pair[1] for pair in pairs) + held
    return above / below if below > 0 else towards


def _left(train: float, rest: float, how: HowFar | None) -> tuple[float, float]:
    """Return the seconds left of training and of all else, of a run that takes so many."""
    if how is None:
        return train, rest
    if how.scoring:
        return 0.0, max(0.0, rest - how.waited)
    if how.train_seconds is None:  # it has not begun to train, or taken a step
        return train * (1 - how.share), rest
    # What comes between two looks has happened by now.
    return max(0.0, how.train_seconds * (1 - how.share) - how.waited), rest

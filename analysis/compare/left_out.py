"""Benchmarks that a comparison could not take in, each with the reason."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from analysis.compare.matched import Matched
from analysis.errors import listed
from analysis.logs.log import Log

MOST_NAMES = 4  # of one reason, in a sentence


@dataclass(frozen=True)
class LeftOut:
    """A benchmark that some run has and that was not compared."""

    name: str
    reason: str


def left_out(
    runs: Matched, compared: Iterable[str], metric: str, only: Sequence[str]
) -> Iterator[LeftOut]:
    """Yield the benchmarks that were not compared, a subtask by itself.

    Args:
        runs: of both sides.
        compared: the tasks that were.
        metric: that was asked for; "" for each benchmark's own.
        only: the benchmarks that were asked for; others are no loss. Empty for all.
    """
    known = set(compared)
    sides = [[tasks(log) for log in side] for side in (runs.first, runs.second)]
    numbers = [[scored(log) for log in side] for side in (runs.first, runs.second)]
    groups = {t: g for side in sides for own in side for t, (g, _) in own.items()}
    for task, group in groups.items():
        if task not in known and (not only or task in only or group in only):
            without = _without_numbers(task, sides, numbers)
            reason = f"no score of {without} is a number" if without else ""
            yield LeftOut(task, reason or _reason(task, sides, metric))


def tasks(log: Log) -> dict[str, tuple[str, list[str]]]:
    """Return the group and the metrics of every task that a run has scores of."""
    found: dict[str, tuple[str, list[str]]] = {}
    for table in (log.items, log.scores):
        rows = table[["task", "group", "metric"]].drop_duplicates()
        for task, group, metric in rows.astype(str).itertuples(index=False):
            own = found.setdefault(task, (group, []))[1]
            if metric not in own:
                own.append(metric)
    return found


def scored(log: Log) -> set[str]:
    """Return the tasks of which a run has a score that is a number."""
    own = log.items.loc[log.items["score"].notna(), "task"]
    return {*map(str, own.unique()), *map(str, log.scores["task"])}


def with_metrics(log: Log) -> list[str]:
    """Return the tasks of a run as "task [metrics]"."""
    known = scored(log)
    return [
        f"{task} [{_metrics(own)}{'' if task in known else ': no score is a number'}]"
        for task, (_, own) in sorted(tasks(log).items())
    ]


def sentences(found: Iterable[LeftOut]) -> Iterator[str]:
    """Yield a sentence for every reason."""
    names: dict[str, list[str]] = {}
    for one in found:
        names.setdefault(one.reason, []).append(one.name)
    for reason, own in names.items():
        yield f"Not compared: {listed(own, limit=MOST_NAMES)} ({reason})."


Tasks = Sequence[Sequence[dict[str, tuple[str, list[str]]]]]  # by side and run


def _without_numbers(task: str, sides: Tasks, numbers: Sequence[Sequence[set[str]]]) -> str:
    """Return which sides have the task and no number for it."""
    return " and ".join(
        letter
        for letter, every, known in zip("AB", sides, numbers, strict=True)
        if any(task in one and task not in own for one, own in zip(every, known, strict=True))
    )


def _reason(task: str, sides: Tasks, metric: str) -> str:
    counts = [sum(task in own for own in side) for side in sides]
    for letter, other in ((0, 1), (1, 0)):
        if not counts[other]:
            return f"only {'AB'[letter]} has it"
    for letter, side in enumerate(sides):
        if counts[letter] < len(side):
            return f"{len(side) - counts[letter]} of {len(side)} runs of {'AB'[letter]} lack it"
    own = [list(dict.fromkeys(m for one in side for m in one[task][1])) for side in sides]
    if own[0] == own[1]:
        return f"has {_metrics(own[0])}" + (f", no {metric}" if metric else "")
    return f"A has {_metrics(own[0])}, B has {_metrics(own[1])}"


def _metrics(names: Sequence[str]) -> str:
    return listed((name.removesuffix(",none") for name in names), limit=MOST_NAMES)

"""The items of two sides, benchmark by benchmark, as matrices.

Letters in names: S runs of a side, I items that any run has.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.compare.matched import Matched
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, listed, nearest
from analysis.logs.log import ITEMS, Log
from analysis.table.metrics import SHARES, in_own_unit, preference

SCORE = {"items": "score", "scores": "value"}  # the column of a log's tables
TASK = "task"  # what `cluster` may name beside a field of the documents
REPEAT = re.compile(r"#\d+$")  # of a document that was asked before, see `logs.log.with_places`
Labels = npt.NDArray[np.str_]
_NONE = pd.DataFrame(columns=ITEMS)


@dataclass(frozen=True)
class Benchmark:
    """A task, or a group of subtasks, with its items on both sides, higher is better.

    Attributes:
        name: of it.
        metric: what is scored.
        a_SI: scores of the first side; NaN where a run lacks an item.
        b_SI: of the second side.
        names_I: the items, as "task doc".
        task_I: the subtask of every item.
        cluster_I: the cluster of every item; None where items stand for themselves.
        ends: the lowest and the highest score that there can be.
        points: whether scores are points out of 100, else the metric's own unit.
        turned: whether a low value of the metric is good, and its sign was turned.
    """

    name: str
    metric: str
    a_SI: Array
    b_SI: Array
    names_I: Labels
    task_I: Labels
    cluster_I: Labels | None
    ends: tuple[float, float]
    points: bool
    turned: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def known_I(self) -> npt.NDArray[np.bool_]:
        """Which items every run has."""
        return np.asarray(~np.isnan(np.concatenate([self.a_SI, self.b_SI])).any(axis=0))

    @property
    def binary(self) -> bool:
        """Whether every answer is right or wrong."""
        seen = np.concatenate([self.a_SI.ravel(), self.b_SI.ravel()])
        seen = seen[~np.isnan(seen)]
        return bool(self.points and np.isin(seen, self.ends).all())


@dataclass(frozen=True)
class Asked:
    """What may be asked of a comparison of items."""

    metric: str = ""
    cluster: str = ""
    by_id: bool = False
    only: tuple[str, ...] = ()  # tasks or groups; () for all
    higher_is_better: bool | None = None  # of the metric; None: as logs or its name say

    def turned(self, logs: Sequence[Log], task: str, metric: str) -> bool:
        """Return whether a low value of a task's metric is good."""
        if self.higher_is_better is not None:
            return not self.higher_is_better
        return any((task, metric) in log.lower for log in logs)


def metrics_of(logs: Sequence[Log], asked: Asked, part: str = "items") -> dict[str, list[str]]:
    """Return, for every task to compare that all logs have, the metrics that all of them have."""
    found: dict[str, list[str]] = {}
    for number, log in enumerate(logs):
        table = getattr(log, part)
        table = table[table[SCORE[part]].notna()]
        if asked.only:
            table = table[table["task"].isin(asked.only) | table["group"].isin(asked.only)]
        own = {str(t): list(map(str, m)) for t, m in table.groupby("task", sort=False)["metric"]
               .unique().items()} if len(table) else {}  # fmt: skip
        if number == 0:
            found = own
        else:
            found = {t: [m for m in ms if m in own.get(t, [])] for t, ms in found.items()}
    return {task: metrics for task, metrics in found.items() if metrics}


def chosen(task: str, metrics: Sequence[str], asked: str) -> str | None:
    """Return the metric by which a task is judged; None where it lacks the one that is asked for.

    lm-eval's names have the filter behind a comma; a name without one means the first filter.
    """
    if not asked:
        return min(metrics, key=lambda m: (preference(m)[0], metrics.index(m)))
    return next((m for m in metrics if m == asked or m.split(",")[0] == asked), None)


def benchmarks(runs: Matched, asked: Asked) -> Iterator[Benchmark]:
    """Yield the benchmarks whose items both sides have.

    Raises:
        AnalysisError: a metric that no task has, a field that no document has, or tasks whose
            documents are others on the two sides.
    """
    every = [*runs.first, *runs.second]
    tasks = metrics_of(every, asked)
    named = {t: chosen(t, metrics, asked.metric) for t, metrics in tasks.items()}
    tables = [[_tables(log) for log in side] for side in (runs.first, runs.second)]
    if asked.metric and tasks and not any(named.values()):
        known = sorted({m for metrics in tasks.values() for m in metrics})
        near = nearest(asked.metric, dict.fromkeys(m.split(",")[0] for m in known))
        raise AnalysisError(f"--metric={asked.metric}: not one of {listed(known)}.{near}")
    groups = _groups(every[0], {t: m for t, m in named.items() if m})
    for (group, metric), own in groups.items():
        parts = [_task((task, metric), tables, runs, asked) for task in own]
        one = _joined(group, metric, parts, asked)
        yield replace(one, notes=(*one.notes, *_filters(group, metric, tasks[own[0]])))


def _filters(group: str, metric: str, metrics: Sequence[str]) -> Iterator[str]:
    """Yield that a metric was logged under other filters too (lm-eval's: how answers are read)."""
    name = metric.split(",")[0]
    others = [m for m in metrics if m != metric and m.split(",")[0] == name]
    if others:
        yield f"{group}: judged by {metric}; {listed(others)} was logged too (--metric names one)."


def _groups(log: Log, named: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """Return the tasks of every group and metric."""
    group = dict(zip(log.items["task"], log.items["group"], strict=True))
    found: dict[tuple[str, str], list[str]] = {}
    for task, metric in named.items():
        found.setdefault((str(group[task]), metric), []).append(task)
    return found


Tables = list[list[dict[tuple[str, str], pd.DataFrame]]]  # by side and run


def _tables(log: Log) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the scored items of every task and metric."""
    scored = log.items[log.items["score"].notna()]
    groups = scored.groupby(["task", "metric"], sort=False)
    return {(str(task), str(metric)): own for (task, metric), own in groups}


def _task(what: tuple[str, str], every: Tables, runs: Matched, asked: Asked) -> Benchmark:
    """Return one task's items."""
    task, metric = what
    found = [[own.get(what, _NONE) for own in side] for side in every]
    key = _key(task, found, asked)
    tables = [
        [own.drop_duplicates(key).set_index(key, drop=False) for own in side] for side in found
    ]
    tables, notes = _asked_once(task, tables) if key == "item" else (tables, _renamed(task, tables))
    index = pd.Index(list(dict.fromkeys(i for side in tables for own in side for i in own.index)))
    a_SI, b_SI = (np.array([own["score"].reindex(index) for own in side]) for side in tables)
    about = pd.concat([own for side in tables for own in side])
    about = about[~about.index.duplicated()].reindex(index)
    low = asked.turned((*runs.first, *runs.second), task, metric)
    fraction = in_fractions(what, a_SI, b_SI)
    scale = (100.0 if fraction else 1.0) * (-1.0 if low else 1.0)
    a_SI, b_SI = scale * a_SI, scale * b_SI
    seen = np.concatenate([a_SI.ravel(), b_SI.ravel()])
    ends = (min(0.0, scale), max(0.0, scale)) if fraction else (np.nanmin(seen), np.nanmax(seen))
    cluster = None
    if asked.cluster and asked.cluster != TASK:
        cluster = about["cluster"].astype(str).to_numpy(str)
        if not any(cluster):
            raise AnalysisError(
                f"--cluster={asked.cluster}: no document of {task} has this field; `--cluster "
                f"task` takes subtasks for clusters"
            )
    return Benchmark(
        name=task, metric=metric, a_SI=a_SI, b_SI=b_SI,
        names_I=np.array([f"{task} {doc}" for doc in about["doc"]]),
        task_I=np.full(len(index), task), cluster_I=cluster,
        ends=(float(ends[0]), float(ends[1])), points=fraction, turned=low,
        notes=notes,
    )  # fmt: skip


def in_fractions(what: tuple[str, str], a: Array, b: Array) -> bool:
    """Return whether the scores of both sides are shares: between 0 and 1, and no losses.

    Raises:
        AnalysisError: a share of right answers does on one side alone, the other's is in percent.
    """
    tops = [float(np.nanmax(x)) for x in (a, b)]
    if in_own_unit(what[1]):
        return False
    if min(np.nanmin(a), np.nanmin(b)) < 0 or min(tops) > 1:
        return False
    if max(tops) > 1 and min(tops) > 0 and SHARES.match(what[1]):
        low, high = ("A", "B") if tops[0] <= 1 else ("B", "A")
        raise AnalysisError(
            f"{what[0]}: {what[1]} of {low} lies between 0 and 1, and of {high} goes up to "
            f"{max(tops):.4g}: one is a fraction and the other in percent; bring both to one scale"
        )
    return max(tops) <= 1


def _renamed(task: str, tables: Sequence[Sequence[pd.DataFrame]]) -> tuple[str, ...]:
    """Return that documents of one number are others, where they are."""
    items = pd.concat([own["item"] for side in tables for own in side])
    same = (items.groupby(level=0).nunique() == 1).all()
    return () if same else (f"{task}: items are paired by number, their documents differ.",)


def _asked_once(
    task: str, tables: list[list[pd.DataFrame]]
) -> tuple[list[list[pd.DataFrame]], tuple[str, ...]]:
    """Return the items without repeats of documents that the other side has but once."""
    every = [{item for own in side for item in own.index} for side in tables]
    notes = []
    for letter, side, mine, other in zip("AB", (0, 1), every, every[::-1], strict=True):
        again = {i for i in mine - other if REPEAT.search(i) and REPEAT.sub("", i) in other}
        if again:
            tables[side] = [own[~own.index.isin(list(again))] for own in tables[side]]
            notes.append(
                f"{task}: {letter} has {len(again)} documents again that the other side has once; "
                f"the first counts."
            )
    return tables, tuple(notes)


def _key(task: str, found: list[list[pd.DataFrame]], asked: Asked) -> str:
    """Return what tells items: their documents, or their numbers where that was asked for.

    Raises:
        AnalysisError: the two sides share no document.
    """
    if asked.by_id:
        return "doc"
    sides = [{item for own in side for item in own["item"]} for side in found]
    if sides[0] & sides[1]:
        return "item"
    raise AnalysisError(
        f"{task}: A and B share none of its documents, so their items cannot be paired; was the "
        f"task changed in between, or were other items drawn? --by-id pairs them by number"
    )


def _joined(group: str, metric: str, parts: Sequence[Benchmark], asked: Asked) -> Benchmark:
    """Return the subtasks of a group as one benchmark, in which items weigh equally."""
    task_I = np.concatenate([p.task_I for p in parts])
    cluster = None
    if asked.cluster == TASK:
        cluster, task_I = task_I, np.full(len(task_I), group)
    elif asked.cluster:
        own = [p.cluster_I for p in parts if p.cluster_I is not None]
        cluster = np.char.add(np.char.add(task_I, " "), np.concatenate(own))
    return Benchmark(
        name=group,
        metric=metric,
        a_SI=np.concatenate([p.a_SI for p in parts], axis=1),
        b_SI=np.concatenate([p.b_SI for p in parts], axis=1),
        names_I=np.concatenate([p.names_I for p in parts]),
        task_I=task_I,
        cluster_I=cluster,
        ends=(min(p.ends[0] for p in parts), max(p.ends[1] for p in parts)),
        points=all(p.points for p in parts),
        turned=any(p.turned for p in parts),
        notes=tuple(note for p in parts for note in p.notes),
    )

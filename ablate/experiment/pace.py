"""How fast runs are carried out here, from those recorded in a folder of results. No torch.

A run takes a worker the seconds of training, of scoring, and of all else: reading the model, rows
and benchmarks, writing, and its share of a worker's start. The first two are recorded; the whole is
the time between the ends of two runs that one process carried out one after the other. Only runs of
this machine count, and those on a GPU only for runs that may use one.
"""

import socket
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.config.build import typed
from ablate.config.schema import Evaluate
from ablate.errors import UserError
from ablate.evaluate import task_items
from ablate.results.store import Store

FLOPS_PER_SECOND = 25e9  # one core at small sizes, measured; only used where nothing was recorded
RECORDS = 200  # that are read: the newest of a folder
ITEMS = 1000  # of a benchmark whose number of items is not known
IDLE_SECONDS = 600.0  # beyond training and scoring: the process had nothing to do in between
SIMILAR = 10  # times as many parameters that a model of like pace may have
NOTHING = "the model's size; nothing is recorded here yet"
OTHERS = "the model's size; only models of other sizes are recorded here"


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes: floating-point operations, and what their pace depends on."""

    adapter: str  # its kind
    parameters: int  # of the base
    train_flops: float
    eval_flops: float
    device: str = "auto"

    @property
    def flops(self) -> float:
        """Of training and scoring together."""
        return self.train_flops + self.eval_flops


@dataclass(frozen=True, slots=True)
class _Done:
    """A recorded run; rates in floating-point operations a second, None where it did not do it."""

    adapter: str
    parameters: int
    gpu: bool
    train_rate: float | None
    eval_rate: float | None
    rest: float | None  # seconds beside them; None where another process's run came before


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of the runs recorded here."""

    done: tuple[_Done, ...] = ()

    def basis(self, works: Iterable[Work]) -> str:
        """Return what the seconds of `works` are estimated from."""
        sizes = {work.parameters for work in works}
        used = sum(any(_alike(one, size) for size in sizes) for one in self.done)
        if used:
            return f"{used} runs recorded here"
        return OTHERS if self.done else NOTHING

    def seconds(self, work: Work) -> float:
        """Return the seconds of a worker that a run takes."""
        able = [one for one in self.done if work.device != "cpu" or not one.gpu]
        train = _median([one.train_rate for one in _nearest(able, work, "train_rate")])
        score = _median([one.eval_rate for one in _nearest(able, work, "eval_rate")])
        rest = _median([one.rest for one in able if one.rest is not None])
        usual = train or FLOPS_PER_SECOND
        return work.train_flops / usual + work.eval_flops / (score or usual) + (rest or 0.0)


def _nearest(done: Sequence[_Done], work: Work, rate: str) -> list[_Done]:
    """Return the runs with a rate that are most like this one: in model and adapter, or model.

    None where all models are of another size: a processor's rate at 0.1 million parameters says
    nothing of its rate at a billion.
    """
    known = [one for one in done if getattr(one, rate) and _alike(one, work.parameters)]
    same = [one for one in known if one.parameters == work.parameters]
    return [one for one in same if one.adapter == work.adapter] or same or known


def _alike(done: _Done, parameters: int) -> bool:
    """Return whether a recorded run's model is of about a size."""
    return 1 / SIMILAR <= done.parameters / parameters <= SIMILAR


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def eval_flops(parameters: int, mean_length: float, evaluate: Evaluate) -> float:
    """Return the operations of scoring a model.

    An item is about as long as two rows: its options, or its prompt and what is generated; each
    example before it adds as much.
    """
    each = {task: items(task, evaluate.limit) for task in evaluate.tasks}
    scored = sum(n * (1 + (evaluate.shots(t) or 0)) for t, n in each.items())
    return parameters * 2 * scored * mean_length * 2


def items(task: str, limit: int | None) -> int:
    """Return how many items of a task are scored; of one that is not known `ITEMS` are assumed."""
    return task_items.scored(task, limit) or min(ITEMS, limit or ITEMS)


def pace(store: Store) -> Pace:
    """Return the pace of the newest runs of this machine in a folder of results."""
    found = (store.record(key) for key in store.newest(RECORDS))
    records = [r for r in found if r and _hardware(r).get("host") == socket.gethostname()]
    by_process: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        by_process.setdefault(_hardware(record).get("pid"), []).append(record)
    done = []
    for own in by_process.values():
        own.sort(key=_ended)
        before = [None, *map(_ended, own)]
        done += [_done(record, since) for record, since in zip(own, before, strict=False)]
    return Pace(tuple(done))


def _done(record: dict[str, Any], since: float | None) -> _Done:
    costs, parameters = record["costs"], record["parameters"]["base"]
    training, scoring = costs.get("train_seconds"), costs.get("eval_seconds")
    operations = _eval_flops(record) if scoring else 0.0
    rest = None
    if since is not None:
        rest = _ended(record) - since - (training or 0) - (scoring if operations else 0)
        rest = rest if 0 <= rest < IDLE_SECONDS else None
    return _Done(
        adapter=record["config"]["adapter"]["kind"],
        parameters=parameters,
        gpu=str(_hardware(record).get("device")).startswith("cuda"),
        train_rate=6 * parameters * costs["tokens_seen"] / training if training else None,
        eval_rate=operations / scoring if operations else None,
        rest=rest,
    )


def _eval_flops(record: dict[str, Any]) -> float:
    """Return the operations of a recorded run's scoring; 0 if its settings are not today's."""
    try:
        evaluate = typed(Evaluate, record["config"]["evaluate"], "evaluate")
    except UserError:
        return 0.0
    return eval_flops(record["parameters"]["base"], record["data"]["mean_length"], evaluate)


def _hardware(record: dict[str, Any]) -> dict[str, Any]:
    return dict(record.get("provenance", {}).get("hardware") or {})


def _ended(record: dict[str, Any]) -> float:
    return float(record.get("provenance", {}).get("finished") or 0.0)

"""How fast runs are carried out here: from those recorded in a folder of results, and from probes.

A run takes a worker the seconds of training, of scoring, and of all else: reading the model, rows
and benchmarks, writing, and its share of a worker's start. The first two are recorded; the whole is
the time between the ends of two runs that one process carried out one after the other. Only runs of
this machine count, and those on a GPU only for runs that may use one. Probes (`ablate.probing`) are
kept in the cache folder; they count where no run so like is recorded. No torch.
"""

import json
import socket
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.config.build import plain, typed
from ablate.config.schema import Evaluate
from ablate.errors import UserError
from ablate.evaluate import chosen, task_items
from ablate.paths import cache_dir
from ablate.results import files
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
class Done:
    """A run recorded or probed here; rates in floating-point operations a second, where it did."""

    adapter: str
    parameters: int
    gpu: bool
    train_rate: float | None
    eval_rate: float | None
    rest: float | None  # seconds beside them; None where another process's run came before


@dataclass(frozen=True, slots=True)
class Sample:
    """What a run computed and how many seconds it took: training, scoring, and in all."""

    train_flops: float
    train_seconds: float
    eval_flops: float
    eval_seconds: float
    seconds: float
    gpu: bool


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a worker: of training, of scoring, and of all else."""

    train: float = 0.0
    score: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.train + self.score + self.rest


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of the runs recorded and of those probed here."""

    done: tuple[Done, ...] = ()
    probed: tuple[Done, ...] = ()
    start_seconds: float | None = None  # of a worker, until its first run; None: not recorded

    def recorded(self, work: Work) -> bool:
        """Return whether a run of this adapter on this model is recorded here."""
        kind = work.adapter, work.parameters
        return any((one.adapter, one.parameters) == kind for one in self.done)

    def basis(self, works: Iterable[Work]) -> str:
        """Return what the seconds of `works` are estimated from."""
        sizes = {work.parameters for work in works}
        done, probed = (
            sum(any(_alike(one, size) for size in sizes) for one in pool)
            for pool in (self.done, self.probed)
        )
        told = [f"{done} runs recorded here"] * (done > 0)
        told += [f"{probed} probe{'s' * (probed > 1)} on this machine"] * (probed > 0)
        return " and ".join(told) or (OTHERS if self.done else NOTHING)

    def seconds(self, work: Work) -> float:
        """Return the seconds of a worker that a run takes."""
        return self.spent(work).total

    def spent(self, work: Work) -> Spent:
        """Return the seconds of a worker that a run takes, by what takes them."""
        pools = [
            [one for one in pool if work.device != "cpu" or not one.gpu]
            for pool in (self.done, self.probed)
        ]
        train = _median([one.train_rate for one in _nearest(pools, work, "train_rate")])
        score = _median([one.eval_rate for one in _nearest(pools, work, "eval_rate")])
        own = _median([one.rest for one in pools[0]])
        rest = _median([one.rest for one in _nearest(pools, work, "rest")]) if own is None else own
        usual = train or FLOPS_PER_SECOND
        return Spent(work.train_flops / usual, work.eval_flops / (score or usual), rest or 0.0)


def _nearest(pools: Sequence[Sequence[Done]], work: Work, name: str) -> Sequence[Done]:
    """Return the runs with a number that are most like this one: in model and adapter, or model.

    Of those as like, the recorded before the probed. None where all models are of another size: a
    processor's rate at 0.1 million parameters says nothing of its rate at a billion.
    """
    size = work.parameters
    known = [
        [d for d in pool if getattr(d, name) is not None and _alike(d, size)] for pool in pools
    ]
    same = [[one for one in pool if one.parameters == size] for pool in known]
    own = [[one for one in pool if one.adapter == work.adapter] for pool in same]
    return next((pool for pool in (*own, *same, *known) if pool), [])


def _alike(done: Done, parameters: int) -> bool:
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
    each = {task: items(task, evaluate) for task in evaluate.tasks}
    scored = sum(n * (1 + (evaluate.shots(t) or 0)) for t, n in each.items())
    return parameters * 2 * scored * mean_length * 2


def items(task: str, evaluate: Evaluate) -> int:
    """Return how many items of a task are scored; of one that is not known `ITEMS` are assumed."""
    limit = evaluate.limit
    known = task_items.scored(task, limit, chosen.of(evaluate, task))
    return known or min(ITEMS, limit or ITEMS)


def pace(store: Store) -> Pace:
    """Return the pace of the newest runs of this machine in a folder of results, and of probes."""
    found = (store.record(key) for key in store.newest(RECORDS))
    records = [r for r in found if r and _hardware(r).get("host") == socket.gethostname()]
    by_process: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        by_process.setdefault(_hardware(record).get("pid"), []).append(record)
    done = []
    for own in by_process.values():
        own.sort(key=ended)
        before = [None, *map(ended, own)]
        done += [_done(record, since) for record, since in zip(own, before, strict=False)]
    starts = [_hardware(own[0]).get("start_seconds") for own in by_process.values()]
    known = [start for start in starts if start is not None and 0 <= start < IDLE_SECONDS]
    return Pace(tuple(done), probed(), _median(known))


def _done(record: dict[str, Any], since: float | None) -> Done:
    costs, parameters = record["costs"], record["parameters"]["base"]
    training, scoring = costs.get("train_seconds"), costs.get("eval_seconds")
    operations = _eval_flops(record) if scoring else 0.0
    rest = None
    if since is not None:
        rest = ended(record) - since - (training or 0) - (scoring if operations else 0)
        rest = rest if 0 <= rest < IDLE_SECONDS else None
    return Done(
        adapter=record["config"]["adapter"]["kind"],
        parameters=parameters,
        gpu=_on_gpu(record),
        train_rate=6 * parameters * costs["tokens_seen"] / training if training else None,
        eval_rate=operations / scoring if operations else None,
        rest=rest,
    )


def sample(record: dict[str, Any], seconds: float) -> Sample:
    """Return what a recorded run, which took `seconds`, says of the pace."""
    costs = record["costs"]
    return Sample(
        train_flops=6 * record["parameters"]["base"] * (costs["tokens_seen"] or 0),
        train_seconds=costs["train_seconds"] or 0.0,
        eval_flops=_eval_flops(record),
        eval_seconds=costs["eval_seconds"] or 0.0,
        seconds=seconds,
        gpu=_on_gpu(record),
    )


def fitted(work: Work, small: Sample, large: Sample) -> Done:
    """Return the pace that two probes of different size show.

    What the larger takes longer is the rate; what is left of its seconds comes beside.
    """
    train = _rate(
        (small.train_flops, small.train_seconds), (large.train_flops, large.train_seconds)
    )
    score = _rate((small.eval_flops, small.eval_seconds), (large.eval_flops, large.eval_seconds))
    spent = sum(
        flops / rate
        for flops, rate in ((large.train_flops, train), (large.eval_flops, score))
        if rate
    )
    rest = max(0.0, large.seconds - spent)
    return Done(work.adapter, work.parameters, large.gpu, train, score, rest)


def _rate(small: tuple[float, float], large: tuple[float, float]) -> float | None:
    """Return operations a second from two (operations, seconds); None where there are none.

    Where the larger took no longer than the smaller, it alone says what it can.
    """
    more, longer = large[0] - small[0], large[1] - small[1]
    if more > 0 and longer > 0:
        return more / longer
    return large[0] / large[1] if large[0] > 0 and large[1] > 0 else None


def probed() -> tuple[Done, ...]:
    """Return the probes of this machine that are kept."""
    try:
        return tuple(typed(Done, one) for one in _kept().get(socket.gethostname(), []))
    except UserError:  # of a version that kept others
        return ()


def keep(found: Iterable[Done]) -> None:
    """Keep probes in the cache folder, each in the place of an earlier one of its kind."""
    host = socket.gethostname()
    kinds = {_kind(one): one for one in (*probed(), *found)}
    kept = _kept() | {host: [plain(one) for one in kinds.values()]}
    files.write(_file(), json.dumps(kept, indent=1).encode())


def _kind(done: Done) -> tuple[str, int, bool]:
    return done.adapter, done.parameters, done.gpu


def _file() -> Path:
    return cache_dir() / "probes.json"


def _kept() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _eval_flops(record: dict[str, Any]) -> float:
    """Return the operations of a recorded run's scoring; 0 if its settings are not today's."""
    try:
        evaluate = typed(Evaluate, record["config"]["evaluate"], "evaluate")
    except UserError:
        return 0.0
    return eval_flops(record["parameters"]["base"], record["data"]["mean_length"], evaluate)


def _hardware(record: dict[str, Any]) -> dict[str, Any]:
    return dict(record.get("provenance", {}).get("hardware") or {})


def _on_gpu(record: dict[str, Any]) -> bool:
    return str(_hardware(record).get("device")).startswith("cuda")


def process_of(record: dict[str, Any]) -> tuple[Any, Any]:
    """Return which process carried out a recorded run: its host and number."""
    return _hardware(record).get("host"), _hardware(record).get("pid")


def ended(record: dict[str, Any]) -> float:
    """Return when a recorded run ended; 0 where that is not known."""
    return float(record.get("provenance", {}).get("finished") or 0.0)

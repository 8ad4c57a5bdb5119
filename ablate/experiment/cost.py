"""The estimated cost of a set of runs in time, memory and disk, from sizes alone.

Times come from runs recorded in the same folder on this machine where there are any
(`experiment.pace`), else from the size of the model; `Cost.basis` says which. Seconds of a GPU are
those of `experiment.gpu_pace`, its memory that of `experiment.gpu_memory` and
`experiment.scoring_memory`.
"""

import heapq
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablate.adapters import registry
from ablate.adapters.stored import checkpoints_bytes, weights_bytes
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.experiment.amounts import tokens
from ablate.experiment.design import Named
from ablate.experiment.gpu_fit import GPU_BYTES, Need, need
from ablate.experiment.gpu_memory import side_by_side
from ablate.experiment.gpu_pace import GpuSeconds, gpu_seconds, is_measured
from ablate.experiment.lanes import with_company
from ablate.experiment.pace import NOTHING, OTHERS, Spent, Work, eval_flops, items, pace
from ablate.experiment.status import is_kept
from ablate.experiment.time_left import Expected
from ablate.models.files import ModelFiles
from ablate.models.gpu_slots import gpus
from ablate.results.store import Store

ITEM_BYTES = 40  # an item in items.parquet with what was answered, compressed
RECORD_BYTES = 40_000  # record, configuration, history and log together
ADAM_BYTES = 12  # a trained parameter: gradient and two moments in fp32
WEIGHT_BYTES = 8  # a base parameter: the model, and the copy that it is loaded from
FREE_BYTES = 600e6  # interpreter and libraries
START_SECONDS = 8.0  # of a worker where none is recorded: Python and its libraries
DAY = 86400.0  # of a processor: a run that takes longer belongs on a GPU
STORED_BYTES = 2  # a parameter of a model on the hub


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate for a set of runs."""

    trains: int  # runs of them; the others are trained and lack a score
    seconds: float  # of one worker
    parts: Spent  # the same by what takes them
    by_run: tuple[float, ...]  # the same for each run
    expected: tuple[Expected, ...]  # the same for each run, by what takes them
    disk_bytes: float
    memory_bytes: float  # of the largest run
    checkpoint_bytes: float  # the most of what a worker has under way
    gpu_seconds: tuple[GpuSeconds, ...]  # of each run
    on_gpu: bool  # whether a GPU is where the runs belong, and no such run is recorded here
    gpu_measured: bool  # whether training was measured at about the sizes of all runs
    largest: Need  # of the run that needs most of a GPU
    too_large: tuple[tuple[Named, Need], ...]  # runs that one GPU does not hold
    download_bytes: float  # of base models that are not on this machine
    basis: str  # what the seconds are estimated from
    start_seconds: float  # of each worker, until its first run begins

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU."""
        return sum(one.total for one in self.gpu_seconds) / 3600

    @property
    def gpu_training_hours(self) -> float:
        """The share of training in `gpu_hours`."""
        return sum(one.train for one in self.gpu_seconds) / 3600

    def hours_on(self, gpus: int, *, devices: int = 1) -> float:
        """Return the hours on several GPUs, so many of which carry out a run together."""
        return _span([one.total / devices for one in self.gpu_seconds], gpus // devices) / 3600


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left to do of a run: training, and the benchmarks that are not scored."""

    trains: bool
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _RunCost:
    work: Work
    gpu: GpuSeconds
    measured: bool  # whether `gpu` is from speeds measured at about this size
    disk_bytes: float
    checkpoint_bytes: float  # if training takes longer than `checkpoint_seconds`
    checkpoint_seconds: float
    memory_bytes: float
    need: Need


def cost(names: Iterable[Named], store: Store, *, gpu_bytes: float = GPU_BYTES) -> Cost:
    """Return the estimated cost of what is left of each of `names`, on such a GPU.

    A run whose weights are kept is only scored again, on the benchmarks that it lacks.
    """
    asked, known = list(names), dict[Any, _RunCost]()
    cells = with_company([named.cell for named in asked])
    asked = [n if n.cell is c else replace(n, cell=c) for n, c in zip(asked, cells, strict=True)]
    begun = {*store.present(), *(path.name for path in store.trained.glob("*"))}
    todo = [
        _left(named, store) if named.key in begun else _Left(True, named.cell.evaluate.tasks)
        for named in asked
    ]
    runs = [
        _of_alike(named, left, known, gpu_bytes) for named, left in zip(asked, todo, strict=True)
    ]
    measured = pace(store)
    each = {id(run): measured.spent(run.work) for run in known.values()}
    spent = [each[id(run)] for run in runs]
    seconds = tuple(one.total for one in spent)
    basis = measured.basis(run.work for run in known.values())
    slow = max(seconds, default=0.0) > DAY or bool(gpus())
    on_gpu = slow and basis in (NOTHING, OTHERS) and any(r.work.device != "cpu" for r in runs)
    models = {named.identity.files.content_hash: named.identity.files for named in asked}
    nothing = Need({}, True, 0)
    return Cost(
        trains=sum(left.trains for left in todo),
        seconds=sum(seconds),
        parts=Spent(*(sum(getattr(s, name) for s in spent) for name in Spent.__slots__)),
        by_run=seconds,
        expected=tuple(
            Expected((run.work.adapter, run.work.parameters), one.train, one.score, one.rest)
            for run, one in zip(runs, spent, strict=True)
        ),
        disk_bytes=sum(run.disk_bytes for run in runs),
        memory_bytes=max((run.memory_bytes for run in runs), default=0.0),
        checkpoint_bytes=max(
            (
                run.checkpoint_bytes
                for run, here in zip(runs, spent, strict=True)
                if (run.gpu if on_gpu else here).train > run.checkpoint_seconds
            ),
            default=0.0,
        ),
        on_gpu=on_gpu,
        gpu_seconds=tuple(run.gpu for run in runs),
        gpu_measured=all(run.measured for run in known.values()),
        largest=max((run.need for run in runs), key=lambda n: n.total, default=nothing),
        too_large=tuple(
            (named, run.need) for named, run in zip(asked, runs, strict=True) if not run.need.fits
        ),
        download_bytes=sum(
            STORED_BYTES * files.parameters
            for files in models.values()
            if not files.folder.exists()
        ),
        basis=basis,
        start_seconds=START_SECONDS if measured.start_seconds is None else measured.start_seconds,
    )


def wall_seconds(by_run: Sequence[float], workers: int, start: float = START_SECONDS) -> float:
    """Return the time of workers that start and take the runs in order, each when it is free."""
    return start + _span(by_run, workers) if by_run else 0.0


def _span(by_run: Sequence[float], workers: int) -> float:
    """Return when the last of the runs ends, of workers that take them in order."""
    free = [0.0] * max(1, workers)
    for seconds in by_run:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def _left(named: Named, store: Store) -> _Left:
    scored, tasks = store.scored(named.key), named.cell.evaluate.tasks
    if scored:
        lacking = {u.name for u in named.identity.units if u.key not in scored}
        tasks = tuple(task for task in tasks if task in lacking)
    trained = named.cell.is_base and bool(scored)  # an untouched base has no weights of its own
    return _Left(not (trained or is_kept(named.key, store)), tasks)


def _of_alike(named: Named, left: _Left, known: dict[Any, _RunCost], gpu_bytes: float) -> _RunCost:
    """Return the cost of a run, which all runs of the same sizes have; they share their parts."""
    cell, identity = named.cell, named.identity
    parts = (cell.adapter, cell.placement, cell.optimizer, cell.train, cell.evaluate,
             cell.execution, cell.masking, identity.files, identity.data)  # fmt: skip
    weights = (cell.plw > 0, cell.completion_weight > 0)
    settings = (cell.rank, cell.base_precision, cell.embeddings, cell.loss.scope, *weights)
    mark = (*map(id, parts), *settings, left.trains, left.tasks)
    if mark not in known:
        known[mark] = _run_cost(named, left, gpu_bytes)
    return known[mark]


def _run_cost(named: Named, left: _Left, gpu_bytes: float) -> _RunCost:
    cell, files = named.cell, named.identity.files
    trained = registry.trainable_parameters(cell, files)
    scored = sum(items(task, cell.evaluate) for task in left.tasks)
    whole = work_of(named)
    asked = replace(cell.evaluate, tasks=left.tasks)
    work = replace(
        whole,
        train_flops=whole.train_flops * left.trains,
        eval_flops=eval_flops(files.parameters, named.identity.data.mean_length, asked),
    )
    kept = weights_bytes(cell, files)
    kept = kept if left.trains and kept <= cell.execution.keep_weights_mb * 2**20 else 0
    wanted = need(named, gpu_bytes)
    logits = max(part.get("logits", 0.0) for part in (wanted.parts, wanted.scoring))
    rows = wanted.rows if wanted.fits else cell.train.batch_size
    spent = gpu_seconds(named, work.eval_flops, rows=rows, trains=left.trains)
    return _RunCost(
        work=work,
        gpu=spent,
        measured=is_measured(named),
        disk_bytes=RECORD_BYTES + ITEM_BYTES * scored + kept,
        checkpoint_bytes=_checkpoints(cell, files) if left.trains else 0.0,
        checkpoint_seconds=60 * (cell.execution.checkpoint_minutes or 0),
        memory_bytes=WEIGHT_BYTES * files.parameters + ADAM_BYTES * trained + logits + FREE_BYTES,
        need=wanted,
    )


def _checkpoints(cell: Cell, files: ModelFiles) -> float:
    """Return the bytes of the checkpoints of a run and of those that train beside it."""
    return side_by_side(cell) * checkpoints_bytes(cell, files)


def work_of(named: Named) -> Work:
    """Return what a run computes."""
    cell, files, data = named.cell, named.identity.files, named.identity.data
    return Work(
        cell.adapter.kind,
        files.parameters,
        train_flops=files.parameters * 6 * tokens(cell, data),
        eval_flops=eval_flops(files.parameters, data.mean_length, cell.evaluate),
        device=cell.execution.device,
    )


def check_disk(needed: float, store: Store) -> None:
    """Check that records of that many bytes will fit on the disk.

    Raises:
        UserError: the free space is less.
    """
    free = shutil.disk_usage(store.out).free
    if needed > free:
        raise UserError(
            f"out={store.out}: about {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB "
            "are free; lower execution.keep_weights_mb or choose another folder"
        )

"""The estimated cost of a set of runs in time, memory and disk, from sizes alone.

Times come from the pace of runs recorded in the same folder where there are any, else from the size
of the model; `Cost.basis` says which.
"""

import shutil
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from ablate.adapters import registry
from ablate.adapters.stored import weights_bytes
from ablate.errors import UserError
from ablate.experiment.design import Design, Named
from ablate.experiment.status import missing
from ablate.results.store import Store

FLOPS_PER_SECOND = 25e9  # one core at small sizes, measured; only used where nothing was recorded
ITEM_BYTES = 40  # an item in items.parquet with what was answered, compressed
RECORD_BYTES = 40_000  # record, configuration, history and log together
ADAM_BYTES = 12  # a trained parameter: gradient and two moments in fp32
WEIGHT_BYTES = 8  # a base parameter: the model, and the copy that it is loaded from
FREE_BYTES = 600e6  # interpreter and libraries
ITEMS = 1000  # of a benchmark whose items are not limited
PACES = 200  # records that are read for the pace


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate for a set of runs."""

    seconds: float  # of one core
    disk_bytes: float
    memory_bytes: float  # of the largest run
    basis: str  # what the seconds are estimated from


@dataclass(frozen=True, slots=True)
class _RunCost:
    flops: float
    disk_bytes: float
    memory_bytes: float


def cost(names: Iterable[Named], store: Store) -> Cost:
    """Return the estimated cost of training and scoring each of `names` once."""
    pace, basis = _pace(store)
    runs = [_run_cost(named) for named in names]
    return Cost(
        seconds=sum(run.flops for run in runs) / (pace or FLOPS_PER_SECOND),
        disk_bytes=sum(run.disk_bytes for run in runs),
        memory_bytes=max((run.memory_bytes for run in runs), default=0.0),
        basis=basis,
    )


def _run_cost(named: Named) -> _RunCost:
    cell, files, data = named.cell, named.identity.files, named.identity.data
    trained = registry.trainable_parameters(cell, files)
    rows = data.rows * cell.train.epochs
    if cell.train.max_steps is not None and cell.train.batch_unit == "examples":
        rows = min(rows, cell.train.max_steps * cell.train.batch_size)
    tokens = 0 if cell.is_base else rows * data.mean_length
    items = (cell.evaluate.limit or ITEMS) * len(cell.evaluate.tasks)
    # 6 N flops a trained token (forward 2, backward 4), 2 N a scored one. A scored item is about
    # as long as two rows: its options, or its prompt and what is generated.
    flops = files.parameters * (6 * tokens + 2 * items * data.mean_length * 2)
    kept = weights_bytes(cell, files)
    kept = kept if kept <= cell.execution.keep_weights_mb * 2**20 else 0
    width = cell.execution.micro_batch_size or cell.train.batch_size
    logits = width * min(data.max_length, cell.train.max_length) * files.vocab_size * 12
    memory = WEIGHT_BYTES * files.parameters + ADAM_BYTES * trained + logits + FREE_BYTES
    return _RunCost(flops, RECORD_BYTES + ITEM_BYTES * items + kept, memory)


def _pace(store: Store) -> tuple[float | None, str]:
    """Return flops per core-second of recorded runs, None without any, and where it is from."""
    paces = []
    for key in store.recorded()[:PACES]:
        record = store.record(key)
        costs = record["costs"] if record else {}
        if record and costs.get("train_seconds"):
            paces.append(6 * record["parameters"]["base"] * costs["tokens_per_second"])
    if paces:
        return statistics.median(paces), f"the pace of {len(paces)} runs recorded here"
    return None, "the model's size; nothing is recorded here yet"


def check_disk(plan: Design, store: Store) -> None:
    """Check that the records of what `plan` lacks will fit on the disk.

    Raises:
        UserError: the free space is less than the estimate.
    """
    needed = cost((named[0] for named in missing(plan, store).values()), store).disk_bytes
    free = shutil.disk_usage(store.out).free
    if needed > free:
        raise UserError(
            f"out={store.out}: about {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB "
            "are free; lower execution.keep_weights_mb or choose another folder"
        )

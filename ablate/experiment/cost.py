"""The estimated cost of a set of runs in time, memory and disk, from sizes alone.

Times come from the pace of runs recorded in the same folder where there are any, else from the size
of the model; `Cost.basis` says which. GPU-hours and the memory of a GPU are arithmetic, for one GPU
that holds the whole run:

    floating-point operations   6 a parameter and trained token, 2 a parameter and scored token
    GPU-hours                   those, at `GPU_FLOPS` of an A100, `GPU_USED` of which are used
    base weights                4, 2, 1 or 0.5 bytes a parameter by base_precision
    gradients and optimizer     under AdamW 12 bytes a trained parameter in fp32, gradient and two
                                moments, and 18 in bf16, which has a copy in fp32 with a gradient;
                                under other optimizers as their rows say (`trained_bytes`)
    activations                 inputs and outputs of every linear layer, 4 or 2 bytes a number by
                                train.precision, for the tokens of a micro-batch; with
                                execution.gradient_checkpointing of one layer, and one input each
    logits                      12 bytes a token of a micro-batch and an entry of the vocabulary
"""

import shutil
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ablate.adapters import registry
from ablate.adapters.optimizers import trained_bytes
from ablate.adapters.stored import weights_bytes
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.evaluate import task_items
from ablate.experiment.design import Design, Named
from ablate.experiment.status import missing
from ablate.models.files import ModelFiles
from ablate.results.store import Store

FLOPS_PER_SECOND = 25e9  # one core at small sizes, measured; only used where nothing was recorded
ITEM_BYTES = 40  # an item in items.parquet with what was answered, compressed
RECORD_BYTES = 40_000  # record, configuration, history and log together
WEIGHT_BYTES = 8  # a base parameter: the model, and the copy that it is loaded from
FREE_BYTES = 600e6  # interpreter and libraries
ITEMS = 1000  # of a benchmark whose number of items is not known
GPU_FLOPS = {"bf16": 312e12, "fp32": 19.5e12}  # an A100's peak a second, by train.precision
GPU_USED = 0.4  # of that peak; small models use less
GPU_BYTES = 141e9  # of the largest single GPU to be had, an H200
NUMBER_BYTES = {"bf16": 2, "fp32": 4}
BASE_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5}
STORED_BYTES = 2  # a parameter of a model on the hub
PACES = 200  # records that are read for the pace


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate for a set of runs."""

    seconds: float  # of one core
    disk_bytes: float
    memory_bytes: float  # of the largest run
    gpu_hours: float
    gpu_bytes: float  # of the run that needs most of a GPU
    gpu_parts: Mapping[str, float]  # the same by what takes it
    too_large: tuple[Named, ...]  # runs that no single GPU holds
    download_bytes: float  # of base models that are not on this machine
    basis: str  # what the seconds are estimated from


@dataclass(frozen=True, slots=True)
class _RunCost:
    flops: float
    gpu_seconds: float
    disk_bytes: float
    memory_bytes: float
    gpu_parts: Mapping[str, float]


def cost(names: Iterable[Named], store: Store) -> Cost:
    """Return the estimated cost of training and scoring each of `names` once."""
    pace, basis = _pace(store)
    asked = list(names)
    runs = [_run_cost(named) for named in asked]
    parts = max((run.gpu_parts for run in runs), key=lambda p: sum(p.values()), default={})
    models = {named.identity.files.content_hash: named.identity.files for named in asked}
    return Cost(
        seconds=sum(run.flops for run in runs) / (pace or FLOPS_PER_SECOND),
        disk_bytes=sum(run.disk_bytes for run in runs),
        memory_bytes=max((run.memory_bytes for run in runs), default=0.0),
        gpu_hours=sum(run.gpu_seconds for run in runs) / 3600,
        gpu_bytes=sum(parts.values()),
        gpu_parts=parts,
        too_large=tuple(
            named
            for named, run in zip(asked, runs, strict=True)
            if sum(run.gpu_parts.values()) > GPU_BYTES
        ),
        download_bytes=sum(
            STORED_BYTES * files.parameters
            for files in models.values()
            if not files.folder.exists()
        ),
        basis=basis,
    )


def _run_cost(named: Named) -> _RunCost:
    cell, files, data = named.cell, named.identity.files, named.identity.data
    rows = data.rows * cell.train.epochs
    if cell.train.max_steps is not None and cell.train.batch_unit == "examples":
        rows = min(rows, cell.train.max_steps * cell.train.batch_size)
    tokens = 0 if cell.is_base else rows * data.mean_length
    each = {task: items(task, cell.evaluate.limit) for task in cell.evaluate.tasks}
    # A scored item is about as long as two rows: its options, or its prompt and what is generated;
    # each example before it adds as much.
    scored = sum(n * (1 + (cell.evaluate.shots(t) or 0)) for t, n in each.items())
    flops = files.parameters * (6 * tokens + 2 * scored * data.mean_length * 2)
    kept = weights_bytes(cell, files)
    kept = kept if kept <= cell.execution.keep_weights_mb * 2**20 else 0
    logits = _tokens_at_once(named) * files.vocab_size * 12
    memory = WEIGHT_BYTES * files.parameters + _optimizer_bytes(cell, files) + logits + FREE_BYTES
    return _RunCost(
        flops=flops,
        gpu_seconds=flops / (GPU_FLOPS[cell.train.precision] * GPU_USED),
        disk_bytes=RECORD_BYTES + ITEM_BYTES * sum(each.values()) + kept,
        memory_bytes=memory,
        gpu_parts=_gpu_parts(named) | {"logits": float(logits)},
    )


def items(task: str, limit: int | None) -> int:
    """Return how many items of a task are scored; of one that is not known `ITEMS` are assumed."""
    return task_items.scored(task, limit) or min(ITEMS, limit or ITEMS)


def _tokens_at_once(named: Named) -> int:
    """Return the tokens of a micro-batch whose rows are as long as the longest."""
    train, execution = named.cell.train, named.cell.execution
    longest = min(named.identity.data.max_length, train.max_length)
    rows, budget = execution.micro_batch_size, execution.micro_batch_tokens
    if isinstance(rows, int):
        tokens = rows * longest
    else:
        tokens = train.batch_size * (longest if train.batch_unit == "examples" else 1)
    return min(tokens, max(budget, longest)) if budget else tokens


def _gpu_parts(named: Named) -> dict[str, float]:
    """Return the bytes of one GPU by what takes them, logits apart; arithmetic as above."""
    cell, files = named.cell, named.identity.files
    number = NUMBER_BYTES[cell.train.precision]
    widths = [d + k for d, k in files.linear_shapes.values()]
    kept: float = sum(widths)
    if cell.execution.gradient_checkpointing:
        kept = kept / files.blocks + files.blocks * files.width
    tokens = 0 if cell.is_base else _tokens_at_once(named)
    return {
        "weights": BASE_BYTES[cell.base_precision] * files.parameters,
        "optimizer": _optimizer_bytes(cell, files),
        "activations": float(tokens * kept * number),
    }


def _optimizer_bytes(cell: Cell, files: ModelFiles) -> float:
    """Return the bytes on the device of gradients, moments and masters."""
    of_base = registry.trained_of_base(cell, files)
    own = registry.trainable_parameters(cell, files) - of_base
    half, offloaded = registry.trains_half(cell), cell.execution.offload_optimizer
    optimizer = cell.optimizer
    return own * trained_bytes(optimizer, half=False) + of_base * trained_bytes(
        optimizer, half=half, offloaded=offloaded
    )


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

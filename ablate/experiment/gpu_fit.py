"""Whether a run fits on a GPU, and which settings would make it fit. No torch."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ablate.adapters import compatibility, registry
from ablate.adapters.optimizers import check_offload
from ablate.config.schema import Cell, Optimizer
from ablate.errors import UserError
from ablate.experiment.design import Named
from ablate.experiment.gpu_memory import gpu_parts, largest_pass, side_by_side
from ablate.experiment.labels import label
from ablate.experiment.scoring_memory import scoring_parts
from ablate.models.gpu_slots import gpu_bytes

GPU_BYTES = 80e9  # of a GPU that nobody has told of
CERTAIN = 1.25  # times the memory of a GPU: beyond it a run is refused, below it may try
LEAVE_OUT = "score_base=false"  # the setting without which the untouched base is scored
SPARE = 1.5e9  # of CUDA itself and between allocations


@dataclass(frozen=True, slots=True)
class Need:
    """What a run needs of a GPU, and how it is made to fit on one where it does not."""

    parts: dict[str, float]  # bytes of training by what takes them
    fits: bool
    rows: int  # of a micro-batch
    cures: tuple[tuple[str, float], ...] = ()  # settings under which it fits, and their bytes
    scoring: dict[str, float] = field(default_factory=dict)  # bytes of scoring by what takes them
    scoring_rows: int = 0  # of a forward pass of scoring, at most

    @property
    def total(self) -> float:
        """Bytes of training or of scoring, which comes after it: whichever takes more."""
        return max(sum(self.parts.values()), sum(self.scoring.values()))


def need(named: Named, size: float) -> Need:
    """Return what a run needs; its micro-batches shrink first, as they do where memory ran out."""
    rows, parts = _split(named, size)
    scoring_rows, scoring = _split_scoring(named, size)
    fits = not (_beyond(parts, size) or _beyond(scoring, size))
    cures = () if fits else tuple(_cures(named, size))
    return Need(parts, fits, rows, cures, scoring, scoring_rows)


def _split(named: Named, size: float) -> tuple[int, dict[str, float]]:
    """Return the rows of a micro-batch, as many as fit if it may shrink, and what it takes."""
    cell = named.cell
    rows, parts = largest_pass(cell, named.identity.data).rows, gpu_parts(named)
    while _beyond(parts, size) and _shrinks(cell) and rows > 1:
        rows //= 2
        parts = gpu_parts(named, rows=rows)
    return rows, parts


def _split_scoring(named: Named, size: float) -> tuple[int, dict[str, float]]:
    """Return the rows of a forward pass of scoring, as many as fit, and what it takes."""
    rows, parts = named.cell.execution.eval_batch_size, scoring_parts(named)
    while _beyond(parts, size) and rows > 1:
        rows //= 2
        parts = scoring_parts(named, rows=rows)
    return rows, parts


def gpu_size(setting: float | None) -> tuple[float, str]:
    """Return the bytes of a GPU and where they are from: as set, of the smallest here, or 80 GB."""
    if setting is not None:
        return setting * 1e9, "gpu_gb"
    found = gpu_bytes()
    return (found, "nvidia-smi") if found else (GPU_BYTES, "assumed; gpu_gb=SIZE for another")


def check_fits(too_large: Iterable[tuple[Named, Need]], size: float) -> None:
    """Check that no run needs much more than the memory of a GPU that is here.

    Raises:
        UserError: one does, with the settings that would let it fit.
    """
    for named, wanted in too_large:
        if wanted.total > CERTAIN * size and named.cell.execution.device != "cpu":
            cures = [f"{settings} ({used / 1e9:.0f} GB)" for settings, used in wanted.cures]
            cure = "it fits with " + ", or with ".join(cures) if cures else "no setting helps"
            scored = sum(wanted.scoring.values()) > sum(wanted.parts.values())
            cure += f"; {LEAVE_OUT} leaves it out" * named.cell.is_base
            what = "scoring" if scored else "training"
            raise UserError(
                f"model={label(named.cell.model)} adapter={named.cell.adapter.name}: {what} takes "
                f"about {wanted.total / 1e9:.0f} GB, a worker has {size / 1e9:.0f} GB of a GPU; "
                f"{cure}"
            )


def _shrinks(cell: Cell) -> bool:
    return cell.execution.micro_batch_size is not None and cell.loss.scope != "microbatch"


def _beyond(parts: dict[str, float], size: float) -> bool:
    return sum(parts.values()) + SPARE > size


def _cures(named: Named, size: float) -> Iterator[tuple[str, float]]:
    """Yield settings that let a run fit: first ones that leave its numbers, then others."""
    for kept in (True, False):
        for changed in _changes(named.cell):
            if kept == (not changed) and (found := _cure(named, changed, size)):
                yield found
                break


def _changes(cell: Cell) -> Iterator[dict[str, Any]]:
    """Yield settings of a run that take less memory and make another run of it."""
    yield {}
    halved = {"base_precision": "bf16"}
    small = {"optimizer": Optimizer(name="adamw_8bit", kind="adamw_8bit")}
    for change in (halved, small, halved | small, {"base_precision": "nf4"}):
        anew = all(getattr(cell, key) != value for key, value in change.items())
        if anew and not (cell.is_base and "optimizer" in change):
            yield change


def _cure(named: Named, changed: dict[str, Any], size: float) -> tuple[str, float] | None:
    """Return the change and the settings of execution with which a run fits, and its bytes."""
    cell = replace(named.cell, **changed)
    if changed and not _legal(cell, named):
        return None
    most = largest_pass(named.cell, named.identity.data).rows
    shrinks = _shrinks(cell)
    sizes = [None, *(most // 2**i for i in range(1, 0 if shrinks else most.bit_length()))]
    lanes = (None, 1) if side_by_side(cell) > 1 else (None,)
    choices = itertools.product(lanes, (False, not changed), (False, True), sizes)
    for fewer, offload, on, rows in choices:
        settings: dict[str, Any] = {"gradient_checkpointing": True} if on else {}
        settings |= {"lanes": fewer} if fewer else {}
        settings |= {"micro_batch_size": rows} if rows else {}
        settings |= {"offload_optimizer": True} if offload else {}
        if offload and not _offloads(cell):
            continue
        tried = replace(named, cell=replace(cell, execution=replace(cell.execution, **settings)))
        parts = [split(tried, size)[1] for split in (_split, _split_scoring)]
        if not any(_beyond(part, size) for part in parts):
            lines = [f"{k}={getattr(v, 'name', v)}" for k, v in changed.items()]
            lines += [f"execution.{k}={str(v).lower()}" for k, v in settings.items()]
            return " ".join(lines), max(sum(part.values()) for part in parts)
    return None


def _legal(cell: Cell, named: Named) -> bool:
    files = named.identity.files
    try:
        compatibility.check(cell, architecture=files.architecture, shapes=files.linear_shapes)
    except UserError:
        return False
    return True


def _offloads(cell: Cell) -> bool:
    try:
        check_offload(cell.optimizer)
    except UserError:
        return False
    return registry.trains_of_base(cell)

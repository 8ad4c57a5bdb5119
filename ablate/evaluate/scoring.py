"""What a run is to be scored on, carried out: benchmarks, held-out loss per role, measures."""

import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ablate.config.schema import Cell
from ablate.evaluate import harness, heldout, measures
from ablate.evaluate.precision import computed_in
from ablate.evaluate.scores import TaskScore, Unscored
from ablate.experiment.cell_data import tokenised, tokenizer_of
from ablate.experiment.identity import WITHOUT_MODEL, Unit
from ablate.machine import fault
from ablate.models.files import ModelFiles
from ablate.models.gpu import lost_device
from ablate.models.load import device_of, load, load_tokenizer
from ablate.results.log import say


@dataclass(frozen=True, slots=True)
class Wanted:
    """One unit to score, a cell that asks for it and the files of the cell's base model."""

    cell: Cell
    unit: Unit
    files: ModelFiles


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of some units, the units whose scoring failed, and how often memory ran out."""

    scores: list[TaskScore]
    lost: list[Unscored]
    halvings: int = 0  # of the batch, because it did not fit in the GPU's memory


def ready(wanted: Sequence[Wanted]) -> None:
    """Load the benchmarks of `wanted` and build their requests, so that scoring cannot fail there.

    Raises:
        UserError: a benchmark's data cannot be had.
    """
    for cell, files, units in _grouped([one for one in wanted if one.unit.kind == "task"]):
        chat = cell.dataset.template == "chat"
        tokenizer = load_tokenizer(files.folder, cell.model.chat_template)
        harness.prepare(replace(cell.evaluate, tasks=tuple(units)), tokenizer, chat=chat)


def score(model: nn.Module, history: list[dict[str, Any]], wanted: Sequence[Wanted]) -> Scored:
    """Return the scores of `model` for every wanted unit, and the units whose scoring failed.

    A failure costs the score alone: the trained model is kept, and the unit is named. Where memory
    runs out, half the batch is tried, down to a single row.

    Args:
        model: the trained model, or the untouched base.
        history: the course of its training, for measures of that.
        wanted: what to score, each with a cell that asks for it.

    Raises:
        RuntimeError: the GPU is lost to this process (`gpu.lost_device`).
        Exception: the machine is at fault (`machine.fault`).
    """
    found = []
    for kind, scorer in (("task", _tasks), ("heldout", _heldout), ("measure", _measures)):
        units = [one for one in wanted if one.unit.kind == kind]
        scored = _tried(functools.partial(scorer, model, history), units)
        for one in scored.scores:
            some = one.of is not None and one.n < one.of
            which = f"{one.n:,} chosen" if one.chosen else f"the first {one.n:,}"
            told = f", scored on {which} of {one.of:,} items" if some else ""
            told += f", programs run under {one.isolation}" if one.isolation else ""
            say(f"{one.task} {one.metric}: {one.value}{told}")
        found.append(scored)
    return _joined(found)


def _joined(parts: Sequence[Scored]) -> Scored:
    return Scored(
        [score for part in parts for score in part.scores],
        [unit for part in parts for unit in part.lost],
        max((part.halvings for part in parts), default=0),
    )


def _tried(
    scorer: Callable[[Sequence[Wanted]], Iterator[TaskScore]], wanted: Sequence[Wanted]
) -> Scored:
    """Return what `scorer` makes of the units: of all at once or, if that fails, of each alone."""
    smaller: list[Wanted] = []
    try:
        return Scored(list(scorer(wanted)), [])
    except Exception as error:  # a task's own code and data may fail in any way
        if lost_device(error) or fault(error):
            raise
        if isinstance(error, torch.OutOfMemoryError):
            smaller = _halved(wanted)
        if len(wanted) == 1 and not smaller:
            unit = wanted[0].unit
            text = traceback.format_exception_only(error)[-1]
            lost = Unscored(unit.name, unit.key, " ".join(text.split()))
            say(f"{unit.name}: not scored: {lost.error}\n{traceback.format_exc()}")
            return Scored([], [lost])
    if smaller:  # out here the error is gone, and with it what its frames held
        torch.cuda.empty_cache()
        say(f"out of memory: again with {_rows(smaller)} rows a batch")
        again = _tried(scorer, smaller)
        return replace(again, halvings=again.halvings + 1)
    return _joined([_tried(scorer, [one]) for one in wanted])


def _rows(wanted: Sequence[Wanted]) -> int:
    return max(one.cell.execution.eval_batch_size for one in wanted)


def _halved(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return the units with half the batch; none where it is a single row already."""
    if _rows(wanted) == 1:
        return []
    cells: dict[int, Cell] = {}  # units of one cell go on sharing it
    for one in wanted:
        execution = one.cell.execution
        half = replace(execution, eval_batch_size=max(1, execution.eval_batch_size // 2))
        cells.setdefault(id(one.cell), replace(one.cell, execution=half))
    return [replace(one, cell=cells[id(one.cell)]) for one in wanted]


def _tasks(model: nn.Module, history: object, wanted: Sequence[Wanted]) -> Iterator[TaskScore]:
    for cell, files, units in _grouped(wanted):
        asked = replace(cell.evaluate, tasks=tuple(units))
        tokenizer = load_tokenizer(files.folder, cell.model.chat_template)
        chat = cell.dataset.template == "chat"
        with computed_in(model, cell.evaluate.precision):
            found = harness.score(model, tokenizer, asked, execution=cell.execution, chat=chat)
        yield from (replace(one, score_key=units[one.asked].key) for one in found)


def _heldout(model: nn.Module, history: object, wanted: Sequence[Wanted]) -> Iterator[TaskScore]:
    for one in wanted:
        cell, unit = one.cell, one.unit
        part = tokenised(cell, unit.name)
        with computed_in(model, cell.evaluate.precision):
            found = heldout.score(model, part, unit.name, cell.evaluate, execution=cell.execution)
        yield from (replace(score, score_key=unit.key) for score in found)


def _measures(
    model: nn.Module, history: list[dict[str, Any]], wanted: Sequence[Wanted]
) -> Iterator[TaskScore]:
    for cell, files, units in _grouped(wanted):
        subject = measures.Subject(
            model=model,
            base=lambda files=files, cell=cell: load(  # type: ignore[misc]
                files, cell.base_precision, device=device_of(cell.execution.device)
            ),
            tokenizer=load_tokenizer(files.folder, cell.model.chat_template),
            train=tokenised(cell, "train"),
            heldout=lambda cell=cell: tokenised(cell, "test"),  # type: ignore[misc]
            losses=[float(entry["loss"]) for entry in history],
            stop=tokenizer_of(cell).chat_stop if cell.dataset.template == "chat" else None,
        )
        for name, unit in units.items():
            with computed_in(model, "fp32" if name in WITHOUT_MODEL else cell.evaluate.precision):
                found = measures.measure(
                    [name], subject, evaluate=cell.evaluate, execution=cell.execution
                )
            yield from (replace(one, score_key=unit.key) for one in found)


def _grouped(wanted: Sequence[Wanted]) -> Iterator[tuple[Cell, ModelFiles, dict[str, Unit]]]:
    """Yield each cell, its model's files and the units that it is the first to ask for, by name."""
    groups: dict[int, tuple[Cell, ModelFiles, dict[str, Unit]]] = {}
    for one in wanted:
        group = groups.setdefault(id(one.cell), (one.cell, one.files, {}))
        group[2][one.unit.name] = one.unit
    yield from groups.values()

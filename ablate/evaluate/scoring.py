"""What a run is to be scored on, carried out: benchmarks, held-out loss per role, measures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ablate.config.schema import Cell
from ablate.evaluate import harness, heldout, measures
from ablate.evaluate.scores import TaskScore
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import Unit
from ablate.models.files import ModelFiles
from ablate.models.load import device_of, load, load_tokenizer
from ablate.results.log import say


@dataclass(frozen=True, slots=True)
class Wanted:
    """One unit to score, a cell that asks for it and the files of the cell's base model."""

    cell: Cell
    unit: Unit
    files: ModelFiles


def ready(wanted: Sequence[Wanted]) -> None:
    """Load the benchmarks of `wanted` and build their requests, so that scoring cannot fail there.

    Raises:
        UserError: a benchmark's data cannot be had.
    """
    for cell, files, units in _grouped([one for one in wanted if one.unit.kind == "task"]):
        chat = cell.dataset.template == "chat"
        tokenizer = load_tokenizer(files.folder, cell.model.chat_template)
        harness.prepare(replace(cell.evaluate, tasks=tuple(units)), tokenizer, chat=chat)


def score(
    model: nn.Module, history: list[dict[str, Any]], wanted: Sequence[Wanted]
) -> list[TaskScore]:
    """Return the scores of `model` for every wanted unit, each with its score key.

    Args:
        model: the trained model, or the untouched base.
        history: the course of its training, for measures of that.
        wanted: what to score, each with a cell that asks for it.
    """
    found: list[TaskScore] = []
    for kind, scorer in (("task", _tasks), ("heldout", _heldout), ("measure", _measures)):
        units = [one for one in wanted if one.unit.kind == kind]
        for one in scorer(model, history, units):
            found.append(one)
            say(f"{one.task} {one.metric}: {one.value}")
    return found


def _tasks(model: nn.Module, history: object, wanted: Sequence[Wanted]) -> Iterator[TaskScore]:
    for cell, files, units in _grouped(wanted):
        asked = replace(cell.evaluate, tasks=tuple(units))
        tokenizer = load_tokenizer(files.folder, cell.model.chat_template)
        chat = cell.dataset.template == "chat"
        found = harness.score(model, tokenizer, asked, execution=cell.execution, chat=chat)
        yield from (replace(one, score_key=units[one.asked].key) for one in found)


def _heldout(model: nn.Module, history: object, wanted: Sequence[Wanted]) -> Iterator[TaskScore]:
    for one in wanted:
        cell, unit = one.cell, one.unit
        part = tokenised(cell, unit.name)
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
            heldout=tokenised(cell, "test"),
            losses=[float(entry["loss"]) for entry in history],
        )
        found = measures.measure(
            list(units), subject, evaluate=cell.evaluate, execution=cell.execution
        )
        yield from (replace(one, score_key=units[one.asked].key) for one in found)


def _grouped(wanted: Sequence[Wanted]) -> Iterator[tuple[Cell, ModelFiles, dict[str, Unit]]]:
    """Yield each cell, its model's files and the units that it is the first to ask for, by name."""
    groups: dict[int, tuple[Cell, ModelFiles, dict[str, Unit]]] = {}
    for one in wanted:
        group = groups.setdefault(id(one.cell), (one.cell, one.files, {}))
        group[2][one.unit.name] = one.unit
    yield from groups.values()

"""Trains the runs of several cells side by side, and lets them be scored side by side."""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ablate.adapters import build, optimizers, registry
from ablate.adapters.method import load_attribute
from ablate.config.schema import Cell, Precision
from ablate.evaluate.lanes import Lanes, active
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import identify
from ablate.models.gpu import lost_device
from ablate.models.load import device_of, load
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.telling import Telling
from ablate.training import stop
from ablate.training.checkpoints.keeper import Checkpoints, checkpoints
from ablate.training.history import Diverged, Result
from ablate.training.lanes import loop
from ablate.training.lanes.layers import Kind
from ablate.training.lanes.stack import Stack, shell
from ablate.training.regularisation.dropout import draws
from ablate.training.room import out_of_memory


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model, its course, and the base that it shares with others, with its kind there."""

    model: nn.Module
    course: Result | Diverged
    base: nn.Module
    kind: Kind


def train_beside(
    cells: Mapping[str, Cell], *, folder: Callable[[str], Path] | None = None
) -> dict[str, Trained]:
    """Return the trained models of cells of one group of `experiment.lanes`, by their keys.

    Where memory runs out each half of them is trained for itself.

    Args:
        cells: by their keys.
        folder: from a key to the folder of that run's checkpoints; without it there are none.

    Raises:
        TrainingStopped: it was asked to stop, and did after a step.
        ValueError: the base draws dropout, which would be shared by all lanes.
    """
    cell = next(iter(cells.values()))
    device = device_of(cell.execution.device)
    torch.set_num_threads(cell.execution.threads)
    base = load(identify(cell).files, cell.base_precision, device=device)
    if draws(base):
        raise ValueError(f"model={cell.model.name} has dropout, so its cells train alone")
    lanes = {
        key: _lane(base, one, key, _checkpoints(one, key, folder)) for key, one in cells.items()
    }
    try:
        with stop.stopping_on_signals():
            courses = loop.train(base, list(lanes.values()), execution=cell.execution)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        courses = None
    if courses is None:  # outside the handler, so that what the failed lanes held is free
        lanes.clear()
        torch.cuda.empty_cache()
        keys = list(cells)
        if len(keys) == 1:
            return {}
        half = len(keys) // 2
        print(f"out of memory: {len(keys)} cells train in two parts", file=sys.stderr)
        parts = ({key: cells[key] for key in some} for some in (keys[:half], keys[half:]))
        return {k: one for part in parts for k, one in train_beside(part, folder=folder).items()}
    return {
        key: Trained(lane.model, course, base, lane.kind)
        for (key, lane), course in zip(lanes.items(), courses, strict=True)
    }


def _checkpoints(cell: Cell, key: str, folder: Callable[[str], Path] | None) -> Checkpoints | None:
    return checkpoints(cell.execution, folder(key)) if folder else None


def _lane(base: nn.Module, cell: Cell, key: str, kept: Checkpoints | None) -> loop.Lane:
    streams, data = Streams(cell.seed, cell.sham), tokenised(cell, "train")
    usual, method = cell.optimizer.kind == "adamw", registry.method(cell.adapter)
    own = copy.deepcopy(base) if method.trains_base else shell(base)
    telling = Telling(beside=key)
    return loop.Lane(
        model=build.apply(own, cell, streams=streams, data=data),
        kind=load_attribute(method.lanes),
        data=data,
        settings=cell.train,
        objective=objective_of(cell),
        streams=streams,
        make_optimizer=None if usual else optimizers.maker(cell.optimizer),
        checkpoints=kept,
        tick=telling.tick,
        tell=telling.tell,
    )


@contextmanager
def scored_beside(
    runs: Mapping[str, Sequence[Any]], trained: Mapping[str, Trained]
) -> Iterator[None]:
    """Score side by side, inside the block, what was trained side by side and is asked the same.

    Args:
        runs: of every key the configurations of the cells that are names of the run, as plain data.
        trained: what `train_beside` returned, by key.
    """
    groups: dict[tuple[int, str], list[Trained]] = {}
    for key, one in trained.items():
        asked = {json.dumps(cell["evaluate"]) for cell in runs[key]}
        if not isinstance(one.course, Diverged) and len(asked) == 1:
            groups.setdefault((id(one.base), asked.pop()), []).append(one)
    with ExitStack() as stack:
        for (_, asked_of), some in groups.items():
            if len(some) > 1 and (lanes := _stood(some, json.loads(asked_of)["precision"])):
                stack.enter_context(active(lanes))
        yield


def _stood(some: Sequence[Trained], precision: Precision) -> Lanes | None:
    """Return the models stacked on their base; None where that fails."""
    try:
        stack = Stack(some[0].base, [one.model for one in some], [one.kind for one in some])
        stack.settle()
        return Lanes(stack.model, [some[number].model for number in stack.order], precision)
    except Exception as error:  # each is scored alone
        if lost_device(error):
            raise
        text = " ".join(str(error).split())
    print(f"{len(some)} cells are scored one after another: {text}", file=sys.stderr)
    torch.cuda.empty_cache()  # out here the error is gone, and with it what it held
    return None

"""Trains the runs of several cells side by side, before each is scored and recorded."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ablate.adapters import build, optimizers, registry
from ablate.adapters.method import load_attribute
from ablate.config.schema import Cell
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import identify
from ablate.models.load import device_of, load
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training.history import Diverged, Result
from ablate.training.lanes import loop
from ablate.training.lanes.stack import shell
from ablate.training.regularisation.dropout import draws
from ablate.training.room import out_of_memory

Trained = tuple[nn.Module, Result | Diverged]  # a trained model and its course


def train_beside(cells: Mapping[str, Cell]) -> dict[str, Trained]:
    """Return the trained models of cells of one group of `experiment.lanes`, by their keys.

    Where memory runs out each half of them is trained for itself.

    Raises:
        ValueError: the base draws dropout, which would be shared by all lanes.
    """
    cell = next(iter(cells.values()))
    device = device_of(cell.execution.device)
    torch.set_num_threads(cell.execution.threads)
    base = load(identify(cell).files, cell.base_precision, device=device)
    if draws(base):
        raise ValueError(f"model={cell.model.name} has dropout, so its cells train alone")
    lanes = {key: _lane(base, one) for key, one in cells.items()}
    try:
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
        return _parts(cells, [keys[:half], keys[half:]])
    return {
        key: (lane.model, course)
        for (key, lane), course in zip(lanes.items(), courses, strict=True)
    }


def _parts(cells: Mapping[str, Cell], parts: Sequence[Sequence[str]]) -> dict[str, Trained]:
    return {
        key: trained
        for keys in parts
        for key, trained in train_beside({key: cells[key] for key in keys}).items()
    }


def _lane(base: nn.Module, cell: Cell) -> loop.Lane:
    streams, data = Streams(cell.seed, cell.sham), tokenised(cell, "train")
    usual, method = cell.optimizer.kind == "adamw", registry.method(cell.adapter)
    own = copy.deepcopy(base) if method.trains_base else shell(base)
    return loop.Lane(
        model=build.apply(own, cell, streams=streams, data=data),
        kind=load_attribute(method.lanes),
        data=data,
        settings=cell.train,
        objective=objective_of(cell),
        streams=streams,
        make_optimizer=None if usual else optimizers.maker(cell.optimizer),
    )

"""All that a run under way is made of, as a tree that a checkpoint holds.

What is not in it is made again from the cell before training goes on: the base, the adapter at its
start, the order of the rows, the hooks. So a snapshot has, of the model, what trains or was changed
since the start, and beside it what steps leave behind: moments, masters, schedule, states of random
generators, what hooks remember, the history.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ablate.training.distributed import gathered, process, processes
from ablate.training.history import Result
from ablate.training.hooks import Hooks, Steps
from ablate.training.room import Room, generators

PAGED = ("state1", "state2")  # bitsandbytes' names of the two moments
ROOM = ("tokens", "used", "halved")  # of `Room`, what a run finds out


class Unfit(Exception):
    """A snapshot that is of another run, or of another version of the code."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, between two steps."""

    stage: int = 0  # the number of the training pass
    done: int = 0  # steps taken of it
    taken: int = 0  # steps taken of all


class Underway:
    """A run under way: what its snapshots are made of, and what they are read into."""

    def __init__(
        self,
        model: nn.Module,
        steps: Steps,
        hooks: Hooks,
        *,
        permute: np.random.Generator,
        room: Room,
        result: Result,
        draws: bool = True,
    ) -> None:
        """Note the tensors of `model`, which has not been trained yet.

        Where the run draws nothing from torch's global generators (`draws` is False), they are left
        as they are when it goes on.
        """
        self.model, self.hooks, self._rows, self._drawn = model, hooks, _digest(steps), draws
        self.permute, self.room, self.result = permute, room, result
        self._begun = {name: (t, t._version) for name, t in _tensors(model)}

    def snapshot(self, optimizer: Any, schedule: Any, place: Progress, device: torch.device) -> Any:
        """Return the tree of a snapshot between two steps.

        Args:
            optimizer: of the training pass, not accelerate's.
            schedule: of the training pass.
            place: between which steps.
            device: that trains.
        """
        draws = [g.get_state() for g in generators(device, self.hooks.draws)]
        if device.type == "cuda":  # moments in memory of the host may still be written
            torch.cuda.synchronize(device)
        return {
            "place": dataclasses.asdict(place),
            "device": device.type,
            "rows": self._rows,
            "model": dict(self._changed()),
            "optimizer": _read_optimizer(optimizer, self.model),
            "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
            "draws": draws if processes() == 1 else gathered(draws),  # of every process
            "processes": processes(),
            "permute": self.permute.bit_generator.state,
            "hooks": [memory.read(self.model) for memory in self.hooks.memories],
            "room": {name: getattr(self.room, name) for name in ROOM},
            "result": dataclasses.asdict(self.result),
        }

    def _changed(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that train or are not what they were at the start."""
        for name, tensor in _tensors(self.model):
            before, version = self._begun.get(name, (None, 0))
            if tensor.requires_grad or tensor is not before or tensor._version != version:
                yield name, tensor

    def check(self, tree: Any, device: torch.device) -> None:
        """Check that a snapshot can be read into this run.

        Raises:
            Unfit: it cannot; nothing was changed.
        """
        own = dict(_tensors(self.model))
        trained = {name for name, tensor in own.items() if tensor.requires_grad}
        if tree["device"] != device.type:
            raise Unfit(f"is of a run on {tree['device']}, not on {device.type}")
        if tree.get("processes", 1) != processes():
            raise Unfit(f"is of a run on {tree['processes']} devices, not on {processes()}")
        if tree["rows"] != self._rows:
            raise Unfit("is of other rows")
        if not trained <= tree["model"].keys() <= own.keys():
            raise Unfit("has other tensors than the model")
        for name in trained:
            if tree["model"][name].shape != own[name].shape:
                raise Unfit(f"has another shape of {name} than the model")
        if len(tree["hooks"]) != len(self.hooks.memories):
            raise Unfit("is of other training hooks")

    @torch.no_grad()
    def restore(self, tree: Any, optimizer: Any, schedule: Any, device: torch.device) -> None:
        """Set the run to a snapshot; `optimizer` and `schedule` are new."""
        own = dict(_tensors(self.model))
        for name, tensor in tree["model"].items():
            if own[name].shape == tensor.shape:
                own[name].copy_(tensor)
            else:  # a buffer that has grown
                owner, _, last = name.rpartition(".")
                self.model.get_submodule(owner)._buffers[last] = tensor
        _write_optimizer(tree["optimizer"], optimizer, self.model)
        schedule.__dict__.update(tree["schedule"])
        if self._drawn:
            draws = tree["draws"] if processes() == 1 else tree["draws"][process()]
            used = generators(device, self.hooks.draws)
            for generator, state in zip(used, draws, strict=True):
                generator.set_state(state)
        self.permute.bit_generator.state = tree["permute"]
        for memory, held in zip(self.hooks.memories, tree["hooks"], strict=True):
            memory.write(self.model, held)
        for holder, values in ((self.room, tree["room"]), (self.result, tree["result"])):
            for name, value in values.items():
                setattr(holder, name, value)
        self.result.resumed = [*self.result.resumed, tree["place"]["taken"]]


def _digest(steps: Steps) -> str:
    """Return what tells the rows of a run's steps from those of another."""
    found = hashlib.sha256()
    for rows in steps:
        found.update(np.int64(len(rows)).tobytes() + rows.tobytes())
    return found.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


# --- optimizers, whose own `load_state_dict` would give moments the precision of their weights


def _read_optimizer(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    params = _params(optimizer)
    numbers = {id(p): str(i) for i, p in enumerate(params)}
    own = {id(p) for p in model.parameters()}
    state = {numbers.get(id(key), key): value for key, value in optimizer.state.items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return {
        "masters": {str(i): p for i, p in enumerate(params) if id(p) not in own},
        "state": state,
        "groups": groups,
        "draws": [generator.get_state() for generator in _draws(optimizer)],
    }


def _write_optimizer(tree: Any, optimizer: Any, model: nn.Module) -> None:
    params = _params(optimizer)
    for number, master in tree["masters"].items():
        params[int(number)].copy_(master)
    for key, value in tree["state"].items():
        place = params[int(key)] if key.isdecimal() else key
        laid = {name: _laid(entry, place) for name, entry in value.items()}
        optimizer.state[place] = _paged(laid, place, optimizer)
    for group, values in zip(optimizer.param_groups, tree["groups"], strict=True):
        group.update(values)
    for generator, state in zip(_draws(optimizer), tree["draws"], strict=True):
        generator.set_state(state)


def _laid(entry: Any, place: Any) -> Any:
    """Return a moment in the layout of its parameter, as fused optimizers take it to be.

    Beside others (`training.lanes`) the parameters of a cell may lie in another order than alone.
    """
    alike = isinstance(place, Tensor) and isinstance(entry, Tensor) and entry.shape == place.shape
    if not alike or entry.stride() == place.stride():
        return entry
    return torch.empty_like(place, dtype=entry.dtype, device=entry.device).copy_(entry)


def _paged(state: dict[str, Any], place: Any, optimizer: Any) -> dict[str, Any]:
    """Return the state of a parameter in memory that moves to the CPU, where bitsandbytes' is."""
    if not getattr(optimizer, "is_paged", False):
        return state
    return {
        name: optimizer.get_state_buffer(place, dtype=value.dtype).copy_(value)
        if name in PAGED
        else value
        for name, value in state.items()
    }


def _params(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _draws(optimizer: Any) -> Sequence[Generator]:
    """Return the generators that an optimizer draws from, if it does."""
    found: Sequence[Generator] = getattr(optimizer, "draws", ())
    return found

"""Checkpoints of lanes: each cell has its own, the same beside others as alone.

A lane's AdamW steps on rows in which all trained numbers of the lane lie (`stack.Form`). Its
checkpoint has the moments by tensor, as an optimizer of the cell alone would have them, so that a
cell may go on alone, or beside other cells than before. It then ends as it would have, up to the
rounding by which lanes differ from cells alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate.config.schema import Train
from ablate.training import optim
from ablate.training.checkpoints.keeper import Checkpoints, Intervals, Keeper
from ablate.training.checkpoints.snapshot import Progress, Underway
from ablate.training.history import Result
from ablate.training.hooks import NO_HOOKS
from ablate.training.lanes.stack import RowPlace
from ablate.training.ledger import Ledger
from ablate.training.room import Room

STEP = "step"  # of an optimizer's state: a number, where the other entries are numbers by weight


@dataclass(slots=True)
class Saved:
    """The checkpoints of one lane.

    Attributes:
        model: of the lane.
        settings: of its optimizer.
        optimizer: that steps on the lane's rows, or on its model where `places` is None.
        places: of the model's trained tensors in the rows.
        kept: after how many steps the last checkpoint was written or read.
    """

    model: nn.Module
    settings: Train
    optimizer: Any
    schedule: Any
    places: Sequence[RowPlace] | None
    keeper: Keeper
    underway: Underway
    device: torch.device
    kept: int = 0

    def restore(self) -> int:
        """Set the lane to its newest checkpoint; return how many steps it has, 0 without one."""
        tree = self.keeper.newest()
        if tree is None:
            return 0
        alone = self._alone()
        self.underway.restore(tree, alone, self.schedule, self.device)
        if self.places is not None:
            _into_rows(alone, self.optimizer, self.places)
        self.kept = int(tree["place"]["done"])
        return self.kept

    def write(self, taken: int) -> bool:
        """Write a checkpoint after so many steps, unless there is one of them."""
        if taken == self.kept:
            return True
        alone = self._alone()
        if self.places is not None:
            _from_rows(self.optimizer, alone, self.places)
        seconds = self.underway.result.train_seconds
        written = self.keeper.write(Progress(0, taken, taken), alone, self.schedule, seconds)
        self.kept = taken if written else self.kept
        return written

    def _alone(self) -> Any:
        """Return the optimizer that the cell has alone; where the lane has the same, that one."""
        return self.optimizer if self.places is None else optim.optimizer(self.model, self.settings)


def saved(
    asked: Checkpoints | None,
    model: nn.Module,
    settings: Train,
    *,
    steps: Sequence[np.ndarray],
    permute: np.random.Generator,
    optimizer: Any,
    schedule: Any,
    places: Sequence[RowPlace] | None,
    result: Result,
    ledger: Ledger,
    device: torch.device,
) -> Saved:
    """Return the checkpoints of a lane that has not begun; without `asked` there are none."""
    underway = Underway(
        model,
        list(steps),
        NO_HOOKS,
        permute=permute,
        room=Room(None, may_shrink=False),  # what fits depends on the lanes that are beside it
        result=result,
        draws=False,
    )
    keeper = Keeper(asked, underway, ledger, device)
    return Saved(model, settings, optimizer, schedule, places, keeper, underway, device)


class SavedTogether:
    """When the checkpoints of lanes that train side by side are written."""

    def __init__(self, lanes: Sequence[Saved]) -> None:
        """Begin with the first interval, the shortest that one of them asks for."""
        asked = [lane.keeper.asked.minutes for lane in lanes if lane.keeper.asked]
        self._intervals = Intervals(min(asked, default=None))

    def after_step(self, writes: Sequence[Callable[[], bool]]) -> float:
        """Write checkpoints of lanes if it is time; return how many seconds that took.

        Args:
            writes: writes the checkpoint of a lane and returns whether that could be done; of all
                that took the step, those that have just ended too.

        Raises:
            TrainingStopped: the process was asked to stop.
        """

        def write() -> str:
            kept = sum([one() for one in writes])
            return f"stopped; {kept} of {len(writes)} cells side by side go on from a checkpoint"

        return self._intervals.after_step(write)


def _rows(optimizer: Any) -> list[Tensor]:
    """Return what an optimizer of rows steps on."""
    return [row for group in optimizer.param_groups for row in group["params"]]


def _pairs(alone: Any, places: Sequence[RowPlace]) -> dict[int, Tensor]:
    """Return, by the id of a model's parameter, what its own optimizer steps on: it or a master."""
    masters = {id(weight): master for weight, master, _ in getattr(alone, "pairs", ())}
    return {id(p.parameter): masters.get(id(p.parameter), p.parameter) for p in places}


@torch.no_grad()
def _from_rows(optimizer: Any, alone: Any, places: Sequence[RowPlace]) -> None:
    """Give `alone` the moments, steps and rates of an optimizer of rows."""
    rows, own = _rows(optimizer), _pairs(alone, places)
    for place in places:
        stepped = own[id(place.parameter)]
        if stepped is not place.parameter:
            stepped.copy_(place.of(rows))
        state = optimizer.state[rows[place.row]]
        alone.state[stepped] = {
            name: value.clone()
            if name == STEP
            else place.of([optimizer.state[row][name] for row in rows]).clone()
            for name, value in state.items()
        }
    _take_rates(alone, optimizer)


@torch.no_grad()
def _into_rows(alone: Any, optimizer: Any, places: Sequence[RowPlace]) -> None:
    """Give an optimizer of rows the moments, steps and rates of `alone`."""
    rows, own = _rows(optimizer), _pairs(alone, places)
    for place in places:
        stepped, row = own[id(place.parameter)], rows[place.row]
        place.of(rows).copy_(stepped)
        for name, value in alone.state[stepped].items():
            if name == STEP:
                optimizer.state[row][name] = value.clone()
            else:
                for other in rows:
                    optimizer.state[other].setdefault(name, torch.zeros_like(other))
                place.of([optimizer.state[other][name] for other in rows]).copy_(value)
    _take_rates(optimizer, alone)


def _take_rates(optimizer: Any, other: Any) -> None:
    """Give the groups of an optimizer the learning rates of another's."""
    for group, known in zip(optimizer.param_groups, other.param_groups, strict=True):
        group.update({name: known[name] for name in ("lr", "initial_lr") if name in known})

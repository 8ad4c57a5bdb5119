"""Models that were trained side by side, scored side by side.

What one of them is asked all of them are asked at once, in one forward pass over the rows of all;
the others find it answered when they come to it. Nothing else of scoring knows of lanes, so each
model has its own scores, record and failures. Where a question cannot be put to all of them at
once each is asked alone.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ablate.config.schema import Precision
from ablate.evaluate.precision import computed_in
from ablate.models.gpu import lost_device
from ablate.results.log import say

T = TypeVar("T")
# Tokens of all lanes in a forward pass: fewer than `passes.TOKENS` where more leave the caches.
MOST = {"cpu": 2700}


class Lanes:
    """The models of all lanes, and one model that computes what all of them would.

    Attributes:
        model: the stacked one; its rows are those of all lanes, lane 0 first.
        count: how many lanes there are.
        together: whether all are asked at once; False once that failed.
    """

    def __init__(
        self, model: nn.Module, models: Sequence[nn.Module], precision: Precision = "fp32"
    ) -> None:
        """Take the stacked model, the models by lane, and the precision that all are scored in."""
        self.model, self.count = model, len(models)
        self._models, self._precision = list(models), precision
        self._lane = {id(one): lane for lane, one in enumerate(models)}
        self._found: dict[Hashable, Sequence[Any]] = {}  # by lane
        self._owed = [0.0] * len(models)  # seconds that other lanes spent for it, less its own
        self.together = True

    def ask(self, model: nn.Module, question: Hashable, run: "Run[T]") -> T:
        """Return what `run` finds for the model of a lane; see `beside`."""
        lane = self._lane[id(model)]
        if question not in self._found and self.together:
            started = time.perf_counter()
            answers = self._all(run)
            self._share(lane, time.perf_counter() - started)
            self._found[question] = answers
        answers = self._found.get(question, ())
        return answers[lane] if answers else run(model, 1)[0]

    def _all(self, run: "Run[T]") -> Sequence[T]:
        """Return what `run` finds for every lane; nothing, then and later, where it fails."""
        try:
            with computed_in(self.model, self._precision):
                return run(self.model, self.count)
        except Exception as error:  # whatever fails for a model alone fails there, and is told
            if lost_device(error):
                raise
            text = " ".join(str(error).split())
            say(f"{self.count} cells are scored one after another: {text}")
        self.together = False
        if torch.cuda.is_available():  # out here the error is gone, and with it what it held
            torch.cuda.empty_cache()
        return ()

    def _share(self, lane: int, seconds: float) -> None:
        share = seconds / self.count
        self._owed = [owed + share for owed in self._owed]
        self._owed[lane] -= seconds

    def settle(self, model: nn.Module) -> float:
        """Return the seconds that scoring a lane took beyond those its model was at work."""
        lane = self._lane[id(model)]
        seconds, self._owed[lane] = self._owed[lane], 0.0
        return seconds


@dataclass(frozen=True, slots=True, eq=False)
class Same:
    """Part of a question: equal for one and the same object."""

    thing: object

    def __eq__(self, other: object) -> bool:
        """Return whether both stand for one object."""
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        """Return the hash of the object's identity."""
        return id(self.thing)


Run = Callable[[nn.Module, int], Sequence[T]]  # model and lanes -> what was found, by lane
_ACTIVE: dict[int, Lanes] = {}  # by the id of a lane's model


@contextmanager
def active(lanes: Lanes) -> Iterator[None]:
    """Score the models of `lanes` side by side inside the block."""
    keys = dict.fromkeys(map(id, lanes._models), lanes)
    _ACTIVE.update(keys)
    try:
        yield
    finally:
        for key in keys:
            _ACTIVE.pop(key, None)


def beside(model: nn.Module, question: Hashable, run: Run[T]) -> T:
    """Return what `run` finds for `model`: of it alone or, where it has a lane, of all at once.

    Args:
        model: what is scored.
        question: what is asked; equal for two models only if `run` does the same for both.
        run: takes a model and how many lanes its rows are of, and returns what it finds by lane.
    """
    lanes = _ACTIVE.get(id(model))
    return run(model, 1)[0] if lanes is None else lanes.ask(model, question, run)


def count(model: nn.Module) -> int:
    """Return how many models are scored side by side with `model`, itself included."""
    lanes = _ACTIVE.get(id(model))
    return lanes.count if lanes and lanes.together else 1


def owed(model: nn.Module) -> float:
    """Return the seconds that scoring `model` took beyond those it was at work; see `settle`."""
    lanes = _ACTIVE.get(id(model))
    return 0.0 if lanes is None else lanes.settle(model)


def share(tokens: int, lanes: int, device: torch.device) -> int:
    """Return the tokens of one lane where a forward pass of all may have `tokens`."""
    if lanes == 1:
        return tokens
    return max(1, min(tokens, MOST.get(device.type, tokens)) // lanes)

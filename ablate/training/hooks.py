"""The five places where a method may act during training, and what it is shown there.

A stock method needs none. Orthogonality penalties and distances to the base are `extra_loss`,
gradient projections `after_backward`, rank allocation and restarts `after_step`, methods that train
more than once `stages`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ablate.training.loss import Weighed

Steps = Sequence[np.ndarray]  # the rows of each optimizer step


@dataclass(frozen=True, slots=True)
class Moment:
    """What a hook may see and touch."""

    step: int  # optimizer steps done before this one
    steps: int  # of this stage
    model: nn.Module
    optimizer: torch.optim.Optimizer
    work: Weighed  # the micro-batch at hand; the last one in after_backward and after_step
    divisor: float  # W: a per-token term is to be summed and divided by it
    last: bool  # whether this is the step's last micro-batch: the place for a penalty on weights


def _nothing(moment: Moment) -> None:
    """Do nothing."""


def _no_loss(moment: Moment) -> Tensor | float:
    return 0.0


def _one_stage(model: nn.Module, steps: Steps) -> Iterable[Steps]:
    yield steps


@dataclass(frozen=True, slots=True)
class Hooks:
    """The five places where a method may act during training; each default does nothing.

    extra_loss: a term added to the objective at each micro-batch; summed over a step's
        micro-batches and averaged over devices.
    after_backward: with the step's whole gradient in place, before clipping.
    after_step: after the optimizer moved, the gradients still in place.
    stages: from the model and all steps, the steps of each pass in turn; a generator may change the
        model between two of them. Every stage has its own optimizer and schedule.
    before_forward: with a micro-batch at hand that the model is about to read.
    """

    extra_loss: Callable[[Moment], Tensor | float] = _no_loss
    after_backward: Callable[[Moment], None] = _nothing
    after_step: Callable[[Moment], None] = _nothing
    stages: Callable[[nn.Module, Steps], Iterable[Steps]] = _one_stage
    before_forward: Callable[[Moment], None] = _nothing


NO_HOOKS = Hooks()


def combine(*several: Hooks) -> Hooks:
    """Return hooks that act as all of `several`, one after the other.

    Raises:
        ValueError: more than one of them brings its own stages, which cannot be interleaved.
    """
    staged = [one.stages for one in several if one.stages is not _one_stage]
    if len(staged) > 1:
        raise ValueError("only one method of a cell may train in stages")

    def extra_loss(moment: Moment) -> Tensor | float:
        return sum((one.extra_loss(moment) for one in several), start=0.0)

    def after_backward(moment: Moment) -> None:
        for one in several:
            one.after_backward(moment)

    def after_step(moment: Moment) -> None:
        for one in several:
            one.after_step(moment)

    def before_forward(moment: Moment) -> None:
        for one in several:
            one.before_forward(moment)

    stages = staged[0] if staged else _one_stage
    return Hooks(extra_loss, after_backward, after_step, stages, before_forward)

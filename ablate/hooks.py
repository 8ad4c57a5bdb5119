"""The four places where a method may act during training, and what it is shown there.

A stock method needs none. Orthogonality penalties and distances to the base are `extra_loss`,
gradient projections `after_backward`, rank allocation and restarts `after_step`, methods that train
more than once `stages`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ablate.loss import Weighed

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
    """The four places where a method may act during training; each default does nothing.

    extra_loss: a term added to the objective at each micro-batch; summed over a step's
        micro-batches and averaged over devices.
    after_backward: with the step's whole gradient in place, before clipping.
    after_step: after the optimizer moved, the gradients still in place.
    stages: from the model and all steps, the steps of each pass in turn; a generator may change the
        model between two of them. Every stage has its own optimizer and schedule.
    """

    extra_loss: Callable[[Moment], Tensor | float] = _no_loss
    after_backward: Callable[[Moment], None] = _nothing
    after_step: Callable[[Moment], None] = _nothing
    stages: Callable[[nn.Module, Steps], Iterable[Steps]] = _one_stage


NO_HOOKS = Hooks()

"""The five points of the training loop at which a method may act, and what it gets there.

Most methods need none. Orthogonality penalties and distances to the base are an `extra_loss`,
gradient projections use `after_backward`, rank allocation and restarts `after_step`, and methods
that train in several passes `stages`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ablate.training.weighed import Weighed

Steps = Sequence[np.ndarray]  # the rows of each optimizer step


@dataclass(frozen=True, slots=True)
class StepContext:
    """The state of the training loop that a hook may read and change."""

    step: int  # number of optimizer steps of this stage before this one
    steps: int  # number of optimizer steps of this stage
    model: nn.Module
    optimizer: torch.optim.Optimizer
    work: Weighed  # the current micro-batch; the step's last one in after_backward and after_step
    divisor: float  # W of `training.loss`: a sum over tokens is divided by it
    last: bool  # whether this is the step's last micro-batch, where penalties on weights are added


def _nothing(context: StepContext) -> None:
    """Do nothing."""


def _no_loss(context: StepContext) -> Tensor | float:
    return 0.0


def _one_stage(model: nn.Module, steps: Steps) -> Iterable[Steps]:
    yield steps


@dataclass(frozen=True, slots=True)
class Memory:
    """What a hook keeps from one step to the next: how checkpoints read it and set it again.

    read: returns it as a tree of dictionaries, lists, plain values and tensors.
    write: sets it to such a tree, after the model's tensors were set; the hook is as it was made.
    """

    read: Callable[[nn.Module], Any]
    write: Callable[[nn.Module, Any], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The five points at which a method may act during training; each does nothing by default.

    extra_loss: returns a term of the loss of each micro-batch, (); the terms are summed over the
        step's micro-batches and averaged over devices.
    after_backward: called with the step's complete gradient, before clipping.
    after_step: called after the optimizer's step, before the gradients are cleared.
    stages: from the model and all steps, yields the steps of each training pass; it may change the
        model between two passes. Every pass has its own optimizer and schedule.
    before_forward: called before the forward pass of each micro-batch.
    draws: the generators that `before_forward` and `extra_loss` draw from. A step that is taken
        again, since memory ran out, starts from the states that they had before it.
    memories: what the hooks keep between steps, beside the states of `draws`.
    """

    extra_loss: Callable[[StepContext], Tensor | float] = _no_loss
    after_backward: Callable[[StepContext], None] = _nothing
    after_step: Callable[[StepContext], None] = _nothing
    stages: Callable[[nn.Module, Steps], Iterable[Steps]] = _one_stage
    before_forward: Callable[[StepContext], None] = _nothing
    draws: Sequence[Generator] = ()
    memories: Sequence[Memory] = ()


NO_HOOKS = Hooks()


def weight_penalty(penalty: Callable[[nn.Module], Tensor | float]) -> Hooks:
    """Return hooks that add `penalty` of the model to the loss, once per step and in fp32.

    In 16 bits, which autocast would choose, the products of nearly orthogonal factors lose what
    they differ by from the identity.
    """

    def extra_loss(context: StepContext) -> Tensor | float:
        if not context.last:
            return 0.0
        device = next(context.model.parameters()).device.type
        with torch.autocast(device, enabled=False):
            return penalty(context.model)

    return Hooks(extra_loss=extra_loss)


def combine(*several: Hooks) -> Hooks:
    """Return hooks that call those of all of `several`, in order; extra losses are summed.

    Raises:
        ValueError: more than one of them defines stages, which cannot be interleaved.
    """
    staged = [one.stages for one in several if one.stages is not _one_stage]
    if len(staged) > 1:
        raise ValueError("only one method of a cell may train in stages")

    def extra_loss(context: StepContext) -> Tensor | float:
        return sum((one.extra_loss(context) for one in several), start=0.0)

    def after_backward(context: StepContext) -> None:
        for one in several:
            one.after_backward(context)

    def after_step(context: StepContext) -> None:
        for one in several:
            one.after_step(context)

    def before_forward(context: StepContext) -> None:
        for one in several:
            one.before_forward(context)

    stages = staged[0] if staged else _one_stage
    draws = [generator for one in several for generator in one.draws]
    memories = [memory for one in several for memory in one.memories]
    return Hooks(extra_loss, after_backward, after_step, stages, before_forward, draws, memories)

"""The one training loop: every cell of every grid, and pretraining, go through it.

A level changes the data, the weights, the model or the settings before the loop. What acts during
training does so through five hooks; the loop has no other branch on a level.

The gradient of an optimizer step is that of `sum u_t loss_t / W`, with W known in advance over all
micro-batches and devices (`training.loss`). Devices average their gradients, so each multiplies its
part by their number; nothing else divides, neither accelerate's accumulation nor a mean of means.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from ablate.config.schema import Execution, Train
from ablate.data import batches
from ablate.data.batches import Batch
from ablate.data.tokenise import Tokenised
from ablate.errors import UserError
from ablate.models.attention import by_segments
from ablate.models.compiled import compiled
from ablate.models.load import checkpointing, device_of
from ablate.objective import Objective, supervised
from ablate.streams import Streams
from ablate.training import layout, optim
from ablate.training.history import Result, shares, step_entry
from ablate.training.hooks import NO_HOOKS, Hooks, StepContext
from ablate.training.loss import TokenLossModel
from ablate.training.weighed import Weighed, weigh


@functools.cache
def process_accelerator(device_type: str) -> Any:
    """Return the process's accelerator for "cpu" or "cuda", built when first needed."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    # Explicit: values that `accelerate launch` sets in the environment would change the objective.
    return Accelerator(
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        cpu=device_type == "cpu",
    )


def train(
    model: Any,
    tokenised: Tokenised,
    settings: Train,
    *,
    objective: Objective,
    streams: Streams,
    execution: Execution,
    hooks: Hooks = NO_HOOKS,
    make_optimizer: optim.Maker | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Result:
    """Train `model` in place on `tokenised` and return the history of the run.

    Args:
        model: a causal language model; its parameters that require a gradient are trained.
        tokenised: the training rows.
        settings: optimizer, schedule, length and batch size.
        objective: the weights of the loss by role, and its normaliser and scope.
        streams: the order of the examples and dropout draw from them; torch's global random state
            is restored.
        execution: device, micro-batch size and layout; they do not change the result.
        hooks: of the adapter and of the regularisers.
        make_optimizer: makes the optimizer; by default AdamW.
        tick: called after each step with the number of steps done and of all steps of the stage.

    Raises:
        UserError: no target has a weight, or no parameter is trained.
        Diverged: a loss or a gradient norm is not finite.
    """
    _check_supervised(tokenised, objective)
    longest = int(tokenised.lengths.max())
    execution, segments = layout.chosen(
        model, objective, execution, settings=settings, longest=longest
    )
    accelerator = process_accelerator(device_of(execution.device).type)
    device = accelerator.device
    steps = batches.order(tokenised, train=settings, generator=streams.numpy("order"))
    permute = streams.numpy("permute")
    make = functools.partial(
        batches.micro_batches,
        tokenised,
        objective=objective,
        execution=execution,
        permute_generator=permute,
    )
    feed = _Feed(make, objective, accelerator)
    result, started = Result(), time.perf_counter()
    dropout = streams.global_torch("dropout", accelerator.process_index, device=device)
    with _training(model, execution, accelerator, segments=segments), dropout:
        for stage, stage_steps in enumerate(hooks.stages(model, steps)):
            optimizer = optim.optimizer(model, settings, make_optimizer)
            wrapped = TokenLossModel(model, label_smoothing=objective.label_smoothing)
            wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
            schedule = optim.schedule(optimizer.optimizer, settings, steps=len(stage_steps))
            params = optim.trainable(wrapped)
            for number, rows in enumerate(stage_steps):
                works, counts = feed(rows)
                divisor = counts[0] or 1.0
                share = shares(len(result.history))
                losses: list[Tensor] = []
                for i, work in enumerate(works, start=1):
                    work = work.to(device)
                    last = i == len(works)
                    context = StepContext(
                        number, len(stage_steps), model, optimizer, work, divisor, last
                    )
                    hooks.before_forward(context)
                    with nullcontext() if last else accelerator.no_sync(wrapped):
                        with autocast(settings, device):
                            loss = wrapped(work, share)
                            extra = hooks.extra_loss(context)
                        accelerator.backward(
                            loss.total * (accelerator.num_processes / divisor) + extra
                        )
                    losses.append(loss.sums_S)
                hooks.after_backward(context)
                norm = float(accelerator.clip_grad_norm_(params, settings.clip or math.inf))
                entry = step_entry(
                    len(result.history) + 1,
                    stage,
                    lr=float(optimizer.param_groups[0]["lr"]),
                    sums=_summed(accelerator, sum(losses)),
                    counts=counts,
                    norm=norm,
                    clip=settings.clip,
                )
                optimizer.step()
                hooks.after_step(context)
                optimizer.zero_grad()
                schedule.step()
                result.add(entry, memory_mb(device))
                if tick:
                    tick(number + 1, len(stage_steps))
    result.train_seconds = time.perf_counter() - started
    return result


class _Feed:
    """Makes this process's micro-batches of an optimizer step, and the counts of the whole step."""

    def __init__(
        self, make: Callable[[np.ndarray], list[Batch]], objective: Objective, accelerator: Any
    ):
        self.make, self.objective, self.accelerator = make, objective, accelerator

    def __call__(self, rows: np.ndarray) -> tuple[list[Weighed], list[float]]:
        """Return this process's micro-batches, and `sums_C` of the step over all processes."""
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        works = [weigh(part, self.objective) for part in self.make(mine if len(mine) else rows[:1])]
        if not len(mine):  # every process must take part in every step's collective calls
            works = [work.silent() for work in works]
        return works, _summed(self.accelerator, sum(work.sums_C for work in works))


def _summed(accelerator: Any, local: Tensor | int) -> list[float]:
    """Return the sum of `local` over all processes."""
    total: list[float] = accelerator.reduce(
        torch.as_tensor(local).to(accelerator.device), "sum"
    ).tolist()
    return total


def _check_supervised(tokenised: Tokenised, objective: Objective) -> None:
    if not supervised(objective, tokenised.summary):
        raise UserError(
            "dataset: no token of its training rows has a weight under this masking mode; "
            "change masking, plw or completion_weight"
        )


def autocast(settings: Train, device: torch.device) -> torch.autocast:
    """Return the context of `train.precision` for a forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


@contextmanager
def _training(
    model: Any, execution: Execution, accelerator: Any, *, segments: bool
) -> Iterator[None]:
    """Run a block with `model` in training mode, its attention and checkpointing as asked for."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    model.train()
    try:
        attention = by_segments(model) if segments else nullcontext()
        recomputed = checkpointing(model, execution.gradient_checkpointing)
        with attention, recomputed, compiled(model, execution.compile):
            yield
    finally:
        _release(accelerator)
        model.eval()


def _release(accelerator: Any) -> None:
    """Remove the accelerator's references to what it prepared, so that the model can be freed."""
    if accelerator.device.type == "cuda":
        accelerator.free_memory()
    else:  # the same without a full garbage collection, which takes 0.2 s per cell
        accelerator._models.clear()
        accelerator._optimizers.clear()


def memory_mb(device: torch.device) -> float:
    """Return the memory in MiB: the peak on a GPU, the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**20

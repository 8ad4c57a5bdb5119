"""The one training loop: every cell of every grid, and pretraining, go through it.

A level changes the data, the weights, the model or the settings before the loop. What acts during
training does so through five hooks; the loop has no other branch on a level. The gradient of a step
is made by `training.passes`. On a GPU the loop waits for nothing: the numbers of a step are written
while the next one is computed.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
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
from ablate.training.checkpoints.keeper import Checkpoints, Keeper
from ablate.training.checkpoints.snapshot import Progress, Underway
from ablate.training.history import Diverged, Entry, Result, shares, step_entry
from ablate.training.hooks import NO_HOOKS, Hooks
from ablate.training.ledger import Ledger, Tell
from ablate.training.loss import TokenLossModel
from ablate.training.passes import Maker, Passes
from ablate.training.room import room
from ablate.training.sharding import over_devices


@functools.cache
def process_accelerator(device_type: str) -> Any:
    """Return the process's accelerator for "cpu" or "cuda", built when first needed."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    # Buffers are equal at the start, and what changes them later does so alike in every process.
    copies = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    # Explicit: values that `accelerate launch` sets in the environment would change the objective.
    return Accelerator(
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[copies],
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
    tell: Tell | None = None,
    checkpoints: Checkpoints | None = None,
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
        tell: called after each step that is written, with the history; on a GPU a step late.
        checkpoints: where the run goes on from, and what is written on the way; by default none.

    Raises:
        TrainingStopped: it was asked to stop, and did after a step.
        UserError: no target has a weight, or no parameter is trained.
        Diverged: a loss or a gradient norm is not finite.
    """
    check_supervised(tokenised, objective)
    longest = int(tokenised.lengths.max())
    execution, segments = layout.chosen(
        model, objective, execution, settings=settings, longest=longest
    )
    accelerator = process_accelerator(device_of(execution.device).type)
    device = accelerator.device
    steps = batches.order(tokenised, train=settings, generator=streams.numpy("order"))
    alone = accelerator.num_processes == 1 and objective.scope != "microbatch"
    space = room(model, execution, settings, longest=longest, may_shrink=alone)
    permute = streams.numpy("permute")
    make = _maker(tokenised, objective, execution, permute)
    passes = Passes(model, make, objective, settings, hooks, accelerator, space)
    result, started = Result(), time.perf_counter()
    ledger = Ledger(result, device, functools.partial(memory_mb, device), tell)
    dropout = streams.global_torch("dropout", accelerator.process_index, device=device)
    underway = Underway(model, steps, hooks, permute=permute, room=space, result=result)
    whole = execution.sharding == "none"
    keeper = Keeper(checkpoints if whole else None, underway, ledger, device)
    saved = keeper.newest()
    place = Progress(**saved["place"]) if saved else Progress()
    with _training(model, execution, accelerator, segments=segments), dropout, _told(ledger):
        for stage, stage_steps in enumerate(hooks.stages(model, steps)):
            if stage < place.stage:
                continue
            wrapped = TokenLossModel(model, objective)
            with over_devices(wrapped, model, accelerator, execution.sharding) as spread:
                made = optim.optimizer(model, settings, make_optimizer)
                optimizer = accelerator.prepare_optimizer(made)
                schedule = optim.schedule(made, settings, steps=len(stage_steps))
                params = optim.trainable(spread)
                if saved:
                    underway.restore(saved, made, schedule, device)
                    started, saved = time.perf_counter() - result.train_seconds, None
                for number in range(place.done if stage == place.stage else 0, len(stage_steps)):
                    rows, at = stage_steps[number], (number, len(stage_steps))
                    passed = passes(spread, optimizer, rows, at, share=shares(place.taken))
                    hooks.after_backward(passed.context)
                    norm = accelerator.clip_grad_norm_(params, settings.clip or math.inf)
                    place = Progress(stage, number + 1, place.taken + 1)
                    entry = functools.partial(
                        _entry,
                        place.taken,
                        stage,
                        lr=float(optimizer.param_groups[0]["lr"]),
                        counts=passed.counts,
                        clip=settings.clip,
                    )
                    ledger.add(torch.cat([passed.sums_S, _scalar(norm, passed.sums_S)]), entry)
                    optimizer.step()
                    hooks.after_step(passed.context)
                    optimizer.zero_grad()
                    schedule.step()
                    if tick:
                        tick(number + 1, len(stage_steps))
                    part = (made, schedule)
                    started += keeper.after_step(place, *part, time.perf_counter() - started)
                ledger.write()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    result.train_seconds = time.perf_counter() - started
    result.micro_batch_tokens, result.out_of_memory = space.used, space.halved
    return result


def _maker(
    tokenised: Tokenised,
    objective: Objective,
    execution: Execution,
    permute: np.random.Generator,
) -> Maker:
    def make(rows: np.ndarray, tokens: int | None) -> list[Batch]:
        return batches.micro_batches(
            tokenised,
            rows,
            objective=objective,
            execution=replace(execution, micro_batch_tokens=tokens),
            permute_generator=permute,
        )

    return make


def _entry(step: int, stage: int, values: list[float], **known: Any) -> Entry:
    return step_entry(step, stage, sums=values[:-1], norm=values[-1], **known)


def _scalar(norm: Any, like: Tensor) -> Tensor:
    """Return a gradient's norm as a vector of one number; a sharded one is gathered."""
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return torch.as_tensor(whole, dtype=like.dtype, device=like.device).reshape(1)


@contextmanager
def _told(ledger: Ledger) -> Iterator[None]:
    """Run a block; an error in it that comes from a step that diverged is told as that."""
    try:
        yield
    except Diverged:
        raise
    except Exception:
        ledger.write()
        raise


def check_supervised(tokenised: Tokenised, objective: Objective) -> None:
    """Check that some target has a weight.

    Raises:
        UserError: none has.
    """
    if not supervised(objective, tokenised.summary):
        raise UserError(
            "dataset: no token of its training rows has a weight under this masking mode; "
            "change masking, plw or completion_weight"
        )


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

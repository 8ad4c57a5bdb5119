"""The training loop of several lanes: what `training.loop` does for one cell, in step for many.

The base runs once over the rows of all lanes. Everything else is each lane's own: its rows and
weights, the divisor of its loss, its clipping, optimizer, schedule and history. A lane whose loss
or gradient is not finite is taken out; no product mixes two lanes, so the others do not notice.

A cell trains in a lane to the same weights as alone, up to rounding.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate.config.schema import Execution, Train
from ablate.data import batches
from ablate.data.tokenise import Tokenised
from ablate.models.load import checkpointing
from ablate.objective import Objective
from ablate.streams import Streams
from ablate.training import optim
from ablate.training.history import Diverged, Result, shares, step_entry
from ablate.training.lanes.layers import Kind
from ablate.training.lanes.loss import lane_losses, stacked
from ablate.training.lanes.stack import Stack
from ablate.training.loop import memory_mb
from ablate.training.passes import autocast
from ablate.training.weighed import Weighed, weigh

# Tokens of all lanes in a forward pass on a CPU: more leave its caches. 16 micro cells train with this
# at 1.45 times the speed of one after another, with whole steps at 1.04 times.
CPU_TOKENS = 2700


@dataclass(frozen=True, slots=True)
class Lane:
    """A cell to train: as the arguments of `training.loop.train`, without hooks.

    `make_optimizer` is None for AdamW.
    """

    model: nn.Module
    kind: Kind  # of its adapter's layers
    data: Tokenised
    settings: Train
    objective: Objective
    streams: Streams
    make_optimizer: optim.Maker | None = None


@dataclass(slots=True)
class _Course:
    """A lane under way."""

    lane: Lane
    steps: list[np.ndarray]
    permute: np.random.Generator
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    result: Result = field(default_factory=Result)
    diverged: Diverged | None = None

    @property
    def rows(self) -> np.ndarray | None:
        """The rows of the next step; None after the last and where it diverged."""
        done = len(self.result.history)
        return None if self.diverged or done == len(self.steps) else self.steps[done]


def train(
    base: nn.Module, lanes: Sequence[Lane], *, execution: Execution
) -> list[Result | Diverged]:
    """Train the models of all lanes in place; return each one's course, or how it diverged.

    Args:
        base: the model on whose `shell`s those of the lanes were built, on its device.
        lanes: cells of one label smoothing and precision, whose adapters change the same layers;
            dropout and hooks have no effect.
        execution: the micro-batch size is that of a lane; rows are padded.
    """
    execution = replace(execution, layout="padded", micro_batch_size=_rows(base, lanes, execution))
    stack = Stack(base, [lane.model for lane in lanes], [lane.kind for lane in lanes])
    every = [
        _course(lanes[number], owned)
        for number, owned in zip(stack.order, stack.owned(), strict=True)
    ]
    courses, numbers = every, stack.order
    try:
        with _training(stack, courses, execution):
            while courses:
                _step(stack, courses, execution)
                left = [i for i, course in enumerate(courses) if course.rows is not None]
                if len(left) < len(courses):
                    stack.keep(left)
                    courses = [courses[i] for i in left]
    finally:
        stack.release()
    found = dict(zip(numbers, every, strict=True))
    return [found[n].diverged or found[n].result for n in range(len(lanes))]


def _rows(base: nn.Module, lanes: Sequence[Lane], execution: Execution) -> int | None:
    """Return the rows of a lane in a forward pass: on a CPU few, where that changes no loss."""
    on_cpu = next(base.parameters()).device.type == "cpu"
    if not on_cpu or any(lane.objective.scope == "microbatch" for lane in lanes):
        return execution.micro_batch_size
    mean = float(lanes[0].data.lengths.mean())
    few = max(1, round(CPU_TOKENS / (len(lanes) * mean)))
    return min(few, execution.micro_batch_size or few)


@contextmanager
def _training(stack: Stack, courses: Sequence[_Course], execution: Execution) -> Iterator[None]:
    """Run a block in training mode, and afterwards share its time among the lanes by tokens."""
    models = [stack.model, *(course.lane.model for course in courses)]
    started = time.perf_counter()
    for model in models:
        model.train()
    try:
        with checkpointing(stack.model, execution.gradient_checkpointing):
            yield
    finally:
        for model in models:
            model.eval()
        spent = time.perf_counter() - started
        tokens = sum(course.result.tokens_seen for course in courses)
        for course in courses:
            course.result.lanes = len(courses)
            course.result.train_seconds = spent * course.result.tokens_seen / max(1, tokens)


def _course(lane: Lane, owned: list[nn.Parameter]) -> _Course:
    stepped = nn.ParameterList(owned) if lane.make_optimizer is None else lane.model
    steps = batches.order(lane.data, train=lane.settings, generator=lane.streams.numpy("order"))
    optimizer = optim.optimizer(stepped, lane.settings, lane.make_optimizer)
    schedule = optim.schedule(optimizer, lane.settings, steps=len(steps))
    return _Course(lane, steps, lane.streams.numpy("permute"), optimizer, schedule)


def _step(stack: Stack, courses: Sequence[_Course], execution: Execution) -> None:
    """Take one optimizer step of every lane."""
    first, device = courses[0], next(stack.model.parameters()).device
    works = _works(courses, execution)
    counts = [sum(work.sums_C for work in own).tolist() for own in works]  # type: ignore[union-attr]
    divisors = [count[0] or 1.0 for count in counts]
    share = shares(len(first.result.history))
    sums: list[Tensor] = []
    for number in range(max(map(len, works))):
        micro = [own[number] if number < len(own) else own[-1].silent() for own in works]
        step = stacked(micro, divisors).to(device)
        stack.spread()
        with autocast(first.lane.settings, device):
            total, part_NS = lane_losses(
                stack.model,
                step,
                label_smoothing=first.lane.objective.label_smoothing,
                with_grad_norm=share,
            )
        total.backward()
        sums.append(part_NS)
    clips = [course.lane.settings.clip for course in courses]
    norm_N = stack.clip([clip or math.inf for clip in clips])
    memory = memory_mb(device)
    told = torch.cat([torch.stack(sums).sum(0), norm_N[:, None]], dim=1).tolist()
    for course, (loss, *others, norm), count in zip(courses, told, counts, strict=True):
        try:
            entry = step_entry(
                len(course.result.history) + 1,
                0,
                lr=float(course.optimizer.param_groups[0]["lr"]),
                sums=[loss * (count[0] or 1.0), *others],
                counts=count,
                norm=norm,
                clip=course.lane.settings.clip,
            )
        except Diverged as error:
            course.diverged = error
            continue
        course.optimizer.step()
        course.schedule.step()
        course.result.add(entry, memory)
    stack.zero_grad()


def _works(courses: Sequence[_Course], execution: Execution) -> list[list[Weighed]]:
    """Return the micro-batches of each lane's step; lanes with the same share their tensors."""
    made: dict[Any, list[Weighed]] = {}
    found = []
    for course in courses:
        lane, rows = course.lane, course.rows
        assert rows is not None
        draws = id(lane) if lane.objective.permute else None
        key = (id(lane.data), rows.tobytes(), lane.objective, draws)
        if key not in made:
            parts = batches.micro_batches(
                lane.data,
                rows,
                objective=lane.objective,
                execution=execution,
                permute_generator=course.permute,
            )
            made[key] = [weigh(part, lane.objective) for part in parts]
        found.append(made[key])
    return found

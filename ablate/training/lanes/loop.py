"""The training loop of several lanes: what `training.loop` does for one cell, in step for many.

The base runs once over the rows of all lanes. Everything else is each lane's own: its rows and
weights, the divisor of its loss, its clipping, optimizer, schedule and history. A lane whose loss
or gradient is not finite is taken out; no product mixes two lanes, so the others do not notice.

A cell trains in a lane to the same weights as alone, up to rounding.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from ablate.training.checkpoints.keeper import Checkpoints
from ablate.training.history import Diverged, Entry, Result, shares, step_entry
from ablate.training.lanes.layers import Kind
from ablate.training.lanes.loss import lane_losses, stacked
from ablate.training.lanes.saved import Saved, SavedTogether, saved
from ablate.training.lanes.stack import RowPlace, Stack
from ablate.training.ledger import Ledger, Tell
from ablate.training.loop import check_supervised, memory_mb
from ablate.training.passes import autocast
from ablate.training.room import Room, out_of_memory, room
from ablate.training.weighed import Weighed, weigh

# Padded tokens of all lanes in a forward pass on a CPU: more leave its caches. 16 micro cells train
# with this at 1.3 times the speed of one after another, with whole steps at about the same speed.
CPU_TOKENS = 2700


@dataclass(frozen=True, slots=True)
class Lane:
    """A cell to train: as the arguments of `training.loop.train`, without hooks.

    `make_optimizer` is None for AdamW; without `checkpoints` none are read or written. `tick` and
    `tell` are as of `training.loop.train`.
    """

    model: nn.Module
    kind: Kind  # of its adapter's layers
    data: Tokenised
    settings: Train
    objective: Objective
    streams: Streams
    make_optimizer: optim.Maker | None = None
    checkpoints: Checkpoints | None = None
    tick: Callable[[int, int], None] | None = None
    tell: Tell | None = None


@dataclass(slots=True)
class _Course:
    """A lane under way."""

    lane: Lane
    steps: list[np.ndarray]
    permute: np.random.Generator
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    result: Result
    ledger: Ledger
    saved: Saved
    taken: int = 0  # steps
    diverged: Diverged | None = None

    @property
    def under_way(self) -> bool:
        """Whether there is a step to take."""
        return self.diverged is None and self.taken < len(self.steps)

    def step(self, values_S: Tensor, counts: list[float]) -> None:
        """Take a step with the gradient that is there; `values_S` are its loss / W, sums, norm."""
        self.taken += 1
        entry = functools.partial(
            _entry,
            self.taken,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            counts=counts,
            clip=self.lane.settings.clip,
        )
        self.tell(lambda: self.ledger.add(values_S, entry))
        self.optimizer.step()
        self.schedule.step()
        if self.lane.tick is not None:
            self.lane.tick(self.taken, len(self.steps))

    def keep(self) -> bool:
        """Write a checkpoint; return whether that could be done. A diverged lane gets none."""
        written: list[bool] = []
        if self.diverged is None:
            self.tell(lambda: written.append(self.saved.write(self.taken)))
        return any(written)

    def tell(self, write: Callable[[], None]) -> None:
        """Write into the history; what is written may say that the lane diverged."""
        try:
            write()
        except Diverged as error:
            self.diverged = self.diverged or error


def _entry(step: int, values: list[float], *, counts: list[float], **known: Any) -> Entry:
    loss, *sums, norm = values
    return step_entry(
        step, 0, sums=[loss * (counts[0] or 1.0), *sums], counts=counts, norm=norm, **known
    )


def train(
    base: nn.Module, lanes: Sequence[Lane], *, execution: Execution
) -> list[Result | Diverged]:
    """Train the models of all lanes in place; return each one's course, or how it diverged.

    Args:
        base: the model on whose `shell`s those of the lanes were built, on its device.
        lanes: cells of one label smoothing, token rule and precision, whose adapters change the
            same layers; dropout and hooks have no effect.
        execution: rows and tokens of a micro-batch are those of one lane; rows are padded.

    Raises:
        TrainingStopped: it was asked to stop, and did after a step.
        UserError: no target of a lane has a weight.
        torch.OutOfMemoryError: a single row of each lane does not fit into the memory.
    """
    execution = replace(execution, layout="padded")
    stack = Stack(base, [lane.model for lane in lanes], [lane.kind for lane in lanes])
    numbers, device = stack.order, next(base.parameters()).device
    every = [
        _course(lanes[number], owned, places, device)
        for number, owned, places in zip(numbers, stack.owned(), stack.places(), strict=True)
    ]
    room, courses = _room(stack, lanes, execution), every
    group = SavedTogether([course.saved for course in every])
    try:
        with _training(stack, every, execution) as clock:
            courses = _left(stack, courses)  # without those that had ended by their checkpoints
            while courses:
                _step(stack, courses, execution, room)
                clock.share(courses)
                clock.leave_out(group.after_step([course.keep for course in courses]))
                courses = _left(stack, courses)
            for course in every:
                course.tell(course.ledger.write)
    finally:
        stack.release()
    for course in every:
        course.result.micro_batch_tokens, course.result.out_of_memory = room.used, room.halved
    found = dict(zip(numbers, every, strict=True))
    return [found[n].diverged or found[n].result for n in range(len(lanes))]


def _left(stack: Stack, courses: list[_Course]) -> list[_Course]:
    """Return the lanes that have a step to take; the others leave the stack."""
    left = [i for i, course in enumerate(courses) if course.under_way]
    if len(left) < len(courses):
        stack.keep(left)
    return [courses[i] for i in left]


class _Clock:
    """Shares the time of steps among the lanes that took them, by their tokens."""

    def __init__(self, courses: Sequence[_Course]) -> None:
        """Begin now; tokens that a lane has seen in an earlier attempt have had their time."""
        self._began = time.perf_counter()
        self._shared = {id(course): course.result.tokens_seen for course in courses}

    def share(self, courses: Sequence[_Course]) -> None:
        """Share the time since the last call; a GPU tells the tokens of a step one step late."""
        seen = {id(c): c.result.tokens_seen - self._shared[id(c)] for c in courses}
        if not (tokens := sum(seen.values())):
            return
        now = time.perf_counter()
        for course in courses:
            course.result.train_seconds += (now - self._began) * seen[id(course)] / tokens
            self._shared[id(course)] = course.result.tokens_seen
        self._began = now

    def leave_out(self, seconds: float) -> None:
        """Leave out so many seconds that have just passed."""
        self._began += seconds


def _room(stack: Stack, lanes: Sequence[Lane], execution: Execution) -> Room:
    """Return the room of one lane's part of a forward pass."""
    free = all(lane.objective.scope != "microbatch" for lane in lanes)
    longest = max(int(lane.data.lengths.max()) for lane in lanes)
    found = room(
        stack.model,
        execution,
        lanes[0].settings,
        longest=longest,
        may_shrink=free,
        lanes=len(lanes),
    )
    if free and next(stack.model.parameters()).device.type == "cpu":
        found.tokens = min(CPU_TOKENS // len(lanes), found.tokens or CPU_TOKENS)
    return found


@contextmanager
def _training(stack: Stack, courses: Sequence[_Course], execution: Execution) -> Iterator[_Clock]:
    """Run a block in training mode with its clock; at its end every result has its time."""
    models = [stack.model, *(course.lane.model for course in courses)]
    clock = _Clock(courses)
    for model in models:
        model.train()
    try:
        with checkpointing(stack.model, execution.gradient_checkpointing):
            yield clock
    finally:
        for model in models:
            model.eval()
        clock.share(courses)
        for course in courses:
            course.result.lanes = len(courses)


def _course(
    lane: Lane, owned: list[nn.Parameter], places: Sequence[RowPlace], device: torch.device
) -> _Course:
    """Return a lane at its start or, where there is one, at its newest checkpoint."""
    check_supervised(lane.data, lane.objective)
    stepped = nn.ParameterList(owned) if lane.make_optimizer is None else lane.model
    steps = batches.order(lane.data, train=lane.settings, generator=lane.streams.numpy("order"))
    optimizer = optim.optimizer(stepped, lane.settings, lane.make_optimizer)
    schedule = optim.schedule(optimizer, lane.settings, steps=len(steps))
    result = Result()
    ledger = Ledger(result, device, functools.partial(memory_mb, device), lane.tell)
    permute = lane.streams.numpy("permute")
    kept = saved(
        lane.checkpoints,
        lane.model,
        lane.settings,
        steps=steps,
        permute=permute,
        optimizer=optimizer,
        schedule=schedule,
        places=places if lane.make_optimizer is None else None,
        result=result,
        ledger=ledger,
        device=device,
    )
    taken = kept.restore()
    return _Course(lane, steps, permute, optimizer, schedule, result, ledger, kept, taken)


def _step(stack: Stack, courses: Sequence[_Course], execution: Execution, room: Room) -> None:
    """Take one optimizer step of every lane; if memory runs out, in smaller micro-batches."""
    while True:
        works = _works(courses, replace(execution, micro_batch_tokens=room.tokens))
        counts = [functools.reduce(torch.add, (w.sums_C for w in own)).tolist() for own in works]
        every = [work for own in works for work in own]
        try:
            sums_NS = _through(stack, courses, works, [count[0] or 1.0 for count in counts])
        except (torch.OutOfMemoryError, RuntimeError) as error:
            single = all(work.examples <= 1 for work in every)
            if single or not room.may_shrink or not out_of_memory(error):
                raise
        else:
            room.note(every)
            break
        stack.zero_grad()  # outside the handler, so that what the failed passes held is free
        torch.cuda.empty_cache()
        room.halve(every)
    norm_N = stack.clip([course.lane.settings.clip or math.inf for course in courses])
    values = torch.cat([sums_NS, norm_N[:, None]], dim=1)
    for course, values_S, count in zip(courses, values, counts, strict=True):
        course.step(values_S, count)
    stack.zero_grad()


def _through(
    stack: Stack,
    courses: Sequence[_Course],
    works: Sequence[Sequence[Weighed]],
    divisors: Sequence[float],
) -> Tensor:
    """Add the gradients of a step, and return each lane's sums (N, S) of `lane_losses`."""
    first, device = courses[0], next(stack.model.parameters()).device
    sums: list[Tensor] = []
    for number in range(max(map(len, works))):
        micro = [own[number] if number < len(own) else own[-1].silent() for own in works]
        step = stacked(micro, divisors).to(device)
        stack.spread()
        with autocast(first.lane.settings, device):
            total, part_NS = lane_losses(
                stack.model, step, first.lane.objective, with_grad_norm=shares(first.taken)
            )
        total.backward()
        sums.append(part_NS)
    return torch.stack(sums).sum(0)


def _works(courses: Sequence[_Course], execution: Execution) -> list[list[Weighed]]:
    """Return the micro-batches of each lane's step; lanes with the same share their tensors."""
    made: dict[Any, list[Weighed]] = {}
    found = []
    for course in courses:
        lane, rows = course.lane, course.steps[course.taken]
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

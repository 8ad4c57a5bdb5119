"""The forward and backward passes of an optimizer step, in micro-batches that fit into memory.

The gradient of an optimizer step is that of `sum u_t loss_t / W`, with W known in advance over all
micro-batches and devices (`training.loss`). Devices average their gradients, so each multiplies its
part by their number; nothing else divides, neither accelerate's accumulation nor a mean of means.

Nothing here waits for a GPU: batches are sent through pinned memory, counts stay on the host, and
sums of losses on the device.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.config.schema import Train
from ablate.data.batches import Batch
from ablate.objective import Objective
from ablate.training.distributed import summed
from ablate.training.hooks import Hooks, StepContext
from ablate.training.room import Draws, Room, out_of_memory
from ablate.training.weighed import Weighed, weigh

# From the rows of a step, and the tokens that a forward pass may have, to its micro-batches.
Maker = Callable[[np.ndarray, int | None], list[Batch]]


@dataclass(frozen=True, slots=True)
class Passed:
    """What the passes of a step leave beside the gradient."""

    sums_S: Tensor  # `TokenLoss.sums_S` of the step, over all processes; on the device
    counts: list[float]  # `Weighed.sums_C` of the step, over all processes
    context: StepContext  # of the last micro-batch


@dataclass(frozen=True, slots=True)
class Passes:
    """Runs the passes of a step; if memory runs out, again in smaller micro-batches."""

    model: Any
    make: Maker
    objective: Objective
    settings: Train
    hooks: Hooks
    accelerator: Any
    room: Room

    def __call__(
        self, wrapped: Any, optimizer: Any, rows: np.ndarray, place: tuple[int, int], *, share: bool
    ) -> Passed:
        """Add the gradient of the step over `rows`, and return what else is known of it.

        Args:
            wrapped: the prepared `TokenLossModel`.
            optimizer: of its parameters.
            rows: of the step, of all processes.
            place: the number of the step in its stage, and of all steps of the stage.
            share: whether the completion's share of the gradient is measured.

        Raises:
            UserError: a single row does not fit into the memory.
        """
        room, draws = self.room, None
        if room.may_shrink:
            draws = Draws(self.accelerator.device, self.hooks.draws)
        while True:
            works = self._works(rows)
            try:
                passed = self._through(wrapped, optimizer, works, place, share)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if draws is None or not out_of_memory(error):
                    raise
            else:
                room.note(works)
                return passed
            # Outside the handler, so that what the failed passes held is free.
            optimizer.zero_grad()
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
            draws.restore()
            room.halve(works)

    def _works(self, rows: np.ndarray) -> list[Weighed]:
        """Return this process's micro-batches of a step."""
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        made = self.make(mine if len(mine) else rows[:1], self.room.tokens)
        works = [weigh(part, self.objective) for part in made]
        # Every process must take part in every step's collective calls.
        return works if len(mine) else [work.silent() for work in works]

    def _through(
        self,
        wrapped: Any,
        optimizer: Any,
        works: list[Weighed],
        place: tuple[int, int],
        share: bool,
    ) -> Passed:
        accelerator = self.accelerator
        counts: list[float] = _summed([work.sums_C for work in works]).tolist()
        divisor = counts[0] or 1.0
        sums: list[Tensor] = []
        for i, work in enumerate(works, start=1):
            work = work.to(accelerator.device)
            last = i == len(works)
            context = StepContext(*place, self.model, optimizer, work, divisor, last)
            self.hooks.before_forward(context)
            with nullcontext() if last else accelerator.no_sync(wrapped):
                with autocast(self.settings, accelerator.device):
                    loss = wrapped(work, share)
                    extra = self.hooks.extra_loss(context)
                accelerator.backward(loss.total * (accelerator.num_processes / divisor) + extra)
            sums.append(loss.sums_S)
        return Passed(_summed(sums), counts, context)


def _summed(parts: list[Tensor]) -> Tensor:
    """Return the sum of `parts` over all processes."""
    return summed(functools.reduce(torch.add, parts).clone())


def autocast(settings: Train, device: torch.device) -> torch.autocast:
    """Return the context of `train.precision` for a forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")

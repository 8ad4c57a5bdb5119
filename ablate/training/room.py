"""How many tokens a forward pass may have: all of a step, or what was found to fit into a GPU.

Running out of memory halves the largest micro-batch, and the same optimizer step is taken again
with the same random draws. What was found to fit is kept in the process for later runs of the same
sizes, so that a grid tries once.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ablate.config.schema import Execution, Train
from ablate.errors import UserError
from ablate.training.weighed import Weighed

_FOUND: dict[Hashable, int] = {}  # tokens of a forward pass that fit, by `_sizes`


@dataclass(slots=True)
class Room:
    """The tokens, padding included, that a forward pass may have at most; None: any number."""

    tokens: int | None
    may_shrink: bool
    sizes: Hashable = None
    used: int = 0  # by the largest micro-batch so far
    halved: int = 0  # how often memory ran out

    def note(self, works: Sequence[Weighed]) -> None:
        """Note the micro-batches of a step that fitted."""
        self.used = max(self.used, *(work.ids_BL.numel() for work in works))

    def halve(self, works: Sequence[Weighed]) -> None:
        """Allow half of the largest of the micro-batches, which did not fit.

        Raises:
            UserError: none of them can be split.
        """
        largest = max(work.ids_BL.numel() for work in works)
        if all(work.examples <= 1 for work in works):
            raise UserError(
                f"train.max_length: a single row of {largest} tokens does not fit into the "
                "memory of this GPU; set execution.gradient_checkpointing=true or a shorter "
                "train.max_length, or train in bf16 on a base in bf16"
            )
        self.tokens, self.halved = max(1, largest // 2), self.halved + 1
        _FOUND[self.sizes] = self.tokens


def room(
    model: Any,
    execution: Execution,
    settings: Train,
    *,
    longest: int,
    may_shrink: bool,
    lanes: int = 1,
) -> Room:
    """Return the room of a run's forward passes.

    Args:
        model: the model with its adapter.
        execution: the limits that were asked for.
        settings: what is computed in.
        longest: length of the longest example.
        may_shrink: whether a split changes no loss, and concerns this process alone.
        lanes: cells that train side by side; the tokens are those of one.
    """
    sizes = (lanes, _sizes(model, execution, settings, longest))
    asked = execution.micro_batch_tokens
    shrinks = may_shrink and execution.micro_batch_size is not None
    found = _FOUND.get(sizes) if shrinks else None
    limits = [tokens for tokens in (asked, found) if tokens is not None]
    return Room(min(limits, default=None), shrinks, sizes)


def _sizes(model: Any, execution: Execution, settings: Train, longest: int) -> Hashable:
    parameters = list(model.parameters())
    trained = [p.numel() for p in parameters if p.requires_grad]
    return (
        type(getattr(model, "config", model)).__name__,
        sum(p.numel() * p.element_size() for p in parameters),
        (len(trained), sum(trained)),
        (settings.precision, execution.layout, execution.gradient_checkpointing, longest),
    )


class Draws:
    """The states of random generators at the start of a step, to take the step again."""

    def __init__(self, device: torch.device, own: Sequence[Generator]) -> None:
        """Keep the states of torch's global generators and of the hooks' `own`."""
        self._generators = generators(device, own)
        self._states: list[Tensor] = [g.get_state() for g in self._generators]

    def restore(self) -> None:
        """Set the generators back."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)


def generators(device: torch.device, own: Sequence[Generator]) -> list[Generator]:
    """Return what a run on `device` draws from: torch's global generators and the hooks' own."""
    found = [torch.default_generator, *own]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found


def out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that a GPU has no memory left."""
    said = isinstance(error, RuntimeError) and "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    return said or isinstance(error, torch.OutOfMemoryError)

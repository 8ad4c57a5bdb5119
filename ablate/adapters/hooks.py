"""The training hooks of a cell's adapter: those of its method, and decay towards its start."""

import torch
from torch import Tensor, nn

from ablate.adapters import registry
from ablate.adapters.method import load_attribute
from ablate.adapters.start import decays_to_start
from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.hooks import NO_HOOKS, Hooks, Memory, StepContext, combine


def hooks(cell: Cell, *, streams: Streams) -> Hooks:
    """Return the hooks of the cell's adapter; most methods have none."""
    row = registry.method(cell.adapter)
    made = [decay_to_start()] if decays_to_start(cell) else []
    if row.hooks:
        made.append(load_attribute(row.hooks)(registry.settings(cell.adapter), streams))
    return combine(*made) if made else NO_HOOKS


def decay_to_start() -> Hooks:
    """Return hooks under which weight decay pulls an adapter to its start instead of to zero.

    Every optimizer here subtracts lr x decay x p from a parameter p, apart from its gradient
    (arXiv 1711.05101). Adding lr x decay x p0 after the step leaves a decay of p - p0. Weights of
    the base that train beside the adapter decay towards zero, as in full fine-tuning.
    """
    starts: dict[nn.Parameter, Tensor] = {}

    def after_backward(context: StepContext) -> None:
        if not starts:
            own: frozenset[str] = context.model.adapter_own  # type: ignore[assignment]
            starts.update(
                (parameter, parameter.detach().clone())
                for name, parameter in context.model.named_parameters()
                if parameter.requires_grad and name in own
            )

    @torch.no_grad()
    def after_step(context: StepContext) -> None:
        for group in context.optimizer.param_groups:
            share = group["lr"] * group["weight_decay"]
            for parameter in group["params"] if share else ():
                if parameter in starts and parameter.grad is not None:  # else it did not decay
                    parameter.add_(starts[parameter], alpha=share)

    def read(model: nn.Module) -> dict[str, Tensor]:
        return {name: starts[p] for name, p in model.named_parameters() if p in starts}

    def write(model: nn.Module, held: dict[str, Tensor]) -> None:
        own = dict(model.named_parameters())
        starts.update((own[name], start) for name, start in held.items())

    memories = (Memory(read, write),)
    return Hooks(after_backward=after_backward, after_step=after_step, memories=memories)

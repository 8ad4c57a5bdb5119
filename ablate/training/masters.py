"""Optimizers of 16-bit weights: they train fp32 copies, on the weights' device or on the CPU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ablate.training.parameters import base_parameters

HALF = (torch.bfloat16, torch.float16)
CPU = torch.device("cpu")


class Masters(torch.optim.Optimizer):
    """An optimizer that trains fp32 copies (masters) of some of a model's parameters.

    A 16-bit weight does not change by a step below half the distance to its neighbours: at a rate
    of 2e-5 that is most steps. Before each step a master gets its weight's gradient, after it the
    weight becomes the rounded master. Groups and state are those of the inner optimizer, whose
    parameters the masters are.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        weights: Iterable[nn.Parameter],
        *,
        device: torch.device | None = None,
    ) -> None:
        """Put masters in the place of `weights` in the groups of `inner`, which has no state yet.

        Args:
            inner: the optimizer.
            weights: the parameters that get a master.
            device: of masters and moments; by default that of the weight. On the CPU they are
                pinned, and the optimizer steps there.
        """
        self.inner = inner  # the base class is not initialised: it would make groups of its own
        chosen = {id(weight) for weight in weights}
        self.pairs: list[tuple[nn.Parameter, Tensor, Tensor | None]] = []
        for group in inner.param_groups:
            for i, weight in enumerate(group["params"]):
                if id(weight) in chosen:
                    master, buffer = _copies(weight, device or weight.device)
                    group["params"][i] = master
                    self.pairs.append((weight, master, buffer))

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the inner optimizer."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the inner optimizer, by master where a weight has one."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the inner optimizer."""
        return self.inner.defaults

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner optimizer."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the inner optimizer."""
        self.inner.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of weights and of parameters without a master."""
        self.inner.zero_grad(set_to_none)
        for weight, _, _ in self.pairs:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of the inner optimizer, and round its masters into the weights."""
        for weight, master, buffer in self.pairs:
            master.grad = None if weight.grad is None else _into(buffer, weight.grad)
        _wait(self.pairs)
        loss = self.inner.step(closure)
        for weight, master, _ in self.pairs:
            weight.copy_(master.to(weight.device, non_blocking=True))
            master.grad = None
        return loss


def with_masters(made: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return `made` with a master for every 16-bit parameter, unless it rounds them itself."""
    if getattr(made, "rounds_stochastically", False):
        return made
    half = [p for group in made.param_groups for p in group["params"] if p.dtype in HALF]
    return Masters(made, half) if half else made


def offloaded(made: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return `made` with masters and moments of the base's own weights on the CPU.

    An adapter's stay where they are: they are small, and some methods change them between steps.
    """
    return Masters(made, base_parameters(model).values(), device=CPU)


def _copies(weight: nn.Parameter, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the master of a weight, and where the device writes its gradient if it is on another.

    Pinned memory lets copies of all weights run at once and without the processor.
    """
    master = weight.detach().to(device, torch.float32, copy=True)
    if device == weight.device:
        return master, None
    return master.pin_memory(), torch.empty_like(master).pin_memory()


def _into(buffer: Tensor | None, gradient: Tensor) -> Tensor:
    """Return a gradient in fp32, in `buffer` if there is one."""
    gradient = gradient.to(torch.float32)
    return gradient if buffer is None else buffer.copy_(gradient, non_blocking=True)


def _wait(pairs: list[tuple[nn.Parameter, Tensor, Tensor | None]]) -> None:
    """Wait until the gradients are in their buffers, and the weights of the last step copied."""
    for device in {weight.device for weight, _, buffer in pairs if buffer is not None}:
        torch.cuda.current_stream(device).synchronize()

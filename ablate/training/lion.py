"""Lion (arXiv 2302.06675, algorithm 2): the sign of a mixture of momentum and gradient.

    theta <- theta - lr (sign(beta_1 m + (1 - beta_1) g) + weight_decay theta)
    m     <- beta_2 m + (1 - beta_2) g

Decay is decoupled and multiplied by the rate, as AdamW's is here. MosaicML's DecoupledLionW, which
"LoRA Learns Less and Forgets Less" (arXiv 2405.09673) used, divides it by the first rate instead:
its decay d is d / lr here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ablate.config.schema import Train
from ablate.training.optim import decay_groups, trainable


def lion(
    model: nn.Module, settings: Train, options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Return Lion over the trained parameters; it has no options, and `train.eps` has no part."""
    groups = decay_groups(trainable(model), settings.weight_decay)
    return Lion(groups, lr=settings.lr, betas=settings.betas)


class Lion(torch.optim.Optimizer):
    """Lion: every number moves by the rate, up or down; one moment a parameter."""

    def __init__(self, params: Any, *, lr: float | str, betas: tuple[float, float]) -> None:
        """Make the optimizer of parameter groups that hold `weight_decay`."""
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(params, group)
        return loss

    def _step(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        for parameter in params:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        moments = [self.state[parameter]["momentum"] for parameter in params]
        gradients = [p.grad for p in params if p.grad is not None]
        (one, two), rate = group["betas"], group["lr"]
        steps = torch._foreach_lerp(moments, gradients, 1 - one)
        torch._foreach_sign_(steps)
        torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        torch._foreach_add_(params, steps, alpha=-rate)
        torch._foreach_lerp_(moments, gradients, 1 - two)

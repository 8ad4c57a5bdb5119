"""AdamW, Adafactor and the learning-rate schedule of a run."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Adafactor, get_scheduler

from ablate.config.schema import Train
from ablate.errors import UserError
from ablate.training.masters import with_masters

Maker = Callable[[Any, Train], torch.optim.Optimizer]  # from the model and the settings


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of `model` that are trained, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def optimizer(
    model: nn.Module, settings: Train, make: Maker | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of the trained parameters of `model`, made by `make` or else AdamW.

    Weight decay applies to every trained parameter of two or more dimensions (matrices, embeddings,
    an adapter's factors), not to norms and biases. Weights in 16 bits are trained in fp32 copies of
    them (`training.masters`), unless the optimizer rounds them at random.

    Raises:
        UserError: no parameter is trained, or the learning rate was left at "tuned".
    """
    if isinstance(settings.lr, str):
        raise UserError(f"train.lr={settings.lr}: must be resolved to a number before training")
    if not trainable(model):
        raise UserError("adapter: leaves no parameter to train; choose one that trains something")
    return with_masters((make or adamw)(model, settings))


class GroupedAdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101) whose weight decay does not apply to vectors.

    The fused kernel is one call per step: with the micro models a loop over parameters costs 3 % of
    the step.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, weight_decay: float, **settings: Any
    ) -> None:
        super().__init__(decay_groups(params, weight_decay), fused=True, **settings)


def decay_groups(
    params: Iterable[nn.Parameter], weight_decay: float, **settings: Any
) -> list[dict[str, Any]]:
    """Return two parameter groups of an optimizer: with weight decay (ndim >= 2), and without."""
    params = list(params)
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay, **settings},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0, **settings},
    ]
    return [group for group in groups if group["params"]]


def adamw_settings(settings: Train) -> dict[str, Any]:
    """Return AdamW's arguments but for weight decay."""
    return {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}


def adamw(
    model: nn.Module, settings: Train, options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Return AdamW over the trained parameters; it has no options."""
    decay = settings.weight_decay
    return GroupedAdamW(trainable(model), weight_decay=decay, **adamw_settings(settings))


def adafactor(
    model: nn.Module, settings: Train, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return Adafactor (arXiv 1804.04235) at the rate and schedule of the run.

    The second moment of a matrix is stored as its row and column sums, and there is no first one:
    betas and eps of the settings are not used. Steps are not scaled by the size of the weights.
    """
    return Adafactor(
        decay_groups(trainable(model), settings.weight_decay),
        lr=settings.lr,
        clip_threshold=options["clip_threshold"],
        decay_rate=-options["decay"],
        scale_parameter=False,
        relative_step=False,
    )


def warmup_steps(settings: Train, steps: int) -> int:
    """Return over how many of a run's `steps` the learning rate rises."""
    given = settings.warmup_steps
    return math.ceil(settings.warmup_ratio * steps) if given is None else given


def schedule(
    optimizer: torch.optim.Optimizer, settings: Train, *, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning-rate schedule over `steps` optimizer steps, most from transformers."""
    name = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
    warmup, more = warmup_steps(settings, steps), {}
    if name == "trapezoid":
        fall = max(1, round(settings.cooldown_ratio * steps))
        shape = functools.partial(trapezoid, steps=steps, warmup=warmup, cooldown=fall)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    if settings.min_lr_ratio:
        name, more = "cosine_with_min_lr", {"min_lr_rate": settings.min_lr_ratio}
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=more,
    )
    return scheduler


def trapezoid(step: int, *, steps: int, warmup: int, cooldown: int) -> float:
    """Return the share of the highest rate at a step: a rise, a level, and a linear fall to 0.

    Until its fall it does not depend on `steps`: with `train.warmup_steps` a shorter run is a
    branch of a longer one on the same data (arXiv 2405.18392; in 2405.09673 every budget of
    continued pretraining is one). transformers' `warmup_stable_decay` is the same where the rise
    ends before the fall; here a rise that does not is cut off by it.
    """
    before = min(step, steps - cooldown)
    risen = min(1.0, before / warmup) if warmup else 1.0
    return risen * min(1.0, (steps - step) / cooldown)

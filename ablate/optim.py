"""The optimiser and the learning-rate schedule of a run."""

import math

import torch
from torch import nn
from transformers import get_scheduler

from ablate.config import Train
from ablate.errors import UserError


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of `model` that are trained, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def optimizer(model: nn.Module, settings: Train) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters of `model` (arXiv 1711.05101).

    Weight decay acts on every trained parameter of two or more dimensions (matrices, embeddings,
    an adapter's factors), not on norms and biases. The fused kernel is one call a step: at the
    size of the micro models a loop over parameters costs 3 % of the step.

    Raises:
        UserError: nothing is trainable, or the learning rate was left at "tuned".
    """
    if isinstance(settings.lr, str):
        raise UserError(f"train.lr={settings.lr}: must be resolved to a number before training")
    params = trainable(model)
    if not params:
        raise UserError("adapter: leaves no parameter to train; choose one that trains something")
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def schedule(
    optimizer: torch.optim.Optimizer, settings: Train, *, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning-rate schedule over `steps` optimizer steps, from transformers."""
    name = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
    warmup = math.ceil(settings.warmup_ratio * steps)
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    return scheduler

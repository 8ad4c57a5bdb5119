"""The optimiser and the learning-rate schedule of a run."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft.optimizers import create_lorafa_optimizer, create_riemannian_optimizer
from torch import nn
from transformers import get_scheduler

from ablate.adapters import compatibility
from ablate.adapters.method import Options
from ablate.config.schema import Optimizer, Train
from ablate.errors import UserError


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of `model` that are trained, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def optimizer(
    model: nn.Module, settings: Train, rule: Optimizer | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of the trained parameters of `model`, AdamW by default.

    Weight decay acts on every trained parameter of two or more dimensions (matrices, embeddings,
    an adapter's factors), not on norms and biases.

    Raises:
        UserError: nothing is trainable, or the learning rate was left at "tuned".
    """
    if isinstance(settings.lr, str):
        raise UserError(f"train.lr={settings.lr}: must be resolved to a number before training")
    if not trainable(model):
        raise UserError("adapter: leaves no parameter to train; choose one that trains something")
    rule = rule or Optimizer()
    _, options = compatibility.optimizer_of(rule)
    return RULES[rule.kind](model, settings, options)


class GroupedAdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101) whose weight decay leaves vectors alone.

    The fused kernel is one call a step: at the size of the micro models a loop over parameters
    costs 3 % of the step.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, weight_decay: float, **settings: Any
    ) -> None:
        super().__init__(decay_groups(params, weight_decay), fused=True, **settings)


def decay_groups(
    params: Iterable[nn.Parameter], weight_decay: float, **settings: Any
) -> list[dict[str, Any]]:
    """Return groups for an optimizer: the parameters that decay, and those that do not."""
    params = list(params)
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay, **settings},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0, **settings},
    ]
    return [group for group in groups if group["params"]]


def _of_adamw(settings: Train) -> dict[str, Any]:
    return {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}


def _adamw(model: nn.Module, settings: Train, options: Options) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    return GroupedAdamW(trainable(model), weight_decay=decay, **_of_adamw(settings))


def _lora_plus(model: nn.Module, settings: Train, options: Options) -> torch.optim.Optimizer:
    """Return AdamW with a higher rate for B (arXiv 2402.12354).

    PEFT's own raises the rate of every vector too, DoRA's magnitudes for one.
    """
    raised = [p for p in _named(model, "lora_B") if p.requires_grad]
    if not raised:
        raise ValueError("lora_plus: there is no factor B that trains")
    known = {id(p) for p in raised}
    rest = [p for p in trainable(model) if id(p) not in known]
    rate = float(settings.lr) * options["ratio"]
    groups = decay_groups(rest, settings.weight_decay)
    groups += decay_groups(raised, settings.weight_decay, lr=rate)
    return torch.optim.AdamW(groups, fused=True, **_of_adamw(settings))


def _lora_fa(model: Any, settings: Train, options: Options) -> torch.optim.Optimizer:
    """Return LoRA-FA's optimizer (arXiv 2308.03303): A is fixed, B's gradient projected."""
    config = model.active_peft_config
    made: torch.optim.Optimizer = create_lorafa_optimizer(
        model, config.r, config.lora_alpha, float(settings.lr), settings.weight_decay
    )
    for group in made.param_groups:
        group["betas"], group["eps"] = settings.betas, settings.eps
    return made


def _riemannian(model: nn.Module, settings: Train, options: Options) -> torch.optim.Optimizer:
    """Return AdamW on gradients preconditioned by the other factor (arXiv 2402.02347)."""
    made: torch.optim.Optimizer = create_riemannian_optimizer(
        model,
        GroupedAdamW,
        reg=options["damping"],
        weight_decay=settings.weight_decay,
        **_of_adamw(settings),
    )
    return made


def _named(model: nn.Module, part: str) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if f".{part}." in name]


Made = Callable[[Any, Train, Options], torch.optim.Optimizer]
RULES: Mapping[str, Made] = {
    "adamw": _adamw,
    "lora_plus": _lora_plus,
    "lora_fa": _lora_fa,
    "riemannian": _riemannian,
}


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

"""Optimizers made for LoRA's two factors: LoRA+, LoRA-FA and Riemannian preconditioning."""

from typing import Any

import torch
from peft.optimizers import create_lorafa_optimizer, create_riemannian_optimizer
from torch import nn

from ablate.adapters.options import Options
from ablate.config.schema import Train
from ablate.training.optim import GroupedAdamW, adamw_settings, decay_groups, trainable


def lora_plus(model: nn.Module, settings: Train, options: Options) -> torch.optim.Optimizer:
    """Return AdamW with a learning rate for B that is `ratio` times higher (arXiv 2402.12354).

    PEFT's own implementation also raises the rate of every vector, such as DoRA's magnitudes.

    Raises:
        ValueError: no factor B trains.
    """
    raised = [p for p in _in_module(model, "lora_B") if p.requires_grad]
    if not raised:
        raise ValueError("lora_plus: there is no factor B that trains")
    known = {id(p) for p in raised}
    rest = [p for p in trainable(model) if id(p) not in known]
    rate = float(settings.lr) * options["ratio"]
    groups = decay_groups(rest, settings.weight_decay)
    groups += decay_groups(raised, settings.weight_decay, lr=rate)
    return torch.optim.AdamW(groups, fused=True, **adamw_settings(settings))


def lora_fa(model: Any, settings: Train, options: Options) -> torch.optim.Optimizer:
    """Return LoRA-FA's optimizer (arXiv 2308.03303): A is fixed, the gradient of B projected."""
    config = model.active_peft_config
    made: torch.optim.Optimizer = create_lorafa_optimizer(
        model, config.r, config.lora_alpha, float(settings.lr), settings.weight_decay
    )
    for group in made.param_groups:
        group["betas"], group["eps"] = settings.betas, settings.eps
    return made


def riemannian(model: nn.Module, settings: Train, options: Options) -> torch.optim.Optimizer:
    """Return AdamW on gradients that the other factor preconditions (arXiv 2402.02347)."""
    made: torch.optim.Optimizer = create_riemannian_optimizer(
        model,
        GroupedAdamW,
        reg=options["damping"],
        weight_decay=settings.weight_decay,
        **adamw_settings(settings),
    )
    return made


def _in_module(model: nn.Module, part: str) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if f".{part}." in name]

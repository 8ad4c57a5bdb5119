"""AdamW of bitsandbytes: moments in 8 bits, or in memory that moves to the CPU where a GPU is full.

For a GPU. Weights in 16 bits are trained in fp32 copies, as with every optimizer that does not
round at random (`training.masters`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ablate.config.schema import Train
from ablate.errors import UserError
from ablate.training.optim import adamw_settings, decay_groups, trainable


def adamw_bnb_8bit(
    model: nn.Module, settings: Train, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return AdamW with 8-bit moments (arXiv 2110.02861)."""
    return _made("AdamW8bit", model, settings)


def paged_adamw(
    model: nn.Module, settings: Train, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return AdamW with fp32 moments in paged memory (QLoRA, arXiv 2305.14314)."""
    return _made("PagedAdamW32bit", model, settings)


def paged_adamw_8bit(
    model: nn.Module, settings: Train, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return AdamW with 8-bit moments in paged memory."""
    return _made("PagedAdamW8bit", model, settings)


def _made(name: str, model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Return bitsandbytes' optimizer of this name over the trained parameters.

    Raises:
        UserError: the model is not on a GPU.
    """
    device = next(model.parameters()).device.type
    if device != "cuda":
        raise UserError(
            f"optimizer: bitsandbytes' {name} needs a GPU, and the run is on {device}; use adamw "
            "or adamw_8bit"
        )
    import bitsandbytes

    groups = decay_groups(trainable(model), settings.weight_decay)
    make = getattr(bitsandbytes.optim, name)
    made: torch.optim.Optimizer = make(groups, **adamw_settings(settings))
    return made

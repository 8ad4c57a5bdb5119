"""AdamW with 8-bit moments beside bitsandbytes' and exact AdamW, on any device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablate.training import adamw_8bit, optim


def beside_the_peer(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return our weights, the peer's and the exact ones after 60 steps, and where they began."""
    library: Any = pytest.importorskip("bitsandbytes")
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(90, 128, generator=draw).to(device)
    ours, peers, exact = (nn.Parameter(start.clone()) for _ in range(3))
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
    optimizers = [
        adamw_8bit.AdamW8bit(optim.decay_groups([ours], 0.1), seed=0, **settings),
        library.optim.AdamW8bit([peers], weight_decay=0.1, **settings),
        torch.optim.AdamW([exact], weight_decay=0.1, **settings),
    ]
    for _ in range(60):
        gradient = torch.randn(90, 128, generator=draw).to(device) + start
        for weight, made in zip((ours, peers, exact), optimizers, strict=True):
            weight.grad = gradient.clone()
            made.step()
    return ours.detach(), peers.detach(), exact.detach(), start

"""The initial values that LoRA and its relatives give their factors.

All random values are drawn here, from one stream per module, so that the choice of targets does not
change them, and row by row, so that a seed's A at rank 4 is the first four rows of its A at rank
16.

Letters: D outputs, K inputs, r rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from ablate.adapters.init.calibration import Calibration
from ablate.adapters.init.context import InitContext

ADAPTER = "default"  # the name that PEFT gives an adapter


def layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the LoRA layers with their names in the base model."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name.removeprefix("base_model.model."), layer


@torch.no_grad()
def draw_rows(A_rK: Tensor, generator: Generator) -> None:
    """Fill A with U(-1/sqrt(k), 1/sqrt(k)), PEFT's distribution for LoRA, in place and by rows."""
    bound = A_rK.shape[1] ** -0.5
    for row_K in A_rK:
        row_K.copy_(torch.empty(len(row_K)).uniform_(-bound, bound, generator=generator))


def normal(size: int, deviation: float, generator: Generator) -> Tensor:
    """Return draws (size,) from N(0, deviation^2)."""
    return torch.empty(size).normal_(0.0, deviation, generator=generator)


@torch.no_grad()
def draw_A(module: nn.Module, context: InitContext) -> None:
    """Draw A as in LoRA (arXiv 2106.09685) and leave B at zero."""
    for name, layer in layers(module):
        draw_rows(layer.lora_A[ADAPTER].weight, context.streams.torch("init", "lora", name))


@torch.no_grad()
def kasa(module: nn.Module, context: InitContext) -> None:
    """Draw A as in LoRA and the singular values from N(0, 1), as KaSA's code does (2412.06071)."""
    draw_A(module, context)
    for name, layer in layers(module):
        generator = context.streams.torch("init", "kasa", name)
        layer.lora_diag[ADAPTER].copy_(torch.randn(layer.r[ADAPTER], generator=generator))


@torch.no_grad()
def adalora(module: nn.Module, context: InitContext) -> None:
    """Draw both factors from N(0, 0.02^2), as PEFT does; the singular values stay zero.

    The rank, by which PEFT divides the scale, is a parameter that it does not save. On a GPU it
    would train: a parameter that is moved into another's place requires a gradient again.
    """
    for name, layer in layers(module):
        assert isinstance(layer, AdaLoraLayer)
        layer.ranknum[ADAPTER].requires_grad_(False)
        generator = context.streams.torch("init", "adalora", name)
        for A_K, B_D in zip(layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T, strict=True):
            A_K.copy_(normal(len(A_K), 0.02, generator))
            B_D.copy_(normal(len(B_D), 0.02, generator))


@torch.no_grad()
def velora(module: nn.Module, context: InitContext) -> None:
    """Draw A as in LoRA and set the projection to the mean input of the first batch.

    As in the paper (arXiv 2405.17991, section 3.2). PEFT would take it from the first micro-batch,
    padding included.
    """
    draw_A(module, context)
    found = dict(layers(module))
    means = context.calibration.mean_inputs(list(found), 1)
    for name, layer in found.items():
        projection = layer.lora_velora_embed[ADAPTER]
        width = layer.lora_velora_num_groups[ADAPTER] * len(projection)
        padded = nn.functional.pad(means[name], (0, width - len(means[name])))
        groups = padded.view(-1, len(projection))
        projection.copy_(nn.functional.normalize(groups.mean(0), dim=0))
        layer.lora_velora_initialized[ADAPTER] = True


def invocation_tokens(calibration: Calibration) -> dict[str, Any]:
    """Return aLoRA's invocation (arXiv 2504.12397): the template's last tokens before an answer."""
    return {"alora_invocation_tokens": calibration.invocation()}

"""Pairs of factors and the base under them, and what a model's data say, computed in float64."""

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ablate.adapters import build
from ablate.adapters.lora.starts import layers
from tests.levels import DATA, base, pristine

EXACT = 5e-6  # float32 sums in another order; a start that is wrong is off by 1e-2 and more


def factors(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every matrix by its name in the base, in float64."""
    return {
        name: (
            layer.lora_A["default"].weight.detach().double(),
            layer.lora_B["default"].weight.detach().double(),
        )
        for name, layer in layers(module)
    }


@functools.cache
def base_weights(architecture: str = "llama") -> dict[str, Tensor]:
    """The base's weights as (d, k), in float64."""
    model = pristine(architecture)
    found = {}
    for name in build.linear_shapes(model):
        module = model.get_submodule(name)
        weight = module.weight.detach().double()
        found[name] = weight.T if isinstance(module, Conv1D) else weight
    return found


def held(module: nn.Module) -> dict[str, Tensor]:
    """The frozen weights under the adapter as (d, k), in float64."""
    return {
        name: (layer.weight.T if layer.fan_in_fan_out else layer.weight).detach().double()
        for name, layer in layers(module)
    }


def close(one: Tensor, other: Tensor, atol: float = EXACT) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol, check_dtype=False)


def same_span(one_RK: Tensor, other_RK: Tensor, least: float = 1 - 1e-5) -> None:
    """The cosines of the angles between two row spaces are all near one."""
    bases = (torch.linalg.qr(rows.T.double()).Q for rows in (one_RK, other_RK))
    one, other = bases
    assert torch.linalg.svdvals(one.T @ other).min() > least


def inputs(architecture: str = "llama") -> dict[str, list[np.ndarray]]:
    """What enters each matrix of the base, a (tokens, k) for every row of the data, in float64."""
    model = base(architecture).double()
    seen: dict[str, list[np.ndarray]] = {name: [] for name in build.linear_shapes(model)}
    for name, found in seen.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, found=found: found.append(args[0][0].detach().numpy())
        )
    for row in range(len(DATA)):
        with torch.no_grad():
            model(input_ids=torch.tensor(DATA.row(row)[0][None].astype(np.int64)))
    return seen


def mean_gradient(architecture: str = "llama") -> dict[str, Tensor]:
    """The gradient (d, k) of the mean loss of all targets by each matrix, in float64."""
    model = base(architecture).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(DATA)):
        ids = torch.tensor(DATA.row(row)[0].astype(np.int64))
        total = total + F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:]) * (
            len(ids) - 1
        )
        count += len(ids) - 1
    (total / count).backward()
    found = {}
    for name in build.linear_shapes(model):
        module = model.get_submodule(name)
        found[name] = module.weight.grad.T if isinstance(module, Conv1D) else module.weight.grad
    return found

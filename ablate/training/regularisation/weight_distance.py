"""Distance to the base's weights: weight * (sum |w - w0|^p)^(1/p)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.hooks import Hooks, weight_penalty
from ablate.training.parameters import base_parameters


@contextmanager
def minkowski(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield hooks that add `weight * distance` once per step, as compared with in arXiv 2401.13586.

    Args:
        model: the base with its adapter, at its start.
        cell: the cell; `minkowski` (the weight) and `minkowski_p` of its regulariser are read.
        streams: not used, nothing is drawn.
    """
    settings = cell.regulariser
    start = {name: p.detach().clone() for name, p in base_parameters(model).items()}
    p = settings.minkowski_p
    yield weight_penalty(lambda _: settings.minkowski * distance(model, start, p))


def distance(model: nn.Module, start: Mapping[str, Tensor], p: float) -> Tensor:
    """Return (sum |w - w0|^p)^(1/p) over all that training changes in the base's weights, ().

    These are the base's own parameters that train, minus their `start`, and the Delta-W of every
    adapted matrix, minus the component that its start subtracted from the base. At distance zero
    the gradient is zero. The backward pass computes each change again, so that no more than one
    matrix at a time takes memory.

    Args:
        model: the model.
        start: initial values of the base's own parameters that train, by name.
        p: the order of the norm, at least 1.
    """
    norms = [
        checkpoint(_norm_of, change, p, use_reentrant=False, preserve_rng_state=False)
        for change in _changes(model, start)
    ]
    return _norm(torch.stack(norms), p)


def _norm_of(change: Callable[[], Tensor], p: float) -> Tensor:
    return _norm(change(), p)


def _norm(change: Tensor, p: float) -> Tensor:
    """Return (sum |x|^p)^(1/p), (); divided by the largest |x| first, since x^p can underflow."""
    largest = change.detach().abs().max()
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    return unit * torch.linalg.vector_norm(change / unit, p)


def _changes(model: nn.Module, start: Mapping[str, Tensor]) -> Iterator[Callable[[], Tensor]]:
    """Yield a function for each changed matrix that returns its change, in the stored layout."""
    for name, parameter in model.named_parameters():
        if name in start:
            yield partial(_moved, parameter, start[name])
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            yield from (partial(_delta, layer, adapter) for adapter in layer.active_adapters)


def _moved(parameter: Tensor, start: Tensor) -> Tensor:
    return exact(parameter) - exact(start)


def _delta(layer: Any, adapter: str) -> Tensor:
    change = layer.get_delta_weight(adapter)
    change = exact(change.to_dense() if change.is_sparse else change)
    if hasattr(layer, "residual_P"):  # subtracted from the base by `adapters.init.base_residual`
        residual_DK = layer.residual_P @ layer.residual_Q
        change = change - (residual_DK.T if layer.fan_in_fan_out else residual_DK)
    return change


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in at least 32 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

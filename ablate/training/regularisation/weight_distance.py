"""Distance to the base's weights: weight * (sum |w - w0|^p)^(1/p)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.hooks import Hooks, StepContext
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

    def extra_loss(context: StepContext) -> Tensor | float:
        if not context.last:
            return 0.0
        return settings.minkowski * distance(model, start, settings.minkowski_p)

    yield Hooks(extra_loss=extra_loss)


def distance(model: nn.Module, start: Mapping[str, Tensor], p: float) -> Tensor:
    """Return (sum |w - w0|^p)^(1/p) over all that training changes in the base's weights, ().

    These are the base's own parameters that train, minus their `start`, and the Delta-W of every
    adapted matrix, minus the component that its start subtracted from the base. At distance zero
    the gradient is zero. It needs the memory of each adapted matrix once more, and of its gradient.

    Args:
        model: the model.
        start: initial values of the base's own parameters that train, by name.
        p: the order of the norm, at least 1.
    """
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        norms = [_norm(change, p) for change in _changes(model, start)]
        return _norm(torch.stack(norms), p)


def _norm(change: Tensor, p: float) -> Tensor:
    """Return (sum |x|^p)^(1/p), (); divided by the largest |x| first, since x^p can underflow."""
    largest = change.detach().abs().max()
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    return unit * torch.linalg.vector_norm(change / unit, p)


def _changes(model: nn.Module, start: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for name, parameter in model.named_parameters():
        if name in start:
            yield exact(parameter) - exact(start[name])
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            yield from _deltas(layer)


def _deltas(layer: Any) -> Iterator[Tensor]:
    """Yield the change of a layer's matrix by each active adapter, in the stored layout."""
    for adapter in layer.active_adapters:
        change = layer.get_delta_weight(adapter)
        change = exact(change.to_dense() if change.is_sparse else change)
        if hasattr(
            layer, "residual_P"
        ):  # subtracted from the base by `adapters.init.base_residual`
            residual_DK = layer.residual_P @ layer.residual_Q
            change = change - (residual_DK.T if layer.fan_in_fan_out else residual_DK)
        yield change


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in at least 32 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

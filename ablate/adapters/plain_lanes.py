"""Full fine-tuning of several cells side by side (`training.lanes`).

Every lane has weights of its own; embedding and head are shared, as they do not train.

Letters: N lanes, T tokens of a lane's rows, K inputs, D outputs.
"""

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ablate.training.lanes.layers import LanePart, as_trained


class WholeLinear(LanePart):
    """A linear layer of each lane's own."""

    weight: Tensor  # (N, D, K); Conv1D: (N, K, D)
    whole = True

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__(layers)
        self.turned = not isinstance(layers[0], Conv1D)
        self.bias: Tensor | None = None  # (N, D)

    @staticmethod
    def trained(layer: Any) -> dict[str, nn.Parameter]:
        """Return the weight and, where there is one, the bias."""
        return {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})

    def forward(self, x_NTK: Tensor, out_NTD: Tensor | None = None) -> Tensor:
        """Return W x + b."""
        weight_NKD = self.weight.mT if self.turned else self.weight
        out = torch.bmm(as_trained(x_NTK, self.weight), weight_NKD)
        return out if self.bias is None else out + self.bias[:, None].to(out.dtype)


class WholeNorm(LanePart):
    """A normalisation layer of each lane's own: w f(x) + b, f the layer with w = 1 and b = 0."""

    weight: Tensor  # (N, K)
    whole = True

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__(layers)
        self.bias: Tensor | None = None  # (N, K)
        bare = copy.deepcopy(layers[0]).requires_grad_(False)
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            if getattr(bare, name, None) is not None:
                getattr(bare, name).fill_(value)
        self.bare = bare
        _check_scales(layers[0], bare)

    @staticmethod
    def trained(layer: Any) -> dict[str, nn.Parameter]:
        """Return the weight and, where there is one, the bias."""
        bias = getattr(layer, "bias", None)
        return {"weight": layer.weight} | ({} if bias is None else {"bias": bias})

    def forward(self, x_NTK: Tensor, out_NTD: Tensor | None = None) -> Tensor:
        """Return w f(x) + b."""
        out = self.bare(x_NTK) * self.weight[:, None]
        return out if self.bias is None else out + self.bias[:, None]


@torch.no_grad()
def _check_scales(layer: Any, bare: nn.Module) -> None:
    """Check that a normalisation layer multiplies by its weight, not by 1 + its weight.

    Raises:
        TypeError: it does not.
    """
    size = layer.weight.shape[0]
    x_TK = torch.linspace(-1, 2, 3 * size).view(3, size).to(layer.weight)
    bias = getattr(layer, "bias", None)
    found = bare(x_TK) * layer.weight + (0 if bias is None else bias)
    if not torch.allclose(layer(x_TK), found, rtol=1e-2, atol=1e-2):
        raise TypeError(f"{type(layer).__name__}: layers of this type cannot be stacked")


def kind(layer: nn.Module) -> tuple[type[LanePart], Hashable]:
    """Return the kind of part of a layer that trains whole.

    Raises:
        TypeError: it cannot be stacked.
    """
    if isinstance(layer, nn.Linear | Conv1D):
        return WholeLinear, None
    own = dict(layer.named_parameters(recurse=False))
    if set(own) <= {"weight", "bias"} and all(tensor.ndim == 1 for tensor in own.values()):
        return WholeNorm, None
    raise TypeError(f"{type(layer).__name__}: layers of this type cannot be stacked")

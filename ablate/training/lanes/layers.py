"""A linear layer of the shared base with the adapters of all lanes.

    h_n = W x_n + Delta-W_n x_n              for lane n; W x is one product over all lanes

Letters: N lanes, T tokens of a lane's rows, K inputs, D outputs.
"""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class LanePart(nn.Module):
    """The adapters of some consecutive lanes on one linear layer: of one method and shape.

    Only the first dimension of a stacked tensor may differ between lanes; it is padded with zeros.
    The stacked tensors are set before every forward pass (`stack`); a name in `transposed` is
    stacked transposed.
    """

    transposed: ClassVar[frozenset[str]] = frozenset()
    whole: ClassVar[bool] = False  # the part takes the layer's place and does not add to it

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.lanes = len(layers)

    @staticmethod
    @abstractmethod
    def trained(layer: Any) -> dict[str, nn.Parameter]:
        """Return the trained tensors of one lane's layer by the names of the stacked ones."""

    def keep(self, lanes: Sequence[int]) -> None:
        """Keep what is not trained of some of the lanes only."""
        self.lanes = len(lanes)

    @abstractmethod
    def forward(self, x_NTK: Tensor, out_NTD: Tensor) -> Tensor:
        """Return the base layer's output with the lanes' changes (N, T, D)."""


# From a lane's layer: the kind of part that it can be in, and what its lanes have in common.
Kind = Callable[[Any], tuple[type[LanePart], Hashable]]


class LaneWhole(nn.Module):
    """A part in the place of the base's layer."""

    def __init__(self, part: LanePart) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for rows (N x B, ...), those of lane 0 first."""
        if x.ndim < 3 or x.shape[0] % self.part.lanes:
            raise ValueError(f"input {tuple(x.shape)}: not rows of {self.part.lanes} lanes")
        out: Tensor = self.part(x.reshape(self.part.lanes, -1, x.shape[-1]), x)
        return out.view(*x.shape[:-1], -1)


class LaneLinear(nn.Module):
    """The base's layer, and behind it the parts of all lanes in their order."""

    def __init__(self, base_layer: nn.Module, parts: Sequence[LanePart]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.parts: Sequence[LanePart] = nn.ModuleList(parts)  # type: ignore[assignment]

    def keep(self) -> None:
        """Remove parts that have no lane left."""
        self.parts = nn.ModuleList(part for part in self.parts if part.lanes)  # type: ignore

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for rows (N x B, L, K), those of lane 0 first."""
        sizes = [part.lanes for part in self.parts]
        lanes = sum(sizes)
        if x.ndim != 3 or x.shape[0] % lanes:
            raise ValueError(f"the input has shape {tuple(x.shape)}, not rows of {lanes} lanes")
        out = self.base_layer(x)
        x_NTK, out_NTD = (t.reshape(lanes, -1, t.shape[-1]) for t in (x, out))
        if len(sizes) == 1:
            return self.parts[0](x_NTK, out_NTD).view_as(out)
        each = zip(self.parts, x_NTK.split(sizes), out_NTD.split(sizes), strict=True)
        return torch.cat([part(x, out) for part, x, out in each]).view_as(out)


def as_trained(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x` in the precision of an adapter's weight, as PEFT casts it, but under autocast."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)

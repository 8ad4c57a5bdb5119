"""MoRA of several cells side by side (`training.lanes`).

Letters: N lanes, T tokens of a lane's rows, K inputs, D outputs, Q side of the square matrix.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor, nn

from ablate.adapters.lora.starts import ADAPTER
from ablate.adapters.mora.layer import MoraLinear
from ablate.adapters.mora.square import MAPS
from ablate.training.lanes.layers import LanePart, as_trained


class Squares(LanePart):
    """MoRA (arXiv 2405.12130): decomp(M comp(x)), all lanes with the same maps and side."""

    M: Tensor  # (N, Q, Q)

    def __init__(self, layers: Sequence[MoraLinear]) -> None:
        super().__init__(layers)
        self.maps = MAPS[layers[0].mora_type[ADAPTER]]

    @staticmethod
    def trained(layer: Any) -> dict[str, nn.Parameter]:
        """Return M (q, q)."""
        return {"M": layer.mora_M[ADAPTER]}

    def forward(self, x_NTK: Tensor, out_NTD: Tensor) -> Tensor:
        """Return out + decomp(M comp(x))."""
        change_NTD = self.maps.change(as_trained(x_NTK, self.M), self.M, out_NTD.shape[-1])
        return out_NTD + change_NTD.to(out_NTD.dtype)


def kind(layer: MoraLinear) -> tuple[type[LanePart], Hashable]:
    """Return the kind of part of a layer, of one type and side."""
    return Squares, (layer.mora_type[ADAPTER], len(layer.mora_M[ADAPTER]))

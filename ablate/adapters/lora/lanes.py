"""LoRA, rsLoRA and DoRA of several cells side by side (`training.lanes`).

Ranks may differ: smaller factors are padded with zeros, which get no gradient and stay zero.

Letters: N lanes, T tokens of a lane's rows, K inputs, D outputs, R rank.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ablate.adapters.lora.starts import ADAPTER
from ablate.training.lanes.layers import LanePart, as_trained


class Factors(LanePart):
    """LoRA and rsLoRA: s B A. The stacked B is stored transposed, so that each lane's is dense."""

    A: Tensor  # (N, R, K)
    B: Tensor  # (N, R, D)
    scale_N11: Tensor
    transposed = frozenset({"B"})

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        super().__init__(layers)
        scales = [[[layer.scaling[ADAPTER]]] for layer in layers]
        scale_N11 = layers[0].lora_A[ADAPTER].weight.new_tensor(scales)
        self.register_buffer("scale_N11", scale_N11, persistent=False)

    @staticmethod
    def trained(layer: Any) -> dict[str, nn.Parameter]:
        """Return A (r, K) and B (D, r)."""
        return {"A": layer.lora_A[ADAPTER].weight, "B": layer.lora_B[ADAPTER].weight}

    def keep(self, lanes: Sequence[int]) -> None:
        """Keep the scales of some of the lanes."""
        super().keep(lanes)
        self.scale_N11 = self.scale_N11[list(lanes)]

    def forward(self, x_NTK: Tensor, out_NTD: Tensor) -> Tensor:
        """Return out + s B A x."""
        inner_NTR = torch.bmm(as_trained(x_NTK, self.A), (self.A * self.scale_N11).mT)
        if out_NTD.dtype == inner_NTR.dtype:
            return torch.baddbmm(out_NTD, inner_NTR, self.B)
        return (out_NTD + torch.bmm(inner_NTR, self.B)).to(out_NTD.dtype)


class Magnitudes(Factors):
    """DoRA (arXiv 2402.09353): (W + s B A) with its rows at the lengths m, which train."""

    m: Tensor  # (N, D)
    squares_D: Tensor  # |W|^2 by row

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        super().__init__(layers)
        self.base = [layers[0].get_base_layer()]  # in a list: no submodule
        self.register_buffer("squares_D", self._weight().pow(2).sum(1), persistent=False)

    @staticmethod
    def trained(layer: Any) -> dict[str, nn.Parameter]:
        """Return A (r, K), B (D, r) and m (D,)."""
        return {**Factors.trained(layer), "m": layer.lora_magnitude_vector[ADAPTER].weight}

    def forward(self, x_NTK: Tensor, out_NTD: Tensor) -> Tensor:
        """Return bias + m / |W + s B A| (W + s B A) x; the length gets no gradient."""
        share_N1D = (self.m / self._lengths())[:, None]
        bias = self.base[0].bias
        if bias is None:
            return (super().forward(x_NTK, out_NTD) * share_N1D).to(out_NTD.dtype)
        bare = super().forward(x_NTK, out_NTD - bias)
        return (bare * share_N1D + bias).to(out_NTD.dtype)

    def _weight(self) -> Tensor:
        layer = self.base[0]
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        return weight.detach().to(self.scale_N11.dtype)

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """Return |W + s B A| by row (N, D), from |W|^2 + 2 s (W A^T) B + s^2 B (A A^T) B."""
        with torch.autocast(self.A.device.type, enabled=False):
            scaled_NRD = self.B * self.scale_N11
            crossed_NRD = self.A @ self._weight().T
            inner_NRD = torch.bmm(torch.bmm(self.A, self.A.mT), scaled_NRD)
            squares_ND = (scaled_NRD * (2 * crossed_NRD + inner_NRD)).sum(1) + self.squares_D
        return squares_ND.sqrt()


def kind(layer: LoraLayer) -> tuple[type[LanePart], Hashable]:
    """Return the kind of part of a layer."""
    return (Magnitudes if len(layer.lora_magnitude_vector) else Factors), None

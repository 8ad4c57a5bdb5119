"""MoRA's Delta-W as a dense matrix, from the formulas alone (arXiv 2405.12130, Eq. 4, 6, 8, 9)."""

import math

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# The kinds that are E M C: how inputs and outputs are grouped (the released types 1 to 4).
GROUPED = {
    "sharing": ("strided", "strided"),
    "grouped_2": ("runs", "runs"),
    "grouped_3": ("runs", "strided"),
    "grouped_4": ("strided", "runs"),
}


def turn(i: int, q: int) -> Tensor:
    """R_i of the paper as a matrix: rotate-half pairs, angle i * 10000^(-2s/q)."""
    R = torch.zeros(q, q, dtype=torch.float64)
    for s in range(q // 2):
        angle = i * 10000 ** (-2 * s / q)
        R[s, s] = R[s + q // 2, s + q // 2] = math.cos(angle)
        R[s, s + q // 2] = -math.sin(angle)
        R[s + q // 2, s] = math.sin(angle)
    return R


def runs(size: int, q: int) -> list[int]:
    """The run of each entry: of q balanced runs, the first size mod q are one longer."""
    return [g for g in range(q) for _ in range(size // q + (g < size % q))]


def maps(kind: str, d: int, k: int, q: int) -> tuple[Tensor, Tensor]:
    """E (d, q) and C (q, k): Delta-W = E M C."""
    inputs, outputs = GROUPED[kind]
    C = torch.zeros(q, k, dtype=torch.float64)
    if inputs == "strided":
        for t in range(math.ceil(k / q) * q):
            C[t % q, t % k] += 1
    else:
        for j, g in enumerate(runs(k, q)):
            C[g, j] = 1
    E = torch.zeros(d, q, dtype=torch.float64)
    for i, g in enumerate([i % q for i in range(d)] if outputs == "strided" else runs(d, q)):
        E[i, g] = 1
    return E, C


def dense(kind: str, M: Tensor, d: int, k: int) -> Tensor:
    q = len(M)
    if kind in GROUPED:
        E, C = maps(kind, d, k, q)
        return E @ M @ C
    if kind == "truncate":
        corner = torch.zeros(max(d, q), max(k, q), dtype=torch.float64)
        corner[:q, :q] = M
        return corner[:d, :k]
    n = math.ceil(k / q)
    blocks = torch.zeros(n * q, n * q, dtype=torch.float64)
    for i in range(n):
        R = turn(i, q) if kind == "rotation" else torch.eye(q, dtype=torch.float64)
        blocks[i * q : (i + 1) * q, i * q : (i + 1) * q] = M @ R
    folded = torch.zeros(n * q, k, dtype=torch.float64)
    for t in range(n * q):
        folded[:, t % k] += blocks[:, t]
    return torch.stack([folded[i % (n * q)] for i in range(d)])


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def base(d: int, k: int, *, conv: bool = False) -> nn.Module:
    layer = Conv1D(d, k) if conv else nn.Linear(k, d)
    layer.weight.data = normal(k, d, seed=1) if conv else normal(d, k, seed=1)
    layer.bias.data = normal(d, seed=2)
    return layer.double()


def adapter_buffers(module: nn.Module, layer_type: type[nn.Module]) -> dict[str, Tensor]:
    """The tensors of adapters that do not train, by name: buffers of layers of one type."""
    return {
        f"{name}.{own}": tensor
        for name, layer in module.named_modules()
        if isinstance(layer, layer_type)
        for own, tensor in layer.named_buffers()
        if not own.startswith("base_layer.")
    }

"""The factors of Delta-W = scale * B M A: their names, which of them train, and their product.

Letters: D outputs, K inputs, N inner size, I size inside a pair.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Core = Literal["full", "diagonal", "pair", "identity"]  # the forms of M
Factors = dict[str, Tensor]  # by name: B, A, those of the core, and scale

CORES: Mapping[Core, tuple[str, ...]] = {
    "full": ("M",),
    "diagonal": ("M",),
    "pair": ("up", "down"),
    "identity": (),
}
MIDDLE = ("M", "up", "down")
TRAINS: Mapping[str, tuple[str, ...]] = {
    "all": ("B", *MIDDLE, "A"),
    "left": ("B", *MIDDLE),
    "middle": MIDDLE,
    "middle_and_scale": (*MIDDLE, "scale"),
}
FACTORS = ("B", *MIDDLE, "A", "scale")


def through(x_K: Tensor, factors: Factors) -> Tensor:
    """Return scale * B M A x (..., D) for x (..., K); without M, scale * B A x."""
    h_N = F.linear(x_K, factors["A"])
    if "up" in factors:
        h_N = F.linear(F.linear(h_N, factors["down"]), factors["up"])
    elif "M" in factors:
        M = factors["M"]
        h_N = h_N * M if M.ndim == 1 else F.linear(h_N, M)
    return F.linear(h_N, factors["B"]) * factors["scale"]


def product(factors: Factors) -> Tensor:
    """Return scale * B M A (D, K)."""
    B = factors["B"]
    if "up" in factors:
        B = B @ factors["up"] @ factors["down"]
    elif "M" in factors:
        M = factors["M"]
        B = B * M if M.ndim == 1 else B @ M
    return B @ factors["A"] * factors["scale"]


def difference(now: Factors, then: Factors) -> list[Factors]:
    """Return terms whose products sum to that of `now` minus that of `then`.

    Where both share B and A, the difference is taken in the core, so that one product suffices.
    """
    if now["B"] is then["B"] and now["A"] is then["A"]:
        core = now["scale"] * now["M"] - then["scale"] * then["M"]
        return [now | {"M": core, "scale": torch.ones_like(now["scale"])}]
    return [now, then | {"scale": -then["scale"]}]

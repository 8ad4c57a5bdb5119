"""Products of small matrices other than LoRA's single one.

LoHa (arXiv 2108.06098), LoKr (2309.14859), GraLoRA (2505.20355), GLoRA (2306.07967), DeLoRA
(2503.18225), HiRA (openreview.net, TwJrTz9cRS) and MiSS (2409.15371).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from ablate.adapters.method import (
    PRECISIONS,
    UNQUANTISED,
    CandidateSize,
    Method,
    Shapes,
    Size,
    divisors,
    each,
    lora_count,
    smallest_side,
    total,
)
from ablate.adapters.options import Options, positive, share, whole
from ablate.errors import UserError

LARGEST_FACTOR = 16  # of LoKr's left matrix: a larger one costs f^2 and makes the right one small
REACHED = 0.95  # share of the budget that a Kronecker factor must be able to reach


def scaled(alpha: str = "alpha") -> Callable[[dict[str, Any], Shapes], dict[str, Any]]:
    """Return a `complete` that sets `alpha` to alpha_over_rank times the method's r."""

    def complete(arguments: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
        rest = {k: v for k, v in arguments.items() if k != "alpha_over_rank"}
        return {**rest, alpha: arguments["alpha_over_rank"] * arguments["r"]}

    return complete


def common_divisor(shapes: Shapes) -> int:
    """Return the greatest number that divides both sides of every matrix."""
    return math.gcd(*(side for shape in shapes.values() for side in shape))


# --- LoKr: delta = (f x f) kron (d/f x k/f), the right matrix of rank r or full


def _lokr_count(settings: Options, shapes: Shapes, options: Options) -> int:
    factor, r = settings["decompose_factor"], settings["r"]

    def right(d: int, k: int) -> int:
        low = r < max(d, k) // factor / 2  # PEFT's rule: full-rank from half of the side on
        return r * (d + k) // factor if low else d * k // factor**2

    return total(shapes, lambda d, k: factor**2 + right(d, k))


def _lokr_ranks(factor: int, shapes: Shapes) -> list[int]:
    """Return the ranks at which all right matrices are of low rank, and one at which none is."""
    sides = [max(shape) // factor for shape in shapes.values()]
    return [*range(1, math.ceil(min(sides) / 2)), math.ceil(max(sides) / 2)]


def _lokr_candidates(rank: int, shapes: Shapes, options: Options) -> Iterable[dict[str, Any]]:
    """Return the settings under the largest factor that can reach the budget."""
    common = common_divisor(shapes)
    factors = [f for f in divisors(common) if 1 < f <= LARGEST_FACTOR]
    if not factors:
        raise UserError(
            "adapter.kind=lokr: the sides of the adapted matrices have no common divisor from 2 to "
            f"{LARGEST_FACTOR}; choose other modules"
        )
    found = {f: [{"decompose_factor": f, "r": r} for r in _lokr_ranks(f, shapes)] for f in factors}
    reach = {f: max(_lokr_count(s, shapes, options) for s in found[f][-2:]) for f in factors}
    enough = [f for f in factors if reach[f] >= REACHED * lora_count(rank, shapes)]
    return found[max(enough) if enough else max(factors, key=reach.__getitem__)]


def _gralora_step(shapes: Shapes, options: Options) -> int:
    blocks = int(options["blocks"])
    if common_divisor(shapes) % blocks:
        raise UserError(
            f"adapter.options.blocks={blocks}: must divide the sides of all adapted matrices, "
            f"whose greatest common divisor is {common_divisor(shapes)}"
        )
    return blocks


ROWS = {
    "loha": Method(
        paper="2108.06098",
        config="LoHaConfig",
        formula="2 r (d + k)",
        options={"alpha_over_rank": positive(1.0)},
        size=Size(setting="r", count=each(lambda r, d, k: 2 * r * (d + k)), largest=smallest_side),
        complete=scaled(),
        conv1d=False,
        precisions=(*UNQUANTISED, "int8"),
        has_delta=True,
    ),
    "lokr": Method(
        paper="2309.14859",
        config="LoKrConfig",
        formula="f^2 + r (d + k) / f, or f^2 + d k / f^2",
        options={"alpha_over_rank": positive(1.0)},
        size=CandidateSize(
            setting="decompose_factor, r", candidates=_lokr_candidates, count=_lokr_count
        ),
        complete=scaled(),
        conv1d=False,
        precisions=(*UNQUANTISED, "int8"),
        has_delta=True,
    ),
    "gralora": Method(
        paper="2505.20355",
        config="GraloraConfig",
        formula="r (d + k)",
        options={"blocks": whole(2), "alpha_over_rank": positive(2.0), "dropout": share()},
        names={"blocks": "gralora_k", "dropout": "gralora_dropout"},
        size=Size(
            setting="r",
            count=each(lambda r, d, k: r * (d + k)),
            largest=smallest_side,
            step=_gralora_step,
        ),
        complete=scaled(),
        precisions=PRECISIONS,
        has_delta=True,
    ),
    # The bias paths are off, so that the number of parameters depends on the shapes only.
    "glora": Method(
        paper="2306.07967",
        config="GloraConfig",
        formula="2 r (d + k)",
        fixed={"config_A_B": "lora", "config_C": "none", "config_D_E": "none"},
        size=Size(setting="r", count=each(lambda r, d, k: 2 * r * (d + k)), largest=smallest_side),
        conv1d=False,
    ),
    "delora": Method(
        paper="2503.18225",
        config="DeloraConfig",
        formula="r (d + k) + 1",
        options={"lambda": positive(15.0), "dropout": share()},
        names={"lambda": "delora_lambda", "dropout": "module_dropout"},
        size=Size(setting="r", count=each(lambda r, d, k: r * (d + k) + 1), largest=smallest_side),
        conv1d=False,
        has_delta=True,
    ),
    # No has_delta for HiRA and MiSS: the matrix that PEFT returns is not the change of the weight.
    "hira": Method(
        paper="openreview TwJrTz9cRS",
        config="HiraConfig",
        formula="r (d + k)",
        options={"dropout": share()},
        names={"dropout": "hira_dropout"},
        size=Size(setting="r", count=each(lambda r, d, k: r * (d + k)), largest=smallest_side),
        precisions=PRECISIONS,
    ),
    "miss": Method(
        paper="2409.15371",
        config="MissConfig",
        formula="r d",
        options={"dropout": share()},
        names={"dropout": "miss_dropout"},
        size=Size(
            setting="r",
            count=each(lambda r, d, k: r * d),
            largest=lambda shapes, options: min(k for _, k in shapes.values()),
        ),
        precisions=PRECISIONS,
        conv1d=False,
    ),
}

"""Methods whose matrices share tensors: random bases, a bank of vectors, one vector.

VeRA (arXiv 2310.11454), RandLoRA (2502.00987), VB-LoRA (2405.15179), Uni-LoRA (2506.00799) and
TinyLoRA (2602.04118).
"""

import math
from collections.abc import Iterable
from typing import Any

from ablate.adapters.method import (
    PRECISIONS,
    UNQUANTISED,
    CandidateSize,
    Method,
    Shapes,
    Size,
    divisors,
    lora_count,
    smallest_side,
    total,
)
from ablate.adapters.options import Options, positive, share, whole
from ablate.adapters.peft.products import common_divisor, scaled

LONGEST_VECTOR = 256  # of VB-LoRA's bank, as in the paper


def _longest_side(shapes: Shapes) -> int:
    return max(max(shape) for shape in shapes.values())


# --- RandLoRA: delta = sum_j B_j diag(lambda_j) A diag(gamma_j), with enough terms for full rank


def _randlora_count(settings: Options, shapes: Shapes, options: Options) -> int:
    """Return the count of lambda (r per term) and gamma (the smaller side per term)."""
    r = settings["r"]
    return total(shapes, lambda d, k: math.ceil(min(d, k) / r) * (r + min(d, k)))


def _randlora_candidates(rank: int, shapes: Shapes, options: Options) -> Iterable[dict[str, Any]]:
    """Return the ranks of the basis; a larger one means fewer terms and fewer parameters."""
    return ({"r": r} for r in range(smallest_side(shapes, options), 0, -1))


def _randlora_bases(rank: int, shapes: Shapes, options: Options) -> int:
    """Return the count of the two bases, which PEFT stores with every matrix and once more."""
    side = _longest_side(shapes)
    r = _RANDLORA.chosen(rank, shapes, options)["r"]
    return (len(shapes) + 1) * r * side * (math.ceil(side / r) + 1)


_RANDLORA = CandidateSize(setting="r", candidates=_randlora_candidates, count=_randlora_count)

# --- VB-LoRA: rows of both factors are sums of vectors from one bank


def _vector_length(shapes: Shapes) -> int:
    return max(n for n in divisors(common_divisor(shapes)) if n <= LONGEST_VECTOR)


def _vblora_count(n: int, shapes: Shapes, options: Options) -> int:
    """Return the count of n vectors and of n logits for each sub-vector of a factor's rows."""
    length = _vector_length(shapes)
    pieces = total(shapes, lambda d, k: (d + k) // length)
    return n * (length + options["rank"] * pieces)


def _vblora_complete(arguments: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {**arguments, "vector_length": _vector_length(shapes)}


# --- Uni-LoRA: a LoRA of a higher rank, all entries taken from one vector of LoRA's size


def _unilora(rank: int, shapes: Shapes, options: Options) -> dict[str, Any]:
    return {
        "r": options["expansion"] * rank,
        "theta_d_length": lora_count(rank, shapes),
        "unilora_dropout": options["dropout"],
    }


ROWS = {
    "vera": Method(
        paper="2310.11454",
        config="VeraConfig",
        formula="rank + d",
        options={"rank": whole(256), "d_initial": positive(0.1), "dropout": share()},
        names={"rank": "r", "dropout": "vera_dropout"},
        parameters=lambda rank, shapes, options: sum(
            options["rank"] + d for d, _ in shapes.values()
        ),
        stored=lambda rank, shapes, options: options["rank"] * 2 * _longest_side(shapes),
        seed="projection_prng_key",
        matched=False,
        precisions=PRECISIONS,
        has_delta=True,
        vectors_only=True,
    ),
    "randlora": Method(
        paper="2502.00987",
        config="RandLoraConfig",
        formula="ceil(m / r) (r + m), m = min(d, k)",
        options={"alpha_over_rank": positive(20.0), "dropout": share()},
        names={"dropout": "randlora_dropout"},
        size=_RANDLORA,
        complete=scaled("randlora_alpha"),
        stored=_randlora_bases,
        seed="projection_prng_key",
        precisions=PRECISIONS,
        has_delta=True,
    ),
    "vblora": Method(
        paper="2405.15179",
        config="VBLoRAConfig",
        formula="n rank (d + k) / v, and n v once",
        options={"rank": whole(4), "topk": whole(2), "dropout": share()},
        names={"rank": "r", "dropout": "vblora_dropout"},
        size=Size(
            setting="num_vectors", count=_vblora_count, largest=lambda shapes, options: 2**20
        ),
        complete=_vblora_complete,
        starts_at_base=False,
        precisions=PRECISIONS,
        has_delta=True,
        shards=False,
    ),
    "unilora": Method(
        paper="2506.00799",
        config="UniLoraConfig",
        formula="the budget, once",
        options={"expansion": whole(4), "dropout": share()},
        arguments=_unilora,
        parameters=lambda rank, shapes, options: lora_count(rank, shapes),
        seed="proj_seed",
        starts_at_base=False,
        precisions=UNQUANTISED,  # PEFT casts its scales to the weight's type: an integer is zero
        has_delta=True,
        vectors_only=True,
        shards=False,
    ),
    "tinylora": Method(
        paper="2602.04118",
        config="TinyLoraConfig",
        formula="numbers",
        options={"rank": whole(2), "numbers": whole(64), "dropout": share()},
        names={"rank": "r", "numbers": "u", "dropout": "tinylora_dropout"},
        parameters=lambda rank, shapes, options: options["numbers"] * len(shapes),
        stored=lambda rank, shapes, options: total(
            shapes,
            lambda d, k: options["rank"] * (d + k) + options["numbers"] * options["rank"] ** 2,
        ),
        seed="projection_seed",
        matched=False,
        precisions=UNQUANTISED,
        has_delta=True,
        vectors_only=True,
        shards=False,
    ),
}

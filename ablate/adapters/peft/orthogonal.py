"""Rotations of the inputs or outputs of a matrix, or of its principal subspace.

OFT (arXiv 2306.07280), BOFT (2311.06243), HRA (2405.17484), RoAd (2409.00119) and PSOFT
(2505.11235).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ablate.adapters.method import (
    PRECISIONS,
    CandidateSize,
    Method,
    Shapes,
    Size,
    divisors,
    each,
    smallest_side,
    total,
)
from ablate.adapters.options import Options, flag, one_of, whole
from ablate.errors import UserError

LARGEST_GROUP = 64  # of RoAd's outputs: decides which are paired, not how many pairs there are
# Parameters per output: one angle and scale per pair, per output, or per column of a 2 x 2 matrix.
ROAD = {"road_1": 1, "road_2": 2, "road_4": 4}

# --- OFT: skew-symmetric blocks on the inputs, k / b of them with b (b - 1) / 2 numbers each


def _block(wanted: int, k: int) -> int:
    """Return the divisor of `k` nearest to `wanted`, the lower at a tie: PEFT's own rule."""
    return min(divisors(k), key=lambda b: (abs(b - wanted), b))


def _oft_candidates(rank: int, shapes: Shapes, options: Options) -> Iterable[dict[str, Any]]:
    sizes = {b for k in {k for _, k in shapes.values()} for b in divisors(k) if b > 1}
    return ({"oft_block_size": b} for b in sorted(sizes))


def _oft_count(settings: Mapping[str, Any], shapes: Shapes, options: Options) -> int:
    wanted = settings["oft_block_size"]
    return total(shapes, lambda d, k: k * (_block(wanted, k) - 1) // 2)


# --- BOFT: m butterfly factors of k / b blocks with b^2 numbers each, and a scale per output


def _boft_candidates(rank: int, shapes: Shapes, options: Options) -> Iterable[dict[str, Any]]:
    """Return the block sizes: even, and with 2^(m - 1) of them dividing the inputs."""
    common = math.gcd(*(k for _, k in shapes.values()))
    sizes = [b for b in divisors(common // 2 ** (options["factors"] - 1)) if b % 2 == 0]
    if not sizes:
        raise UserError(
            f"adapter.options.factors={options['factors']}: needs inputs of all adapted matrices "
            f"that are divisible by {2 ** options['factors']}; choose fewer factors"
        )
    return [{"boft_block_size": b} for b in sizes]


def _boft_count(settings: Mapping[str, Any], shapes: Shapes, options: Options) -> int:
    block, factors = settings["boft_block_size"], options["factors"]
    return total(shapes, lambda d, k: factors * k * block + d)


# --- RoAd: pairs of outputs, half a group apart, are rotated and stretched


def _road_complete(arguments: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    common = math.gcd(*(d for d, _ in shapes.values()))
    groups = [g for g in divisors(common) if g % 2 == 0 and g <= LARGEST_GROUP]
    if not groups:
        raise UserError("adapter.kind=road: an adapted matrix has an odd number of outputs")
    return {**arguments, "group_size": max(groups)}


def _road_parameters(rank: int, shapes: Shapes, options: Options) -> int:
    return ROAD[options["variant"]] * sum(d for d, _ in shapes.values())


# --- PSOFT: delta = U S (R - I) V', R is r x r


def _psoft_count(r: int, shapes: Shapes, options: Options) -> int:
    rotation = r * (r - 1) // 2 if options["orthogonal"] else r * r
    return len(shapes) * (rotation + (2 * r if options["magnitudes"] else 0))


def _psoft_complete(arguments: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    rest = {k: v for k, v in arguments.items() if k != "magnitudes"}
    magnitudes = arguments["magnitudes"]
    return {**rest, "psoft_mag_a": magnitudes, "psoft_mag_b": magnitudes}


ROWS = {
    "oft": Method(
        paper="2306.07280",
        config="OFTConfig",
        formula="k (b - 1) / 2",
        options={"cayley_neumann": flag()},
        names={"cayley_neumann": "use_cayley_neumann"},
        size=CandidateSize(setting="oft_block_size", candidates=_oft_candidates, count=_oft_count),
        quiet="Invalid `oft_block_size`",
        conv1d=False,
        precisions=PRECISIONS,
    ),
    "boft": Method(
        paper="2311.06243",
        config="ablate.adapters.peft_compat:BOFTConfig",
        formula="factors k b + d",
        options={"factors": whole(2)},
        names={"factors": "boft_n_butterfly_factor"},
        size=CandidateSize(
            setting="boft_block_size", candidates=_boft_candidates, count=_boft_count
        ),
        starts_nonzero=True,  # a scale of each output, from one
        conv1d=False,
        precisions=PRECISIONS,
    ),
    # An even number of reflections: they start as equal pairs, which cancel.
    "hra": Method(
        paper="2405.17484",
        config="HRAConfig",
        formula="r k",
        size=Size(
            setting="r",
            count=each(lambda r, d, k: r * k),
            largest=lambda shapes, options: min(k for _, k in shapes.values()),
            step=lambda shapes, options: 2,
        ),
        conv1d=False,
    ),
    "road": Method(
        paper="2409.00119",
        config="RoadConfig",
        formula="d; 2 d; 4 d",
        options={"variant": one_of(*ROAD)},
        complete=_road_complete,
        parameters=_road_parameters,
        matched=False,
        conv1d=False,
        precisions=PRECISIONS,
        vectors_only=True,
    ),
    "psoft": Method(
        paper="2505.11235",
        config="PsoftConfig",
        formula="r (r - 1) / 2, r^2 if free; 2 r more with magnitudes",
        options={"orthogonal": flag(True), "magnitudes": flag(True)},
        names={"orthogonal": "psoft_orth"},
        size=Size(setting="r", count=_psoft_count, largest=smallest_side),
        complete=_psoft_complete,
        conv1d=False,
        has_delta=True,
        vectors_only=lambda options: options["orthogonal"],
        starts_nonzero=lambda options: not options["orthogonal"],  # R, from the identity
    ),
}

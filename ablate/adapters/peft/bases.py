"""Changes that are sparse or circulant in some basis, and so of high rank.

Sparse in the entries themselves: SHiRA (arXiv 2406.13175). In the Fourier basis: FourierFT
(2405.03003). In a wavelet basis: WaveFT (2505.12532). Circulant blocks: C3A (2407.19342).
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ablate.adapters.method import (
    PRECISIONS,
    CandidateSize,
    Method,
    Shape,
    Shapes,
    Size,
    divisors,
    each,
    lora_count,
)
from ablate.adapters.options import Options, one_of, positive


def _key(name: str) -> str:
    """Return a module's name as PEFT looks it up in a pattern: the part after the first dot."""
    return name.partition(".")[2] or name


# --- FourierFT and WaveFT: n coefficients per matrix, at most d k

_FREQUENCIES = Size(
    setting="n_frequency",
    count=each(lambda n, d, k: min(n, d * k)),
    largest=lambda shapes, options: max(d * k for d, k in shapes.values()),
)


def _frequencies(arguments: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    n = arguments["n_frequency"]
    small = {_key(name): d * k for name, (d, k) in shapes.items() if d * k < n}
    return {**arguments, "n_frequency_pattern": small}


# --- C3A: every b x b block of a matrix is circulant, so d k / b numbers; b divides both sides


def _c3a_candidates(rank: int, shapes: Shapes, options: Options) -> Iterable[dict[str, Any]]:
    """Return the combinations of block sizes, for each shape the two nearest to LoRA's count.

    The sides of one model rarely have the divisor in common that the budget asks for.
    """
    distinct = sorted(set(shapes.values()))
    choices = [_blocks_around(rank, shape) for shape in distinct]
    for sizes in itertools.product(*choices):
        chosen = dict(zip(distinct, sizes, strict=True))
        yield {"block_size_pattern": {_key(n): chosen[shape] for n, shape in shapes.items()}}


def _blocks_around(rank: int, shape: Shape) -> list[int]:
    """Return the divisors of both sides just below and just above d k / (r (d + k))."""
    d, k = shape
    known = divisors(math.gcd(d, k))
    ideal = d * k / (rank * (d + k))
    below = [b for b in known if b <= ideal]
    above = [b for b in known if b > ideal]
    return [*below[-1:], *above[:1]]


def _c3a_count(settings: Mapping[str, Any], shapes: Shapes, options: Options) -> int:
    sizes = settings["block_size_pattern"]
    return sum(d * k // sizes[_key(name)] for name, (d, k) in shapes.items())


ROWS = {
    "shira": Method(
        paper="2406.13175",
        config="ablate.adapters.peft_compat:ShiraConfig",
        formula="r (d + k)",
        size=Size(
            setting="r",
            count=each(lambda r, d, k: r * (d + k)),
            largest=lambda shapes, options: min(d * k // (d + k) for d, k in shapes.values()),
        ),
        stored=lambda rank, shapes, options: 2 * lora_count(rank, shapes),  # row and column of each
        seed="random_seed",
        conv1d=False,
        precisions=PRECISIONS,
        has_delta=True,
        vectors_only=True,
    ),
    # FourierFT and C3A start at zero here. Their papers draw initial values, FourierFT from
    # N(0, 1), which on a narrow model would dominate the base; at zero both receive a gradient.
    "fourierft": Method(
        paper="2405.03003",
        config="FourierFTConfig",
        formula="n, at most d k",
        options={"scaling": positive(300.0)},
        fixed={"init_weights": True},
        size=_FREQUENCIES,
        complete=_frequencies,
        seed="random_loc_seed",
        precisions=PRECISIONS,
        has_delta=True,
        vectors_only=True,
    ),
    "waveft": Method(
        paper="2505.12532",
        config="WaveFTConfig",
        formula="n, at most d k",
        options={"scaling": positive(25.0), "wavelet": one_of("db1", "db2", "sym4", "coif1")},
        names={"wavelet": "wavelet_family"},
        size=_FREQUENCIES,
        complete=_frequencies,
        seed="random_loc_seed",
        precisions=PRECISIONS,
        has_delta=True,
        vectors_only=True,
    ),
    "c3a": Method(
        paper="2407.19342",
        config="C3AConfig",
        formula="d k / b",
        fixed={"init_weights": True},
        size=CandidateSize(setting="block_size", candidates=_c3a_candidates, count=_c3a_count),
        conv1d=False,
        precisions=PRECISIONS,
        has_delta=True,
    ),
}

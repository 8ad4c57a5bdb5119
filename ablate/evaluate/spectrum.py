"""The spectrum of a weight change, matrix by matrix, as in arXiv 2405.09673, section 4.5.

Of a decoder matrix that changed by D = W' - W, with singular values s_1 >= s_2 >= ...:

    rank90   the smallest k whose k leading components hold 90 % of the sum of s_i^2, over the
             number of components; the paper does not write the square, but its numbers have it
    stable   sum of s_i^2 / s_1^2 over the number of components

An i.i.d. Gaussian D has a rank90 of about 0.5 to 0.75 by its aspect ratio, so that a high number is
no evidence of structure: a figure must show that line beside it.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

ENERGY = 0.9


def spectrum(changes: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[float, int]]:
    """Return means of both numbers by kind of matrix and, of rank90, by layer; and their counts.

    Names: rank90_q_proj, stable_q_proj, rank90_layer_0. Matrices that did not change are left out.

    Args:
        changes: of the matrices of the decoder's numbered layers, by the name of the parameter.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for name, change in changes:
        if not bool(change.any()):
            continue
        rank90, stable = ranks(torch.linalg.svdvals(change))
        *path, kind, _ = name.split(".")
        layer = next(part for part in path if part.isdigit())
        found[f"rank90_{kind}"].append(rank90)
        found[f"stable_{kind}"].append(stable)
        found[f"rank90_layer_{layer}"].append(rank90)
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


def ranks(values: Tensor) -> tuple[float, float]:
    """Return rank90 and the stable rank of falling singular values, over their number."""
    energy = values.double() ** 2
    share = energy.cumsum(0) / energy.sum()
    needed = int((share < ENERGY * (1 - 1e-12)).sum()) + 1
    return needed / len(values), float(energy.sum() / energy[0]) / len(values)

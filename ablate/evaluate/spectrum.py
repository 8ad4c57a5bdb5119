"""The spectrum of a weight change, matrix by matrix, as in arXiv 2405.09673, section 4.5.

Of a decoder matrix that changed by D = W' - W, with singular values s_1 >= s_2 >= ...:

    rank90   the smallest k whose k leading components hold 90 % of the sum of s_i^2, over the
             number of components; the paper does not write the square, but its numbers have it
    stable   sum of s_i^2 / s_1^2 over the number of components

And as the MoRA paper counts them (arXiv 2405.12130, figure 5), with what its absolute threshold
hides: the further a matrix moved, the more of its singular values are above it.

    above_0.1     how many s_i are above 0.1
    above_tenth   how many are above s_1 / 10, which no factor on D alters
    rank          how many are not rounding: above eps (max(rows, columns) s_1 + |W| + |D|), with
                  Frobenius norms and the eps of float32
    largest       s_1

An i.i.d. Gaussian D has a rank90 of about 0.5 to 0.75 by its aspect ratio, so that a high number is
no evidence of structure: a figure must show that line beside it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

ENERGY = 0.9
ABSOLUTE, RELATIVE = 0.1, 0.1
EPS = float(np.finfo(np.float32).eps)


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


def counts(
    changes: Iterable[tuple[str, Tensor]], sizes: Mapping[str, float]
) -> dict[str, list[float]]:
    """Return the four counts by kind of matrix, a number per layer.

    Names: above_0.1_q_proj, above_tenth_q_proj, rank_q_proj, largest_q_proj. A matrix that did not
    change has zeros.

    Args:
        changes: of the matrices of the decoder's numbered layers, by the name of the parameter.
        sizes: Frobenius norms of what these were before.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for name, change in changes:
        values = torch.linalg.svdvals(change).double().cpu().numpy()
        largest, norm = float(values[0]), float(np.sqrt((values**2).sum()))
        noise = EPS * (max(change.shape) * largest + sizes[name] + norm)
        kind = name.split(".")[-2]
        found[f"above_0.1_{kind}"].append(float((values > ABSOLUTE).sum()))
        found[f"above_tenth_{kind}"].append(float((values > RELATIVE * largest).sum()))
        found[f"rank_{kind}"].append(float((values > noise).sum()))
        found[f"largest_{kind}"].append(largest)
    return dict(found)

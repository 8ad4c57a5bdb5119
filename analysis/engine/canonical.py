"""Factors of covariance matrices that are the same, up to rounding, on every processor.

Eigenvectors have no sign of their own, and those of a repeated eigenvalue are any rotation of one
another: what LAPACK returns hangs on its code for the processor at hand. So would random draws made
with them, and whatever else is not the same for all of them. Balanced designs repeat eigenvalues.

Letters in names: K rows of a matrix, R rank.
"""

from collections.abc import Callable

import numpy as np

from analysis.engine.linalg import Array
from analysis.engine.ties import first_largest

LOST = 1e-10  # the share of the largest variance below which one follows from the others
REPEATED = 1e-8  # of the largest eigenvalue: those closer than this are one


def pivoted(diagonal_K: Array, column: Callable[[int], Array]) -> tuple[Array, list[int]]:
    """Return L (K, R) with L L' = A, a pivoted Cholesky factor, and the pivots in their order.

    Each column is made from the row that the columns before leave most of; of equal rows the first.

    Args:
        diagonal_K: of A, positive semidefinite.
        column: returns a column of A, (K,).
    """
    left_K, least = diagonal_K.astype(np.float64), LOST * diagonal_K.max(initial=0.0)
    l_KR, pivots = np.zeros((len(left_K), 0)), list[int]()
    while len(pivots) < len(left_K) and left_K.max() > least:
        p = first_largest(left_K)
        new_K = (column(p) - l_KR @ l_KR[p]) / np.sqrt(left_K[p])
        l_KR = np.column_stack([l_KR, new_K])
        left_K -= new_K**2
        left_K[p] = 0.0
        pivots.append(p)
    return l_KR, pivots


def root(cov_KK: Array) -> Array:
    """Return the symmetric root of a covariance; times standard normal draws, it gives its draws.

    The one root that no choice of eigenvectors enters.
    """
    values_K, vectors_KK = np.linalg.eigh(cov_KK)
    return np.asarray((vectors_KK * np.sqrt(np.maximum(values_K, 0.0))) @ vectors_KK.T)


def eigen(cov_KK: Array) -> tuple[Array, Array]:
    """Return eigenvalues, rising, and eigenvectors (K, K), but for their sign always the same.

    Of a repeated eigenvalue they are the pivoted Cholesky factor of the projection on its space.
    """
    values_K, vectors_KK = np.linalg.eigh(cov_KK)
    near = REPEATED * np.abs(values_K).max(initial=0.0)
    starts = np.flatnonzero(np.diff(values_K, prepend=-np.inf) > near)
    for own in np.split(np.arange(len(values_K)), starts[1:]):
        if len(own) > 1:
            space_KK = vectors_KK[:, own] @ vectors_KK[:, own].T
            vectors_KK[:, own] = pivoted(np.diagonal(space_KK), space_KK.__getitem__)[0]
    return values_K, vectors_KK

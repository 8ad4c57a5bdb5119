"""Linear algebra for `engine.lmm`: least squares, and batches of small matrices.

Letters in names: N rows, L levels, P columns of a factor, B fixed effects, M columns.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr, solve_triangular

from analysis.engine.summary import brief

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
SMALL = 256  # rows up to which a mask is kept
RANK_TOLERANCE = 1e-8  # of a column's length, after the columns before it are taken out
ROUNDING = 1e-13  # of a column's length, below which what the first one leaves of it is an error


@brief
@dataclass(frozen=True, slots=True)
class Fixed:
    """The fixed part after an orthogonal change of columns: well conditioned in any units."""

    kept: Index  # the columns of X that earlier columns do not determine
    q_NB: Array
    r_BB: Array
    ols_B: Array
    residual_N: Array


def independent_columns(X_NB: Array) -> Index:
    """Return the columns of X that are not determined by the columns before them.

    A column's length is measured without the first column, the intercept as a rule: a time in
    seconds since 1970 varies little beside its mean.
    """
    length_B = np.linalg.norm(X_NB, axis=0)
    kept = np.flatnonzero(length_B > 0)
    unit_NB = X_NB[:, kept] / length_B[kept]
    first_NB = unit_NB[:, :1]
    left_NB = np.hstack([first_NB, unit_NB[:, 1:] - first_NB @ (first_NB.T @ unit_NB[:, 1:])])
    length_B = np.linalg.norm(left_NB, axis=0)
    kept, left_NB = kept[length_B > ROUNDING], left_NB[:, length_B > ROUNDING]
    left_NB /= length_B[length_B > ROUNDING]
    r_BB = qr(left_NB, mode="r", check_finite=False)[0][: len(kept)]
    # More columns than rows leave no diagonal for the last ones.
    if len(r_BB) == len(kept) and (np.abs(np.diagonal(r_BB)) >= RANK_TOLERANCE).all():
        return kept
    return kept[_leading(np.array(r_BB))]


def _leading(r_MM: Array) -> Mask:
    """Return which columns of an upper triangle are not determined by those before them.

    Householder's steps, each for the next such column: a QR decomposition would have to be made
    again without every column that it finds to be determined. The triangle is used up.
    """
    found, row = np.zeros(r_MM.shape[1], dtype=bool), 0
    for column in range(r_MM.shape[1]):
        v = r_MM[row:, column].copy()
        length = float(np.linalg.norm(v))
        if length < RANK_TOLERANCE:
            continue
        found[column] = True
        below = 1 + int(
            np.flatnonzero(v)[-1]
        )  # before the first one that is left out, a single row
        if below > 1:
            v = v[:below]
            v[0] += np.copysign(length, v[0])
            rest_MM = r_MM[row : row + below, column + 1 :]
            rest_MM -= np.outer(v, (2 / (v @ v)) * (v @ rest_MM))
        row += 1
    return found


def orthogonal(X_NB: Array, y_N: Array) -> Fixed:
    """Return X = Q R without its dependent columns, and y without what X explains."""
    kept = independent_columns(X_NB)
    q_NB, r_BB = qr(X_NB[:, kept], mode="economic", check_finite=False)
    fit_B = q_NB.T @ y_N
    ols_B = solve_triangular(r_BB, fit_B, check_finite=False)
    return Fixed(kept, np.asarray(q_NB), np.asarray(r_BB), ols_B, y_N - q_NB @ fit_B)


def symmetric(lower_MM: Array) -> Array:
    """Return the symmetric matrix with this lower triangle."""
    if len(lower_MM) <= SMALL:
        return np.where(_below(len(lower_MM)), lower_MM, lower_MM.T)
    found = np.tril(lower_MM)
    found += np.tril(lower_MM, -1).T
    return found


@lru_cache(maxsize=64)
def _below(m: int) -> Mask:
    """Return the lower triangle's mask; numpy makes one anew on every call of `tril`."""
    return np.tri(m, dtype=np.bool_)


def triangular(rows_PM: Array) -> Array:
    """Return the lower triangle L, its diagonal not negative, with L L' = rows rows', (P, P)."""
    _, upper = np.linalg.qr(rows_PM.T)
    return np.asarray((upper * np.where(np.diagonal(upper) < 0, -1.0, 1.0)[:, None]).T)


def times(a_LPP: Array, b_LPM: Array) -> Array:
    """Return a b for every level; numpy's product of 1 x 1 matrices is slow."""
    return a_LPP * b_LPM if a_LPP.shape[-1] == 1 else a_LPP @ b_LPM


def sweep(c_LPP: Array) -> tuple[Array, float]:
    """Return the inverses and the summed log determinant of small positive definite matrices.

    Gauss-Jordan steps, all levels at once: LAPACK would be called once a level.

    Raises:
        numpy.linalg.LinAlgError: one of them is not positive definite.
    """
    log_det = 0.0
    for j in range(c_LPP.shape[-1]):
        pivot_L = c_LPP[:, j, j].copy()
        if not pivot_L.min(initial=1.0) > 0:
            raise np.linalg.LinAlgError("a block is not positive definite")
        log_det += float(np.log(pivot_L).sum())
        row_LP = c_LPP[:, j, :] / pivot_L[:, None]
        column_LP = c_LPP[:, :, j].copy()
        c_LPP = c_LPP - column_LP[:, :, None] * row_LP[:, None, :]
        c_LPP[:, j, :], c_LPP[:, :, j] = row_LP, -column_LP / pivot_L[:, None]
        c_LPP[:, j, j] = 1 / pivot_L
    return c_LPP, log_det

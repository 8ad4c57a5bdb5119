"""Does a quadratic describe the curve? F tests against any curve and against a spline.

    any curve  the quadratic within the levels as a factor
    spline     what a natural cubic spline (4 knots) adds to the quadratic: it has fewer degrees
               of freedom and sees a smooth deviation that the first may miss; with 5 levels both
               are one test

Both are held against the noise of `curve.level_curve`: that of cells where it can be told from that
of seeds. The degrees of freedom are Satterthwaite's, and exact in a balanced grid.

Letters in names: L levels, M = L - 1 steps, K knots, S columns of a shape.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.curve.level_curve import Curve, least_squares, power_columns
from analysis.engine.linalg import Array
from analysis.table.adjusted_means import independent

KNOTS = 4
TESTABLE = 4  # levels from which a quadratic can fail to fit
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class FTest:
    """An F test; all of it is NaN where the levels are too few."""

    statistic: float
    df: int
    df_residual: float
    p: float


def any_curve_test(found: Curve) -> FTest:
    """Return the F test of the quadratic within the levels as a factor."""
    return _within(found, power_columns(found, 2), np.eye(len(found.m_M)))


def spline_test(found: Curve) -> FTest:
    """Return the F test of what a natural cubic spline adds to the quadratic."""
    if len(found.x_L) < TESTABLE:
        return FTest(NAN, 0, found.df, NAN)
    basis_LS = natural_spline(found.x_L, knots_of(found.x_L))
    both_LS = np.hstack([np.vander(found.x_L, 3, increasing=True)[:, 1:], basis_LS])
    x_MS = independent(found.r_MM @ np.diff(both_LS, axis=0))
    return _within(found, power_columns(found, 2), x_MS)


def _within(found: Curve, small_MS: Array, large_MS: Array) -> FTest:
    extra = large_MS.shape[1] - small_MS.shape[1]
    if extra < 1:
        return FTest(NAN, 0, found.df, NAN)
    gained = least_squares(small_MS, found.m_M)[1] - least_squares(large_MS, found.m_M)[1]
    statistic = max(gained, 0.0) / extra / found.variance
    return FTest(statistic, extra, found.df, float(stats.f.sf(statistic, extra, found.df)))


def knots_of(x_L: Array) -> Array:
    """Return up to 4 knots: the levels at equal steps of their order, both ends included."""
    return np.asarray(x_L[np.unique(np.linspace(0, len(x_L) - 1, KNOTS).round().astype(int))])


def natural_spline(x_L: Array, knots_K: Array) -> Array:
    """Return the K - 2 curved columns of a natural cubic spline at x (L, K - 2).

    Reference: Hastie, Tibshirani and Friedman (2009), equations 5.4 and 5.5; the constant and the
    line that complete the basis are left out.
    """
    cubes_LK = np.maximum(x_L[:, None] - knots_K, 0.0) ** 3
    d_LK = (cubes_LK[:, :-1] - cubes_LK[:, -1:]) / (knots_K[-1] - knots_K[:-1])
    return np.asarray(d_LK[:, :-1] - d_LK[:, -1:])

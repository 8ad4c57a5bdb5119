"""The scores of a panel by level of the weight, freed of what the runs were crossed with.

Arm and block (see `analysis.table.run_panels`) are adjusted for by least squares. What is left is
turned so that L levels of the weight become L - 1 numbers m with independent errors of one
variance,

    m = R d + e,

where d are the steps from each level to the next. A curve is then a rule for d: free (any curve),
those of a quadratic, or all of one sign (monotone). The variance of e is the scatter of runs about
the mean of their own arm and level (pure error), so that a curve that differs between arms is not
mistaken for noise; without replicates it is the scatter about the additive model.

Letters in names: N runs, L levels, M = L - 1 steps, K columns that are adjusted for.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.optimum import Quadratic
from analysis.table.adjusted_means import adjusted_columns, dummies, independent, without
from analysis.table.run_panels import nuisance

SAME = 9  # digits of wp; data sets round their own effective weight


@dataclass(frozen=True, slots=True)
class Curve:
    """The scores of a panel by level, freed of arm and block: m = R d + e."""

    x_L: Array  # the levels of the weight, ascending
    m_M: Array  # M = L - 1
    r_MM: Array
    variance: float  # of e, from pure error
    df: float  # of the variance
    rest: float  # sum of squares of the runs about the level means, additive in arm and level
    rest_df: float

    @property
    def quadratic(self) -> Quadratic:
        """The fitted quadratic; its error is the scatter about it, its lack of fit included."""
        x_M2 = power_columns(self, 2)
        (b1, b2), rss = least_squares(x_M2, self.m_M)
        df = self.rest_df + len(self.m_M) - 2
        variance = (rss + self.rest) / df
        return Quadratic(b1, b2, np.asarray(variance * np.linalg.inv(x_M2.T @ x_M2)), df)


def reduced(runs: pd.DataFrame) -> Curve:
    """Return the scores of `runs` by level of wp, as the module's docstring has them."""
    x_L, index_N = np.unique(runs["wp"].to_numpy(dtype=float).round(SAME), return_inverse=True)
    if len(x_L) < 3:
        raise AnalysisError(f"shape: {len(x_L)} levels of the weight; a curve needs at least 3")
    y_N1 = runs["score"].to_numpy(dtype=float)[:, None]
    steps_NM = (index_N[:, None] >= np.arange(1, len(x_L))).astype(float)
    try:
        fit = adjusted_columns(steps_NM, nuisance(runs), y_N1)
    except AnalysisError as error:
        raise AnalysisError(f"shape: {error}") from error
    rest = float(fit.residual_YY[0, 0]) * fit.df
    variance, df = _pure_error(runs, rest / fit.df, fit.df)
    if variance <= 1e-12 * float((y_N1**2).mean()):
        raise AnalysisError("shape: replicates do not differ, so there is no noise to judge by")
    m_M = fit.root_SS @ fit.mean_SY[:, 0]
    return Curve(x_L, m_M, fit.root_SS, variance, df, rest, fit.df)


def _pure_error(runs: pd.DataFrame, other: float, other_df: float) -> tuple[float, float]:
    """Return the variance within arm and level (block adjusted for), or else `other`."""
    cell = runs["arm"] + " " + runs["wp"].round(SAME).astype(str)
    x_NK = independent(np.hstack([dummies(cell), dummies(runs["block"])]))
    df = len(runs) - x_NK.shape[1]
    if df < 1:
        return other, float(other_df)
    left_N1 = without(x_NK, runs["score"].to_numpy(dtype=float)[:, None])
    return float((left_N1**2).sum()) / df, float(df)


def power_columns(found: Curve, degree: int) -> Array:
    """Return the columns of a polynomial without its constant, turned as m is (M, degree)."""
    powers_LS = np.vander(found.x_L, degree + 1, increasing=True)[:, 1:]
    return np.asarray(found.r_MM @ np.diff(powers_LS, axis=0))


def least_squares(x_MS: Array, m_M: Array) -> tuple[Array, float]:
    """Return the coefficients and the residual sum of squares."""
    b_S = np.asarray(np.linalg.lstsq(x_MS, m_M, rcond=None)[0], dtype=np.float64)
    return b_S, float(((m_M - x_MS @ b_S) ** 2).sum())

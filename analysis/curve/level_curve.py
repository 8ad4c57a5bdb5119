"""The scores of a panel by level of the weight, freed of what the runs were crossed with.

The default model of a panel with the weight's levels in place of the quadratic: arm and block (see
`analysis.table.run_panels`) are adjusted for, cells are a random effect where they can be told from
noise, so that a curve that differs between arms counts as noise of the mean curve. What it says of
L levels is turned into L - 1 numbers m with independent errors of one variance,

    m = R d + e,

where d are the steps from each level to the next. A curve is then a rule for d: free (any curve),
those of a quadratic, or all of one sign (monotone).

Letters in names: N runs, L levels, M = L - 1 steps, B coefficients.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES, contrast, covariance
from analysis.inference.optimum import Quadratic
from analysis.mixed import fit_mixed
from analysis.table.cell_effect import cell_formula

SAME = 9  # digits of wp; data sets round their own effective weight


@dataclass(frozen=True, slots=True)
class Curve:
    """The scores of a panel by level, freed of arm and block: m = R d + e."""

    x_L: Array  # the levels of the weight, ascending
    m_M: Array  # M = L - 1
    r_MM: Array
    variance: float  # of e
    df: float  # of the variance: the fewest of any step

    @property
    def quadratic(self) -> Quadratic:
        """The quadratic through the level means."""
        x_M2 = power_columns(self, 2)
        (b1, b2), _ = least_squares(x_M2, self.m_M)
        cov_22 = self.variance * np.linalg.inv(x_M2.T @ x_M2)
        return Quadratic(b1, b2, np.asarray(cov_22), self.df)


MOST_DF = 1e9  # in place of an infinite number, which draws and F tests do not take


def reduced(runs: pd.DataFrame, *, df: str = DF_RULES[0]) -> Curve:
    """Return the scores of `runs` by level of wp, as the module's docstring has them.

    Args:
        runs: one row per unit with independent errors: wp, score, arm, block.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.

    Raises:
        AnalysisError: fewer than three levels, levels that do not share their arms and blocks, or
            no noise to judge by.
    """
    x_L, index_N = np.unique(runs["wp"].to_numpy(dtype=float).round(SAME), return_inverse=True)
    if len(x_L) < 3:
        raise AnalysisError(f"shape: {len(x_L)} levels of the weight; a curve needs at least 3")
    steps = {f"step{m}": (index_N >= m).astype(float) for m in range(1, len(x_L))}
    cell = runs["arm"] + " " + runs["wp"].round(SAME).astype(str)
    table = runs[["score", "arm", "block"]].assign(**steps, cell=cell)
    crossed = [n for n in ("arm", "block") if table[n].nunique() > 1]
    formula = f"score ~ {' + '.join([*steps, *crossed])} + (1 | cell)"
    try:
        fit = fit_mixed(table, cell_formula(formula, table)[0])
    except AnalysisError as error:
        raise AnalysisError(f"shape: {error}") from error
    known = [list(fit.design.names).index(n) for n in steps]
    l_MB = fit.kept(np.eye(len(fit.design.names))[known])
    if not np.isfinite(l_MB).all():
        raise AnalysisError("shape: the levels of the weight do not share their arms and blocks")
    cov_MM = l_MB @ covariance(fit, df) @ l_MB.T
    if not np.diagonal(cov_MM).min() > 1e-12 * float((runs["score"] ** 2).mean()):
        raise AnalysisError("shape: replicates do not differ, so there is no noise to judge by")
    r_MM = np.linalg.cholesky(np.linalg.inv(cov_MM)).T * fit.sigma
    d_M = l_MB @ fit.fixef.to_numpy()
    least = min(contrast(fit, l_B, df=df).df for l_B in l_MB)
    return Curve(x_L, r_MM @ d_M, r_MM, fit.sigma**2, min(least, MOST_DF))


def power_columns(found: Curve, degree: int) -> Array:
    """Return the columns of a polynomial without its constant, turned as m is (M, degree)."""
    powers_LS = np.vander(found.x_L, degree + 1, increasing=True)[:, 1:]
    return np.asarray(found.r_MM @ np.diff(powers_LS, axis=0))


def least_squares(x_MS: Array, m_M: Array) -> tuple[Array, float]:
    """Return the coefficients and the residual sum of squares."""
    b_S = np.asarray(np.linalg.lstsq(x_MS, m_M, rcond=None)[0], dtype=np.float64)
    return b_S, float(((m_M - x_MS @ b_S) ** 2).sum())

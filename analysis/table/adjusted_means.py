"""Means of levels adjusted for what the levels were crossed with unequally, by least squares.

One or several outcomes Y of N runs are fitted together,

    Y = X B + Z C + E,

with a column of X per level and the block columns Z (arms, seeds, ...) centred, so that a
coefficient of X is its level's mean over the blocks. Z is freed of columns that others determine,
and X and Y of what Z explains (Frisch and Waugh 1933, Econometrica 1(4); Lovell 1963, JASA
58(304)). All outcomes share one design, so the joint covariance of the means is a product: that of
levels i and j in outcomes a and b is shape_ij residual_ab (Rao 1973, Linear Statistical Inference,
8c). The means are those of emmeans with weights "equal" or "proportional", and intervals are exact
t intervals for independent normal errors.

Letters in names: N runs, L levels, S columns of interest, K block columns, Y outcomes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array, Index, independent_columns
from analysis.errors import AnalysisError
from analysis.inference.estimates import LEVEL, Estimate

DETERMINED = 1e-8  # least length of a column that blocks leave, as a share of the longest
EXACT = 1e-20  # share of the sum of squares that is rounding
STEP = 1e-5  # of numerical derivatives
UNSHARED = "the levels do not share their blocks"


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Coefficients of several outcomes, adjusted for blocks, and what their covariance is made of.

    Attributes:
        mean_SY: a coefficient (a level's mean) for every column of interest and outcome.
        root_SS: R of the columns of interest freed of the blocks, X = Q R: R'R is the inverse of
            the covariance of one outcome's coefficients over its residual variance.
        residual_YY: the residual covariance of the outcomes.
        df: residual degrees of freedom.
    """

    mean_SY: Array
    root_SS: Array
    residual_YY: Array
    df: float

    @property
    def shape_SS(self) -> Array:
        """The covariance of one outcome's coefficients over its residual variance (S, S)."""
        inverse_SS = np.linalg.inv(self.root_SS)
        return np.asarray(inverse_SS @ inverse_SS.T)

    def covariance(self, outcome: int = 0) -> Array:
        """Return the covariance of one outcome's coefficients (S, S)."""
        return np.asarray(self.residual_YY[outcome, outcome] * self.shape_SS)

    def contrast(
        self, weights_S: Array, outcome: int = 0, *, name: str = "", level: float = LEVEL
    ) -> Estimate:
        """Return a weighted sum of one outcome's coefficients with its error."""
        variance = self.residual_YY[outcome, outcome] * float(weights_S @ self.shape_SS @ weights_S)
        value = float(weights_S @ self.mean_SY[:, outcome])
        return Estimate(name, value, float(np.sqrt(max(variance, 0.0))), self.df, level)

    def function(self, name: str, value: Callable[[Array], float]) -> Estimate:
        """Return a smooth function of all coefficients (S, Y) with its delta-method error."""
        g_SY = np.zeros_like(self.mean_SY)
        for i in np.ndindex(*self.mean_SY.shape):
            above, below = self.mean_SY.copy(), self.mean_SY.copy()
            above[i] += STEP
            below[i] -= STEP
            g_SY[i] = (value(above) - value(below)) / (2 * STEP)
        variance = float(np.einsum("ia,ij,jb,ab->", g_SY, self.shape_SS, g_SY, self.residual_YY))
        return Estimate(name, value(self.mean_SY), float(np.sqrt(max(variance, 0.0))), self.df)


def adjusted_means(
    level_N: Index, blocks: "Sequence[pd.Series[str]]", y_NY: Array, *, weights: str = "equal"
) -> Adjusted:
    """Return the mean of every level and outcome, adjusted for the blocks.

    Args:
        level_N: the level of every run as a code 0 to L - 1; every level occurs.
        blocks: labels of every run, a factor each (N,); none where nothing is adjusted for.
        y_NY: the outcomes, all finite.
        weights: of the blocks in a level's mean: "equal" over each factor's levels, or
            "proportional" to their runs. Differences of levels do not depend on it.

    Raises:
        AnalysisError: nothing is left to estimate noise from, or the levels do not share their
            blocks and so cannot be compared.

    Source:
        Searle, Speed and Milliken 1980, Am. Stat. 34(4): population marginal means.
    """
    columns = [dummies(block) for block in blocks if block.nunique() > 1]
    if weights == "equal":
        centred = [z_NK - 1 / z_NK.shape[1] for z_NK in columns]
    else:
        centred = [z_NK - z_NK.mean(axis=0) for z_NK in columns]
    x_NL = np.eye(int(level_N.max()) + 1)[level_N]
    return adjusted_columns(x_NL, np.hstack([x_NL[:, :0], *centred]), y_NY)


def by_rule(found: Adjusted, rule: str) -> Adjusted:
    """Return a fit whose tests follow a rule for degrees of freedom.

    Args:
        found: the fit, with those of its residuals.
        rule: of `estimates.DF_RULES`: "normal" has infinitely many, both others come to those of
            the residuals here.
    """
    return replace(found, df=float("inf")) if rule == "normal" else found


def seed_adjusted(runs: pd.DataFrame, labels: Sequence[str]) -> Adjusted:
    """Return the mean score of every cell, adjusted for the seed.

    Args:
        runs: one row per run: cell, seed, score.
        labels: the cells in their order.

    Raises:
        AnalysisError: the noise cannot be estimated, or the cells ran under different seeds.
    """
    codes = {label: i for i, label in enumerate(labels)}
    level_N = np.asarray(runs["cell"].map(codes), dtype=np.intp)
    y_N = runs["score"].to_numpy(dtype=float)
    found = adjusted_means(level_N, [runs["seed"].astype(str)], y_N[:, None])
    require_noise(found, y_N)
    return found


def require_noise(found: Adjusted, y_N: Array) -> None:
    """Refuse scores that do not vary, or that levels and blocks explain exactly.

    Args:
        found: the fit, with the scores as its first outcome.
        y_N: the scores.

    Raises:
        AnalysisError: there is no noise to judge a difference by.
    """
    total = float(((y_N - y_N.mean()) ** 2).sum())
    rest = float(found.residual_YY[0, 0]) * found.df
    if total <= EXACT * float((y_N**2).sum()) or rest <= EXACT * total:
        raise AnalysisError("the scores do not vary within levels and blocks")


def adjusted_columns(x_NS: Array, z_NK: Array, y_NY: Array) -> Adjusted:
    """Return the coefficients of x in a regression of every outcome on x and z.

    Args:
        x_NS: the columns of interest.
        z_NK: the columns that are adjusted for; some may depend on others.
        y_NY: the outcomes.

    Raises:
        AnalysisError: no residual degree of freedom, or columns of x that z or each other explain.
    """
    z_NK = independent(z_NK)
    df = len(x_NS) - x_NS.shape[1] - z_NK.shape[1]
    if df < 1:
        raise AnalysisError("no replicates, so the noise cannot be estimated")
    clear_NS, clear_NY = without(z_NK, x_NS), without(z_NK, y_NY)
    q_NS, r_SS = np.linalg.qr(clear_NS)
    longest = float(np.linalg.norm(clear_NS, axis=0).max(initial=0.0))
    if np.abs(np.diagonal(r_SS)).min() <= DETERMINED * longest:
        raise AnalysisError(UNSHARED)
    mean_SY = np.linalg.solve(r_SS, q_NS.T @ clear_NY)
    rest_NY = clear_NY - clear_NS @ mean_SY
    residual_YY = np.asarray(rest_NY.T @ rest_NY / df)
    return Adjusted(mean_SY, r_SS, residual_YY, float(df))


def dummies(column: "pd.Series[str]") -> Array:
    """Return a column of 0 and 1 per level, levels in their order (N, levels)."""
    codes_N, names = pd.factorize(column, sort=True)
    return np.asarray(np.eye(len(names))[codes_N])


def independent(x_NK: Array) -> Array:
    """Return the columns that earlier ones do not determine."""
    return x_NK[:, independent_columns(x_NK)] if x_NK.shape[1] else x_NK


def without(z_NK: Array, x_NS: Array) -> Array:
    """Return the columns of x less what z explains of them."""
    q_NK = np.linalg.qr(z_NK)[0]
    return np.asarray(x_NS - q_NK @ (q_NK.T @ x_NS))

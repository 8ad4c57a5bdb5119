"""The mean response of a table's rows to one variable, as a quadratic of contrasts of a fit.

Each coefficient is a contrast l' beta, where l is a mean of rows of the fixed-effects matrix with
the variable set to a value: a mean over the rows' own mixture of tasks, adapters, ranks and blocks.
It therefore works for any formula that is at most quadratic in the variable, however written.

Letters in names: 3 powers of the variable (0, 1, 2), B coefficients of the fit, N distinct rows.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.formula import matrix_for
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES, Estimate, contrast, covariance
from analysis.inference.optimum import Quadratic
from analysis.mixed import MixedFit

SAME_SHAPE = 1e-8  # how far from a quadratic a response may be, relative to its size


@dataclass(frozen=True, slots=True)
class Response:
    """The mean fitted score over a panel's rows as l0 + l1 x + l2 x^2, each l a contrast."""

    l_3B: Array
    fit: MixedFit
    df: str = DF_RULES[0]  # the rule for degrees of freedom of its contrasts

    def at(self, x: float) -> Estimate:
        """Return the mean score at x."""
        return contrast(self.fit, _weighted(self.l_3B, np.array([1.0, x, x * x])), df=self.df)

    def gain(self, x: float, start: float = 0.0) -> Estimate:
        """Return the score at x less the score at `start`."""
        powers = np.array([0.0, x - start, x * x - start * start])
        return contrast(self.fit, _weighted(self.l_3B, powers), df=self.df)

    @property
    def quadratic(self) -> Quadratic:
        """The curve above its start; df is the smaller of the two coefficients' own."""
        l_2B = self.l_3B[1:]
        b1, b2 = (float(l_B @ self.fit.fixef.to_numpy()) for l_B in l_2B)
        known = [contrast(self.fit, l_B, df=self.df) for l_B in l_2B]
        df = float(np.min([e.df for e in known]))
        return Quadratic(b1, b2, l_2B @ covariance(self.fit, self.df) @ l_2B.T, df)


def _weighted(l_3B: Array, weights_3: Array) -> Array:
    """Return the weighted sum; a part of weight 0 need not be estimable."""
    used = weights_3 != 0
    return weights_3[used] @ l_3B[used] if used.any() else np.zeros(l_3B.shape[1])


def response(
    fit: MixedFit, rows: pd.DataFrame, variable: str = "wp", *, df: str = DF_RULES[0]
) -> Response:
    """Return the mean response of `rows` to `variable`, all else as it is in the rows.

    Args:
        fit: of any family; its formula at most quadratic in the variable.
        rows: with the columns of the formula; each row counts once.
        variable: a column of numbers, set to several values in turn.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.

    Returns:
        The coefficients as contrasts of the fit (3, B); NaN where the table does not determine one.

    Raises:
        AnalysisError: the formula is not quadratic (or simpler) in the variable.
    """
    if variable not in rows:
        raise AnalysisError(f"variable={variable}: the table has no such column")
    used = [name for name in fit.design.parsed.columns if name in rows and name != variable]
    counted = rows.groupby(used, observed=True, dropna=False).size() if used else None
    distinct = rows.head(1) if counted is None else counted.index.to_frame(index=False)
    weights_N = np.ones(1) if counted is None else counted.to_numpy() / counted.sum()
    points = np.array([0.0, 0.5, 1.0, 0.25])
    copies = pd.concat([distinct.assign(**{variable: x}) for x in points], ignore_index=True)
    parts = np.split(matrix_for(fit.design, copies), len(points))
    means = [weights_N @ x_NC for x_NC in parts]
    powers = np.vander(points, 3, increasing=True)
    l_3C = np.linalg.solve(powers[:3], np.array(means[:3]))
    if np.abs(powers[3] @ l_3C - means[3]).max() > SAME_SHAPE * (1 + np.abs(means[3]).max()):
        raise AnalysisError(f"variable={variable}: the formula is not quadratic in it")
    l_3C[np.abs(l_3C) < SAME_SHAPE] = 0.0  # rounding of the line above
    return Response(fit.kept(l_3C), fit, df)

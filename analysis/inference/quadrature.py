"""Gauss and Legendre's rule for what the exact tails of t statistics are means over.

Two variables occur: a standard normal z, and s with s^2 chi-square over its degrees of freedom.
96 nodes over the range outside which a density is below 1e-15 make a tail of the studentised range
or of equicorrelated t good to about 1e-9. scipy's adaptive rule takes a tenth of a second a value.

Letters in names: Z nodes over z, S nodes over s.
"""

import numpy as np
from scipy import stats

from analysis.engine.linalg import Array

NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
WIDE = 8.5  # standard deviations beyond which the normal density is below 1e-16
OUTSIDE = 1e-15  # probability left out at either end of s


def normal_rule() -> tuple[Array, Array]:
    """Return nodes of a standard normal z and their probabilities, (Z,) and (Z,)."""
    z_Z = WIDE * NODES
    return z_Z, WEIGHTS * WIDE * np.exp(-(z_Z**2) / 2) / np.sqrt(2 * np.pi)


def scale_rule(df: float) -> tuple[Array, Array]:
    """Return nodes of s and their probabilities, (S,) and (S,); one node at 1 for infinite df.

    The rule is in log s, in which the density is nearly symmetric for few degrees of freedom too.
    """
    if not np.isfinite(df):
        return np.ones(1), np.ones(1)
    low, high = np.log(stats.chi2.ppf([OUTSIDE, 1 - OUTSIDE], df) / df) / 2
    s_S = np.exp((high - low) / 2 * NODES + (high + low) / 2)
    # d(s^2 df) = 2 s^2 df d(log s), and log s runs over half of (high - low) a unit of a node.
    return s_S, WEIGHTS * (high - low) * stats.chi2.pdf(s_S**2 * df, df) * s_S**2 * df

"""P-values and intervals adjusted for multiple comparisons.

Holm and Bonferroni hold the chance of any false positive, Benjamini and Hochberg the expected
share of false ones. Tukey's studentised range (all pairs of k means) and the multivariate t (any
set of contrasts, Dunnett's among them) use how the comparisons depend on one another, and give
simultaneous intervals as well; with unequal variances of the means Tukey's is approximate
(Tukey and Kramer) and the multivariate t is not.

Letters in names: C comparisons, S nodes over s, Z nodes over z.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special
from statsmodels.stats.multitest import multipletests

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.largest_t import T_MOST, largest, quantile
from analysis.inference.quadrature import normal_rule, scale_rule

STATSMODELS = {"holm": "holm", "bonferroni": "bonferroni", "bh": "fdr_bh"}
ADJUSTMENTS = ("none", *STATSMODELS, "tukey", "mvt")


def adjusted(p_values: Sequence[float] | Array, method: str) -> Array:
    """Return p-values adjusted for their number, (C,), in the order given.

    By statsmodels' `multipletests`, whose names are in `STATSMODELS`, but for Holm's: there it
    collects all garbage of the process at every call, half a second beside a large table.

    Args:
        p_values: (C,), each in [0, 1] or NaN; NaN stays NaN and does not count.
        method: "none", "holm" (1979), "bonferroni", or "bh" for the false discovery rate of
            Benjamini and Hochberg (1995).

    Raises:
        AnalysisError: another method.
    """
    p, names = np.asarray(p_values, dtype=np.float64), ("none", *STATSMODELS)
    if method not in names:
        raise AnalysisError(f"adjust={method}: not one of {listed(names)}.{nearest(method, names)}")
    found, known = p.copy(), np.isfinite(p)
    if method != "none" and known.any():
        if method == "holm":
            found[known] = _holm(p[known])
        else:
            found[known] = multipletests(p[known], method=STATSMODELS[method])[1]
    return found


def _holm(p_C: Array) -> Array:
    """Return the smallest p times how many are not smaller, and so on, never falling again."""
    order = np.argsort(p_C, kind="stable")
    raised = np.maximum.accumulate(p_C[order] * np.arange(len(p_C), 0, -1))
    found_C = np.empty_like(p_C)
    found_C[order] = np.minimum(raised, 1.0)
    return found_C


def holm(p_values: Sequence[float] | Array) -> Array:
    """Return p-values adjusted by Holm's step-down method (1979, Scand. J. Stat. 6(2)).

    Args:
        p_values: (C,), in any order; NaN stays NaN and does not count.
    """
    return adjusted(p_values, "holm")


def tukey_p(t_C: Array, df_C: Array, means: int) -> Array:
    """Return the p-values of all pairs of means by the studentised range (Tukey), (C,).

    Args:
        t_C: the differences over their standard errors.
        df_C: their degrees of freedom.
        means: how many means are compared.
    """
    pairs = zip(np.abs(t_C), df_C, strict=True)
    return np.array([range_tail(float(np.sqrt(2) * t), float(df), means) for t, df in pairs])


def tukey_critical(level: float, df_C: Array, means: int) -> Array:
    """Return the half widths of Tukey's simultaneous intervals, in standard errors, (C,).

    Args:
        level: of all intervals together.
        df_C: degrees of freedom of the differences.
        means: how many means are compared.
    """

    def critical(df: float) -> float:
        found = optimize.brentq(
            lambda t: range_tail(np.sqrt(2) * t, df, means) - (1 - level), 1e-6, T_MOST, xtol=1e-9
        )
        return float(found)

    return _for_each(critical, df_C)


def range_tail(q: float, df: float, means: int) -> float:
    """Return P(Q > q) for the studentised range of `means` normal means.

    With w = q s, s^2 chi-square over its df: the mean over s of
    1 - means * integral of phi(z) (Phi(z) - Phi(z - w))^(means - 1), by `inference.quadrature`.
    """
    if not np.isfinite(q):
        return float("nan")
    (z_Z, density_Z), (s_S, share_S) = normal_rule(), scale_rule(df)
    within_SZ = special.ndtr(z_Z) - special.ndtr(z_Z - q * s_S[:, None])
    inner_S = within_SZ ** (means - 1) @ density_Z
    return float(np.clip(share_S @ (1 - means * inner_S), 0.0, 1.0))


def _for_each(critical: Callable[[float], float], df_C: Array) -> Array:
    """Return a function of df for every df; those that differ by rounding are asked once."""
    values, where = np.unique([float(f"{df:.6g}") for df in df_C], return_inverse=True)
    return np.array([critical(float(df)) for df in values], dtype=np.float64)[where]


def max_t_p(t_C: Array, df_C: Array, cov_CC: Array) -> Array:
    """Return single-step p-values, P(max |T| >= |t|) for a multivariate t, (C,).

    Args:
        t_C: the contrasts over their standard errors.
        df_C: their degrees of freedom.
        cov_CC: their covariance, up to a factor.

    Raises:
        AnalysisError: a contrast has no variance.
    """
    found = largest(_correlations(cov_CC), two_sided=True)
    p = [
        found.tail(abs(float(t)), float(df)) if np.isfinite(t) else np.nan
        for t, df in zip(t_C, df_C, strict=True)
    ]
    return np.array(p, dtype=np.float64)


def max_t_critical(level: float, df_C: Array, cov_CC: Array) -> Array:
    """Return the half widths of simultaneous intervals of contrasts, in standard errors, (C,).

    Args:
        level: of all intervals together.
        df_C: degrees of freedom of the contrasts.
        cov_CC: their covariance, up to a factor.

    Raises:
        AnalysisError: a contrast has no variance.
    """
    found = largest(_correlations(cov_CC), two_sided=True)
    return _for_each(lambda df: quantile(found, level, df), df_C)


def _correlations(cov_CC: Array) -> Array:
    size_C = np.sqrt(np.diagonal(cov_CC))
    if not (size_C > 0).all():
        raise AnalysisError("adjust=mvt: a comparison has no variance")
    return np.asarray(cov_CC / np.outer(size_C, size_C))

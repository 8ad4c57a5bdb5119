"""Variances of several groups, each drawn towards what all have in common, as far as they agree.

A variance from two or three degrees of freedom is hardly known, and one variance for all groups is
wrong where they differ. With s_g^2 ~ sigma_g^2 chi2_d / d and sigma_g^-2 ~ chi2_d0 / (d0 s0^2)
(Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3(1), article 3) the variance of a group is

    (d0 s0^2 + d s_g^2) / (d0 + d)

on d0 + d degrees of freedom. s0 and d0 are those that give the logarithms of s_g^2 their mean and
variance; where these scatter no more than they would around one variance, d0 is infinite and all
groups have the pooled one.

Letters in names: G groups.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from scipy.special import digamma, polygamma

from analysis.engine.linalg import Array, Mask
from analysis.errors import AnalysisError

ALPHA = 0.05  # of the test that sets a group apart
FLOOR = 1e-5  # of the median variance: a group whose replicates do not differ has no logarithm


@dataclass(frozen=True, slots=True)
class Moderated:
    """The groups' variances and their degrees of freedom, and what was taken for common.

    Attributes:
        variance_G: moderated.
        df_G: of these; never more than all groups have together.
        most: degrees of freedom of all groups together, without those set apart.
        apart_G: which groups are set apart.
        common: s0^2.
        common_df: d0, infinite where the variances do not differ.
    """

    variance_G: Array
    df_G: Array
    most: float
    apart_G: Mask
    common: float
    common_df: float


def moderated(variance_G: Array, df_G: Array) -> Moderated:
    """Return the moderated variances of groups.

    Args:
        variance_G: estimated apart, at least 0.
        df_G: their degrees of freedom, above 0.

    Raises:
        AnalysisError: no group has replicates that differ.
    """
    s2_G, d_G = np.asarray(variance_G, float), np.asarray(df_G, float)
    if not len(s2_G) or not s2_G.max() > 0:
        raise AnalysisError("moderated: no group has replicates that differ")
    apart_G = _apart(s2_G, d_G)
    rest_G = ~apart_G
    common, common_df = _common(s2_G[rest_G], d_G[rest_G])
    drawn_G, df_G, most = s2_G.copy(), d_G.copy(), float(d_G[rest_G].sum())
    if np.isinf(common_df):
        drawn_G[rest_G], df_G[rest_G] = common, most
    else:
        own_G = d_G[rest_G]
        drawn_G[rest_G] = (common_df * common + own_G * s2_G[rest_G]) / (common_df + own_G)
        df_G[rest_G] = np.minimum(common_df + own_G, most)
    return Moderated(drawn_G, df_G, most, apart_G, common, common_df)


def _apart(s2_G: Array, d_G: Array) -> Mask:
    """Return which groups vary more than all that are left, taken out one by one."""
    apart_G = np.zeros(len(s2_G), bool)
    while (~apart_G).sum() > 2:
        left = np.flatnonzero(~apart_G)
        most = left[s2_G[left].argmax()]
        others = left[left != most]
        pooled, df = float(d_G[others] @ s2_G[others] / d_G[others].sum()), d_G[others].sum()
        ratio = s2_G[most] / pooled if pooled > 0 else np.inf
        if stats.f.sf(ratio, d_G[most], df) * len(left) >= ALPHA:
            break
        apart_G[most] = True
    return apart_G


def _common(s2_G: Array, d_G: Array) -> tuple[float, float]:
    """Return s0^2 and d0 of groups."""
    pooled = float(d_G @ s2_G / d_G.sum())
    median = float(np.median(s2_G))
    floored_G = np.maximum(s2_G, FLOOR * (median if median > 0 else pooled))
    e_G = np.log(floored_G) - digamma(d_G / 2) + np.log(d_G / 2)
    spread = float(e_G.var(ddof=1) - polygamma(1, d_G / 2).mean()) if len(e_G) > 1 else 0.0
    if spread <= 0:
        return pooled, float("inf")
    d0 = 2 * _inverse_trigamma(spread)
    return float(np.exp(e_G.mean() + digamma(d0 / 2) - np.log(d0 / 2))), d0


def _inverse_trigamma(value: float) -> float:
    """Return x > 0 with trigamma(x) = value; trigamma falls from infinity to 0."""
    found = optimize.brentq(lambda log_x: polygamma(1, np.exp(log_x)) - value, -20.0, 20.0)
    return float(np.exp(found))

"""Which mean is the best: multiple comparisons with the best, and letters for what is alike.

Hsu's constrained intervals (1981, Annals of Statistics 9(5); 1996, Multiple Comparisons, section
4.2) are for mu_i - max over j != i of mu_j, all at once. With d_i the one-sided critical value of
Dunnett (1955, JASA 50(272)) for comparisons with i,

    high_i = max(0, min over j != i of (m_i - m_j + d_i se_ij)),      G = {i: high_i > 0}
    low_i  = 0 if G = {i}, else min over j in G, j != i, of min(0, m_i - m_j - d_j se_ij)

G holds the best mean at the given level: what is outside is worse than something else.

Letters in names: K means, C contrasts, D directions, R rank, S nodes over s, Z nodes over z.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import optimize, special, stats

from analysis.engine.linalg import Array, Mask
from analysis.errors import AnalysisError
from analysis.inference.multiplicity import LOST, T_MOST, max_t_critical, sphere

ALIKE = 1e-6  # how far correlations may differ and still count as equal
RULE = np.polynomial.legendre.leggauss(96)
BINS = 1024
WIDE = 8.5  # standard deviations beyond which the normal density is below 1e-16


@dataclass(frozen=True, slots=True)
class AgainstBest:
    """Simultaneous intervals of every mean less the best of the others."""

    low_K: Array  # at most 0
    high_K: Array  # at least 0
    possible_K: Mask  # the confidence set for the best
    critical_K: Array  # d_i


def against_best(
    means_K: Array, cov_KK: Array, *, df: float = float("inf"), level: float = 0.95
) -> AgainstBest:
    """Return Hsu's constrained intervals with the best; higher is better.

    Args:
        means_K: at least two estimates.
        cov_KK: their covariance, estimated with `df` degrees of freedom.
        df: infinite for a known covariance.
        level: of all intervals together.

    Raises:
        AnalysisError: fewer than two means, or two that have no variance between them.
    """
    if len(means_K) < 2:
        raise AnalysisError("best: one mean has nothing to be compared with")
    se_KK = differences_se(cov_KK)
    gap_KK = means_K[:, None] - means_K
    critical_K = _criticals(cov_KK, df, level)
    own = np.eye(len(means_K), dtype=bool)
    above = np.where(own, np.inf, gap_KK + critical_K[:, None] * se_KK)
    high_K = np.maximum(0.0, above.min(axis=1))
    possible_K = high_K > 0
    below = np.where(own | ~possible_K, 0.0, gap_KK - critical_K * se_KK)
    return AgainstBest(np.minimum(0.0, below.min(axis=1)), high_K, possible_K, critical_K)


def differences_se(cov_KK: Array) -> Array:
    """Return the standard errors of all differences of two means, (K, K), zero with itself.

    Raises:
        AnalysisError: a difference of two means has no variance.
    """
    size_K = np.diagonal(cov_KK)
    variance_KK = size_K[:, None] + size_K - 2 * cov_KK
    np.fill_diagonal(variance_KK, 1.0)
    if not (variance_KK > 0).all():
        raise AnalysisError("best: two means have no variance between them; are they one run?")
    np.fill_diagonal(variance_KK, 0.0)
    return np.asarray(np.sqrt(variance_KK))


def _criticals(cov_KK: Array, df: float, level: float) -> Array:
    """Return d_i for every mean; designs that look alike are computed once."""
    found = []
    for i in range(len(cov_KK)):
        corr_CC = _control_correlation(cov_KK, i).round(7)
        order = np.lexsort(np.sort(corr_CC, axis=1).T)
        found.append(_remembered(level, df, corr_CC[np.ix_(order, order)].tobytes()))
    return np.array(found)


@lru_cache(maxsize=512)
def _remembered(level: float, df: float, corr: bytes) -> float:
    flat = np.frombuffer(corr)
    return one_sided_critical(level, df, flat.reshape(int(np.sqrt(len(flat))), -1))


def _control_correlation(cov_KK: Array, i: int) -> Array:
    """Return the correlations of the differences of mean i from every other one."""
    l_CK = np.delete(np.eye(len(cov_KK)) - np.eye(len(cov_KK))[i], i, axis=0)
    cov_CC = l_CK @ cov_KK @ l_CK.T
    size_C = np.sqrt(np.diagonal(cov_CC))
    return np.asarray(cov_CC / np.outer(size_C, size_C))


def one_sided_critical(level: float, df: float, corr_CC: Array) -> float:
    """Return d with P(max T <= d) = level for a multivariate t of these correlations.

    Equal correlations of zero or more are integrated exactly (Dunnett 1955, equation 3); others
    by quasi-random directions, to about 1e-3.

    Args:
        level: at least one half.
        df: degrees of freedom shared by all T.
        corr_CC: correlations.
    """
    rho = _equal(corr_CC)
    if rho is not None:
        count = len(corr_CC)
        found = optimize.brentq(
            lambda d: _below(d, df, count, rho) - level, -1e-9, T_MOST, xtol=1e-10
        )
        return float(found)
    largest_D, rank = _largest(corr_CC)
    found = optimize.brentq(
        lambda d: 1 - _above(d, df, largest_D, rank) - level, 1e-9, T_MOST, xtol=1e-8
    )
    return float(found)


def _equal(corr_CC: Array) -> float | None:
    """Return the one correlation of all pairs, None where they differ or are below zero."""
    if len(corr_CC) == 1:
        return 0.0
    pairs = corr_CC[np.triu_indices(len(corr_CC), 1)]
    rho = float(pairs.mean())
    alike = float(np.ptp(pairs)) < ALIKE and 0 <= rho < 1 - ALIKE
    return rho if alike else None


def _below(d: float, df: float, count: int, rho: float) -> float:
    """Return P(max T <= d) of equicorrelated T by Gauss and Legendre's rule in s and z."""
    nodes, weights = RULE
    z_Z = WIDE * nodes
    s_S, share_S = np.ones(1), np.ones(1)
    if np.isfinite(df):
        low, high = np.log(stats.chi2.ppf([1e-15, 1 - 1e-15], df) / df) / 2
        s_S = np.exp((high - low) / 2 * nodes + (high + low) / 2)
        share_S = weights * (high - low) * stats.chi2.pdf(s_S**2 * df, df) * s_S**2 * df
    within = special.ndtr((d * s_S[:, None] + np.sqrt(rho) * z_Z) / np.sqrt(1 - rho))
    density_Z = weights * WIDE * np.exp(-(z_Z**2) / 2) / np.sqrt(2 * np.pi)
    return float(share_S @ (within**count @ density_Z))


def _above(d: float, df: float, largest_D: Array, rank: int) -> float:
    """Return P(max T > d), d > 0: T = r L u / s, and r^2 / (R s^2) is F given u."""
    ratio_D = np.full(len(largest_D), np.inf)
    np.divide(d, largest_D, out=ratio_D, where=largest_D > 0)
    if np.isinf(df):
        return float(stats.chi2.sf(ratio_D**2, rank).mean())
    return float(stats.f.sf(ratio_D**2 / rank, rank, df).mean())


def _largest(corr_CC: Array) -> tuple[Array, int]:
    """Return max L u over comparisons, and the rank.

    Over all directions u and their opposites, in order, the means of `BINS` equal parts: a tail is
    smooth in it, and F's is dear.
    """
    values, vectors = np.linalg.eigh(corr_CC)
    firm = values > LOST * values.max()
    l_CR = vectors[:, firm] * np.sqrt(values[firm])
    moved_DC = sphere(int(firm.sum())) @ l_CR.T
    every = np.sort(np.concatenate([moved_DC.max(axis=1), -moved_DC.min(axis=1)]))
    if len(every) > BINS:
        every = every.reshape(BINS, -1).mean(axis=1)
    return every, l_CR.shape[1]


def letters(
    means_K: Array, cov_KK: Array, *, df: float = float("inf"), level: float = 0.95
) -> list[str]:
    """Return a compact letter display: means that share a letter cannot be told apart.

    All pairs, simultaneously, by the multivariate t (Tukey's comparisons); the letters by insertion
    and absorption (Piepho 2004, J. Comput. Graph. Stat. 13(2)). The first letter has the highest
    mean.
    """
    pairs = list(combinations(range(len(means_K)), 2))
    se_KK, eye = differences_se(cov_KK), np.eye(len(means_K))
    l_CK = np.array([eye[i] - eye[j] for i, j in pairs])
    critical = float(max_t_critical(level, np.array([df]), l_CK @ cov_KK @ l_CK.T)[0])
    columns: list[frozenset[int]] = [frozenset(range(len(means_K)))]
    for i, j in pairs:
        if abs(means_K[i] - means_K[j]) > critical * se_KK[i, j]:
            columns = _without_pair(columns, i, j)
    columns.sort(key=lambda c: sorted(-means_K[list(c)]))
    names = [_letter(n) for n in range(len(columns))]
    return [
        "".join(name for name, column in zip(names, columns, strict=True) if k in column)
        for k in range(len(means_K))
    ]


def _without_pair(columns: list[frozenset[int]], i: int, j: int) -> list[frozenset[int]]:
    """Return the columns with none that holds both i and j, and none inside another."""
    parts: list[frozenset[int]] = []
    for column in columns:
        parts += [column - {i}, column - {j}] if {i, j} <= column else [column]
    distinct = list(dict.fromkeys(parts))
    return [c for c in distinct if not any(c < other for other in distinct)]


def _letter(number: int) -> str:
    """Return a, b, ..., z, a2, b2, ..."""
    again, place = divmod(number, 26)
    return chr(ord("a") + place) + (str(again + 1) if again else "")

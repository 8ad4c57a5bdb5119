"""Which mean is the best: multiple comparisons with the best, and letters for equal means.

Hsu's constrained intervals (1981, Annals of Statistics 9(5); 1996, Multiple Comparisons, section
4.2) are for mu_i - max over j != i of mu_j, all at once. With d_i the one-sided critical value of
Dunnett (1955, JASA 50(272)) for comparisons with i,

    high_i = max(0, min over j != i of (m_i - m_j + d_i se_ij)),      G = {i: high_i > 0}
    low_i  = 0 if G = {i}, else min over j in G, j != i, of min(0, m_i - m_j - d_j se_ij)

G holds the best mean at the given level: what is outside is worse than something else.

Letters in names: K means, C contrasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import stats

from analysis.engine.linalg import Array, Mask
from analysis.engine.ties import tied_ranks
from analysis.errors import AnalysisError
from analysis.inference.largest_t import ALIKE, largest, quantile
from analysis.inference.multiplicity import max_t_critical, tukey_critical


@dataclass(frozen=True, slots=True)
class AgainstBest:
    """Simultaneous intervals of every mean less the best of the others."""

    low_K: Array  # at most 0
    high_K: Array  # at least 0
    possible_K: Mask  # the confidence set for the best


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
    own = np.eye(len(means_K), dtype=bool)
    # No critical value is above Bonferroni's: what that one excludes needs none of its own, and a
    # critical value of many means takes a second.
    most = float(stats.t.isf((1 - level) / (len(means_K) - 1), df))
    open_K = np.where(own, np.inf, gap_KK + most * se_KK).min(axis=1) > 0
    critical_K = _criticals(cov_KK, df, level, np.flatnonzero(open_K).tolist())
    above = np.where(own, np.inf, gap_KK + critical_K[:, None] * se_KK)
    high_K = np.where(open_K, np.maximum(0.0, above.min(axis=1)), 0.0)
    possible_K = high_K > 0
    below = np.where(own | ~possible_K, 0.0, gap_KK - critical_K * se_KK)
    return AgainstBest(np.minimum(0.0, below.min(axis=1)), high_K, possible_K)


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


def _criticals(cov_KK: Array, df: float, level: float, asked: Sequence[int]) -> Array:
    """Return d_i of the means `asked` for, else 0; designs that look alike are computed once."""
    found_K = np.zeros(len(cov_KK))
    for i in asked:
        corr_CC = _control_correlation(cov_KK, i).round(7)
        order = np.lexsort(np.sort(corr_CC, axis=1).T)
        found_K[i] = _remembered(level, df, corr_CC[np.ix_(order, order)].tobytes())
    return found_K


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

    Args:
        level: at least one half.
        df: degrees of freedom shared by all T.
        corr_CC: correlations.
    """
    return quantile(largest(corr_CC, two_sided=False), level, df)


def letters(
    means_K: Array, cov_KK: Array, *, df: float = float("inf"), level: float = 0.95
) -> list[str]:
    """Return a compact letter display: means that share a letter do not differ significantly.

    All pairs, simultaneously, by the multivariate t (Tukey's comparisons); the letters by insertion
    and absorption (Piepho 2004, J. Comput. Graph. Stat. 13(2)). The first letter has the highest
    mean.

    Args:
        means_K: estimates.
        cov_KK: their covariance, estimated with `df` degrees of freedom.
        df: infinite for a known covariance.
        level: of all comparisons together.

    Raises:
        AnalysisError: two means have no variance between them.
    """
    pairs = list(combinations(range(len(means_K)), 2))
    se_KK, eye = differences_se(cov_KK), np.eye(len(means_K))
    l_CK = np.array([eye[i] - eye[j] for i, j in pairs])
    critical = _all_pairs_critical(level, df, l_CK @ cov_KK @ l_CK.T)
    apart_KK = np.abs(means_K[:, None] - means_K) > critical * se_KK
    columns = _columns(apart_KK)
    place_K = tied_ranks(-means_K)
    columns.sort(key=lambda c: sorted(place_K[list(c)].tolist()))
    names = [_letter(n) for n in range(len(columns))]
    return [
        "".join(name for name, column in zip(names, columns, strict=True) if k in column)
        for k in range(len(means_K))
    ]


def _all_pairs_critical(level: float, df: float, cov_CC: Array) -> float:
    """Return the half width, in standard errors, for all pairs at once.

    Where all differences have one variance this is exactly the studentised range.
    """
    count, size_C = len(cov_CC), np.diagonal(cov_CC)
    means = int((1 + np.sqrt(1 + 8 * count)) / 2)
    if np.ptp(size_C) < ALIKE * size_C.max():
        return float(tukey_critical(level, np.array([df]), means)[0])
    return float(max_t_critical(level, np.array([df]), cov_CC)[0])


def _columns(apart_KK: Mask) -> list[frozenset[int]]:
    """Return the largest sets of means without a pair that is apart, by insertion and absorption.

    A set is a whole number with a bit for every mean, for there may be thousands of them. What a
    pair splits lies in another set if there is a mean that is apart from none of it; before every
    step the sets are all that are largest, so that the others need no such look.
    """
    count = len(apart_KK)
    columns, near = [(1 << count) - 1], [(1 << count) - 1] * count
    for i, j in zip(*(k.tolist() for k in np.nonzero(np.triu(apart_KK, 1))), strict=True):
        near[i] ^= 1 << j
        near[j] ^= 1 << i
        both = 1 << i | 1 << j
        found = []
        for column in columns:
            if column & both != both:
                found.append(column)
                continue
            parts = (column ^ 1 << i, column ^ 1 << j)
            found += [part for part in parts if _is_largest(part, near)]
        columns = found
    return [frozenset(k for k in range(count) if column >> k & 1) for column in columns]


def _is_largest(column: int, near: Sequence[int]) -> bool:
    """Return whether every other mean is apart from one of the column.

    Args:
        column: a bit for every mean in it.
        near: of every mean the bits of those that it is not apart from, itself included.
    """
    common, rest = -1, column
    while rest:
        lowest = rest & -rest
        common &= near[lowest.bit_length() - 1]
        if common == column:
            return True
        rest ^= lowest
    return False


def _letter(number: int) -> str:
    """Return a, b, ..., z, a2, b2, ..."""
    again, place = divmod(number, 26)
    return chr(ord("a") + place) + (str(again + 1) if again else "")

"""The largest of several correlated t statistics, by value or by absolute value: tail and quantile.

T_i = z_i / s with z normal of given correlations and s^2 an independent chi-square over its df.
Two ways:

- Where every correlation is a product b_i b_j (one common factor: comparisons with a control,
  means that share a block) the z are independent given that factor, and the tail is a double
  integral by Gauss and Legendre's rule (Dunnett 1955, JASA 50(272), equation 3).
- Any others: T = r L u / s with L L' the correlations and u on the unit sphere of R dimensions.
  Given u the chance that the largest exceeds d is a tail of F(R, df) at d^2 / (R max(L u)^2). Its
  mean over u is quasi-random, in several independent randomisations, whose spread is the error
  (L'Ecuyer and Lemieux 2002, Recent advances in randomized quasi-Monte Carlo methods).

L is a pivoted Cholesky factor. Eigenvectors of repeated eigenvalues are any rotation of one
another: by them the points would be other ones on another processor, and with them the answer.

Letters in names: C statistics, R rank, D directions, B randomisations, N bins, S nodes over s,
Z nodes over the factor.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special
from scipy.stats import qmc

from analysis.engine.canonical import pivoted
from analysis.engine.linalg import Array
from analysis.engine.ties import first_largest
from analysis.inference.quadrature import normal_rule, scale_rule

ALIKE = 1e-6  # how far a correlation may be from b_i b_j and still count as equal
STEEP = 0.9  # b_i^2 beyond which the rule's nodes are too far apart; up to here p is good to 3e-6
RANDOMISATIONS = 16
POINTS = 12  # 2^12 directions a randomisation: p near 0.05 to about 1e-4
# Of the directions of a randomisation, in order, so many of the largest stand for themselves, for
# the far tail is theirs, and the rest in so many bins, each at its mean: a tail is smooth, F slow.
ALONE, BINS = 128, 128
T_MOST = 1e4  # a quantile beyond which none is looked for


def largest(corr_CC: Array, *, two_sided: bool) -> "OneFactor | Directed":
    """Return the distribution of max |T| (two-sided) or max T of these correlations."""
    b_C = one_factor(corr_CC)
    if b_C is None:
        return directed(corr_CC, two_sided=two_sided)
    b, counts = np.unique(b_C.round(9), return_counts=True)
    return OneFactor(b, counts.astype(np.float64), two_sided)


def quantile(found: "OneFactor | Directed", level: float, df: float) -> float:
    """Return d with P(largest <= d) = level."""
    root = optimize.brentq(lambda d: found.tail(d, df) - (1 - level), -1e-9, T_MOST, xtol=1e-9)
    return float(root)


def one_factor(corr_CC: Array) -> Array | None:
    """Return b_C with correlations b_i b_j off the diagonal, None where there is none.

    b of the statistic p that correlates most solves b_p^2 r_jk = r_pj r_pk by least squares over
    pairs (j, k) without p; then b_i = r_pi / b_p.
    """
    off_CC = corr_CC - np.diag(np.diagonal(corr_CC))
    p = first_largest(np.abs(off_CC).sum(axis=1))
    with_p_C = off_CC[p]
    rest_CC = np.delete(np.delete(off_CC, p, 0), p, 1)
    weight = (rest_CC**2).sum()
    if weight > ALIKE**2:
        r_C = np.delete(with_p_C, p)
        square = float(r_C @ rest_CC @ r_C / weight)
    else:  # nothing but p's own correlations: one of them at most fits
        square = float(np.abs(with_p_C).max())
    b_C = np.zeros(len(corr_CC)) if square <= ALIKE else with_p_C / np.sqrt(square)
    b_C[p] = np.sqrt(max(square, 0.0))
    gap_CC = np.outer(b_C, b_C) - off_CC
    np.fill_diagonal(gap_CC, 0.0)
    fits = np.abs(gap_CC).max() < ALIKE and (b_C**2).max() <= STEEP
    return b_C if fits else None


@dataclass(frozen=True, slots=True)
class OneFactor:
    """Statistics that are independent given one factor: b z + sqrt(1 - b^2) noise, over s."""

    b: Array  # the distinct ones
    counts: Array  # how many statistics have each
    two_sided: bool

    def tail(self, d: float, df: float) -> float:
        """Return P(largest > d) by Gauss and Legendre's rule in s and z."""
        (z_Z, density_Z), (s_S, share_S) = normal_rule(), scale_rule(df)
        log_none_SZ = np.zeros((len(s_S), len(z_Z)))  # log P(none exceeds d | s, z)
        for b, count in zip(self.b, self.counts, strict=True):
            beyond_SZ = special.ndtr((b * z_Z - d * s_S[:, None]) / np.sqrt(1 - b**2))
            if self.two_sided:
                beyond_SZ += special.ndtr((-b * z_Z - d * s_S[:, None]) / np.sqrt(1 - b**2))
            with np.errstate(divide="ignore"):
                log_none_SZ += count * np.log1p(-np.minimum(beyond_SZ, 1.0))
        found = float(share_S @ (-np.expm1(log_none_SZ) @ density_Z))
        return _bounded(found, d, df, int(self.counts.sum()), self.two_sided)


@dataclass(frozen=True, slots=True)
class Directed:
    """max(L u) over quasi-random directions u, in order and binned, of every randomisation."""

    largest_BN: Array
    share_N: Array  # of the directions
    rank: int
    count: int
    two_sided: bool

    def tails(self, d: float, df: float) -> Array:
        """Return P(largest > d) by every randomisation."""
        ratio_BN = np.full(self.largest_BN.shape, np.inf)
        np.divide(d, self.largest_BN, out=ratio_BN, where=self.largest_BN > 0)
        if np.isinf(df):
            return np.asarray(special.chdtrc(self.rank, ratio_BN**2) @ self.share_N)
        return np.asarray(special.fdtrc(self.rank, df, ratio_BN**2 / self.rank) @ self.share_N)

    def tail(self, d: float, df: float) -> float:
        """Return P(largest > d), the mean over randomisations."""
        found = float(self.tails(d, df).mean())
        return _bounded(found, d, df, self.count, self.two_sided)

    def error(self, d: float, df: float) -> float:
        """Return the standard error of `tail`, from the spread over randomisations."""
        tails_B = self.tails(d, df)
        return float(tails_B.std(ddof=1) / np.sqrt(len(tails_B)))


def _bounded(tail: float, d: float, df: float, count: int, two_sided: bool) -> float:
    """Return the tail within what one statistic alone and Bonferroni's inequality leave it."""
    one = float(special.ndtr(-d) if np.isinf(df) else special.stdtr(df, -d)) * (1 + two_sided)
    return float(np.clip(tail, one, min(1.0, one * count)))


def directed(corr_CC: Array, *, two_sided: bool) -> Directed:
    """Return the distribution for any correlations, by quasi-random directions."""
    l_CR, _ = pivoted(np.diagonal(corr_CC), corr_CC.__getitem__)
    rank = l_CR.shape[1]
    largest_BD = np.array(
        [_largest(directions(rank, number), l_CR, two_sided) for number in range(RANDOMISATIONS)]
    )
    mean_BN, share_N = _binned(largest_BD)
    return Directed(mean_BN, share_N, rank, len(corr_CC), two_sided)


def _binned(largest_BD: Array) -> tuple[Array, Array]:
    """Return the means of bins of neighbours, (B, N), and their shares of the directions."""
    size = largest_BD.shape[1]
    binned = size - min(ALONE, size)
    firsts = np.r_[np.linspace(0, binned, BINS, endpoint=False), np.arange(binned, size)]
    firsts_N = np.unique(firsts.astype(np.intp))
    count_N = np.diff(firsts_N, append=size)
    return np.add.reduceat(largest_BD, firsts_N, axis=1) / count_N, count_N / size


def _largest(u_DR: Array, l_CR: Array, two_sided: bool) -> Array:
    """Return max(L u) of all directions, in order; one-sided, of their opposites too."""
    moved_DC = u_DR @ l_CR.T
    high_D, low_D = moved_DC.max(axis=1), -moved_DC.min(axis=1)
    # A direction and its opposite: the larger of both is max |L u|.
    return np.sort(np.maximum(high_D, low_D) if two_sided else np.concatenate([high_D, low_D]))


@lru_cache(maxsize=2 * RANDOMISATIONS)
def directions(rank: int, number: int) -> Array:
    """Return quasi-random points on the unit sphere, (D, R), the same for the same `number`."""
    if rank == 1:
        return np.ones((1, 1))
    uniform = qmc.Sobol(rank, rng=np.random.default_rng([rank, number])).random_base2(POINTS)
    normal = special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))

"""The mean of the best of several, corrected for its selection (the winner's curse).

Andrews, Kitagawa and McCloskey (2024), Inference on winners, QJE 139(1). Estimates X ~ N(mu, V)
with i the largest. Given that i won and given what does not depend on X_i,
Z = X - V_i X_i / V_ii, X_i is normal about mu_i, truncated to

    [max over V_ij < V_ii, min over V_ij > V_ii]   of   Z_j / (1 - V_ij / V_ii)

(their proposition 2, with the target being the estimate that was ranked). The conditional estimate
solves F(X_i; mu) = 1/2 and is median unbiased, its interval solves F = 1 - alpha/2 and alpha/2.
The hybrid one (section 4.2) also conditions on mu_i lying within c sd of X_i, the simultaneous
interval of level 1 - beta, beta = alpha / 10: it is never longer than that interval, and its
coverage is between 1 - alpha and (1 - alpha) / (1 - beta).

The paper takes V as known. Where V is an estimated variance times a known matrix, the variance
independent of X with df degrees of freedom, T = (X_i - mu_i) / sqrt(V_ii) takes the normal's place.
At the true mu_i, W = (X_i - mu_i)^2 + df V_ii is sufficient for the true variance: given W, that i
won and Z, T has Student's distribution with df between the values it takes with X_i at its bounds
(selective t-tests: Fithian, Sun and Taylor 2014, Optimal inference after model selection,
arXiv:1410.2597). W being given, V_ii at a bound is not the estimate but

    V_ii (1 + (T^2 - D^2) / df),    D = (bound - mu_i) / sqrt(V_ii),

and a bound at which that is not positive is none. c is the critical value of the largest |T|, and
the coverage is that of V known. F falls with mu_i from 2 df on (a test looks); with 1 it has small
rises, in which case the interval ends where the search met alpha / 2, and still covers
(benchmarks/winner_coverage.py).

Letters in names: K means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from analysis.engine.linalg import Array
from analysis.engine.ties import first_largest
from analysis.errors import AnalysisError
from analysis.inference.multiplicity import max_t_critical

SHARE = 0.1  # beta / alpha, the paper's choice
FARTHEST = 1e5  # standard deviations beyond which a conditional limit is called infinite
SMALL = 1e-200  # a probability below which only its logarithm is computed


@dataclass(frozen=True, slots=True)
class Corrected:
    """A median-unbiased estimate with its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Winner:
    """The largest of several estimates, as it stands and corrected."""

    index: int
    naive: float
    se: float
    hybrid: Corrected  # the one to report
    conditional: Corrected  # may be far away where the second best is close

    @property
    def bias(self) -> float:
        """What the correction takes off."""
        return self.naive - self.hybrid.estimate


@dataclass(frozen=True, slots=True)
class _Truncated:
    """X_i given that it won: value, standard deviation (with df), the range it was bound to."""

    value: float
    sd: float
    df: float
    low: float
    high: float

    def below(self, mean: float, reach: float = float("inf")) -> float:
        """Return P(X <= value) at this mean, X also within `reach` of the mean."""
        low = max(self._binding(self.low, mean), mean - reach)
        high = min(self._binding(self.high, mean), mean + reach)
        if self.value <= low:
            return 0.0
        if self.value >= high:
            return 1.0
        a, x, b = ((v - mean) / self.sd for v in (low, self.value, high))
        return truncated_cdf(x, a, b, self.df)

    def _binding(self, bound: float, mean: float) -> float:
        """Return where X, with its estimated sd, has the T that it has at the bound."""
        if math.isinf(self.df) or math.isinf(bound):
            return bound
        x, d = (self.value - mean) / self.sd, (bound - mean) / self.sd
        ratio = 1 + (x - d) * (x + d) / self.df  # of the variance at the bound to the estimate
        return mean + self.sd * (d / math.sqrt(ratio) if ratio > 0 else math.copysign(math.inf, d))


def winner(
    means_K: Array, cov_KK: Array, *, df: float = float("inf"), level: float = 0.95
) -> Winner:
    """Return the largest of `means_K` with its corrected estimates.

    Args:
        means_K: at least two estimates; higher is better.
        cov_KK: their covariance.
        df: degrees of freedom of the variance that the covariance is proportional to, infinite for
            a known covariance. Where a better known part was added to it, those of the worse known
            one: the interval is then rather too long.
        level: of the intervals.

    Raises:
        AnalysisError: fewer than two estimates, or one without variance.
    """
    if len(means_K) < 2 or not (np.diagonal(cov_KK) > 0).all():
        raise AnalysisError("winner: needs at least two estimates, each with a variance")
    cov_KK = np.asarray(cov_KK, dtype=np.float64)
    i = first_largest(means_K)
    found = _truncated(means_K, cov_KK, df, i)
    alpha = 1 - level
    beta = SHARE * alpha
    reach = _simultaneous(1 - beta, df, cov_KK.tobytes()) * found.sd
    tail = (alpha - beta) / (2 * (1 - beta))
    return Winner(
        index=i,
        naive=found.value,
        se=found.sd,
        hybrid=Corrected(*(_hybrid(found, p, reach) for p in (0.5, 1 - tail, tail))),
        conditional=Corrected(*(_conditional(found, p) for p in (0.5, 1 - alpha / 2, alpha / 2))),
    )


@lru_cache(maxsize=8)
def _simultaneous(level: float, df: float, cov: bytes) -> float:
    """Return the critical value of all estimates at once; a covariance is asked about often."""
    flat = np.frombuffer(cov)
    cov_KK = flat.reshape(int(np.sqrt(len(flat))), -1)
    return float(max_t_critical(level, np.array([df]), cov_KK)[0])


def _truncated(means_K: Array, cov_KK: Array, df: float, i: int) -> _Truncated:
    slope_K = cov_KK[i] / cov_KK[i, i]
    others = np.arange(len(means_K)) != i
    z_K = means_K - slope_K * means_K[i]
    lower, upper = others & (slope_K < 1), others & (slope_K > 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound_K = z_K / (1 - slope_K)
    return _Truncated(
        value=float(means_K[i]),
        sd=float(np.sqrt(cov_KK[i, i])),
        df=df,
        low=float(bound_K[lower].max(initial=-np.inf)),
        high=float(bound_K[upper].min(initial=np.inf)),
    )


def truncated_cdf(x: float, low: float, high: float, df: float = float("inf")) -> float:
    """Return P(T <= x | low <= T <= high) of Student's t, exact far out in either tail.

    Args:
        x: in [low, high].
        low: may be -inf.
        high: may be inf.
        df: degrees of freedom; infinite for the normal.
    """
    if low + x > 0:  # the upper tail, seen from the other side
        return 1.0 - truncated_cdf(-x, -high, -low, df)
    log_low, log_x, log_high = (_log_cdf(v, df) for v in (low, x, high))
    # The logarithm of the larger one may be near 0, which is where ordinary digits are enough.
    return float(
        np.exp(log_x - log_high) * np.expm1(log_low - log_x) / np.expm1(log_low - log_high)
    )


def _log_cdf(x: float, df: float) -> float:
    """Return log P(T <= x).

    Where P is too small for a float, by the series of the incomplete beta function (DLMF 8.17.8
    and 15.8.1, https://dlmf.nist.gov).
    """
    if math.isinf(df):
        return float(special.log_ndtr(x))
    if (p := float(special.stdtr(df, x))) > SMALL:
        return math.log(p)
    ratio = x * x / df
    power = (np.log1p(1 / ratio) - df * np.log1p(ratio)) / 2 - np.log(df)
    series = special.hyp2f1(0.5, 1, 1 + df / 2, -1 / ratio)
    return float(power - special.betaln(df / 2, 0.5) + np.log(series))


def _hybrid(found: _Truncated, p: float, reach: float) -> float:
    """Return the mean at which P(X <= value) is p; it lies within `reach` of the value."""
    low, high = found.value - reach, found.value + reach
    return _root(lambda mean: found.below(mean, reach) - p, low, high)


def _conditional(found: _Truncated, p: float) -> float:
    """Return the mean at which P(X <= value) is p, infinite where there is none."""
    step = found.sd
    while found.below(found.value - step) < p:
        step *= 2
        if step > FARTHEST * found.sd:
            return -float("inf")
    low, step = found.value - step, found.sd
    while found.below(found.value + step) > p:
        step *= 2
        if step > FARTHEST * found.sd:
            return float("inf")
    return _root(lambda mean: found.below(mean) - p, low, found.value + step)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function is zero; the end nearer to it where it is not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    return float(optimize.brentq(function, low, high, xtol=1e-10))

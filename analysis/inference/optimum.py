"""The optimum of a fitted quadratic with Fieller's interval, or why there is none.

For a curve b1 x + b2 x^2 on [low, high] the vertex is v = -b1 / (2 b2). Its Fieller set (Fieller
1954) holds every x at which the slope b1 + 2 b2 x does not differ from zero:

    (b1 + 2 b2 x)^2 <= t^2 (V11 + 4 x V12 + 4 x^2 V22).

It is an interval, an interval's complement or the whole line; the last two say that the data do
not bound the vertex. There is an optimum inside if the slope is up at one end and down at the
other, each significantly, which is the same as the Fieller set lying inside (Lind and Mehlum 2010,
Oxf. Bull. Econ. Stat. 72(1)).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError

INTERIOR = "interior optimum"
NO_INTERIOR = "no interior optimum"
NOT_IDENTIFIED = "not identified"
RISES = "the curve rises throughout, so the best value is the high end"
FALLS = "the curve falls throughout, so the best value is the low end"
THROUGHOUT = (RISES, FALLS)


@dataclass(frozen=True, slots=True)
class Quadratic:
    """b1 x + b2 x^2 with its covariance."""

    b1: float
    b2: float
    cov_22: Array
    df: float = float("inf")

    def slope(self, x: float) -> tuple[float, float]:
        """Return the slope at x and its standard error."""
        l_2 = np.array([1.0, 2 * x])
        return self.b1 + 2 * self.b2 * x, float(np.sqrt(l_2 @ self.cov_22 @ l_2))

    def gain(self, x: float) -> tuple[float, float]:
        """Return the height at x above the height at 0, and its standard error."""
        l_2 = np.array([x, x**2])
        return float(l_2 @ (self.b1, self.b2)), float(np.sqrt(l_2 @ self.cov_22 @ l_2))

    @property
    def p(self) -> float:
        """The p-value of the F test that the curve is flat: b1 = b2 = 0."""
        if not np.isfinite(self.cov_22).all():
            return float("nan")
        values, vectors = np.linalg.eigh(self.cov_22)
        known = values > 1e-12 * values.max()  # b2 is known to be 0 where a line is all there is
        along = vectors[:, known].T @ np.array([self.b1, self.b2])
        statistic = float((along**2 / values[known]).mean())
        return float(stats.f.sf(statistic, int(known.sum()), self.df))


@dataclass(frozen=True, slots=True)
class Optimum:
    """The verdict, and the numbers behind it."""

    verdict: str
    at: float  # where the fitted curve is best on [low, high]: the vertex or an end
    vertex: float
    fieller: tuple[float, float]  # infinite ends where the set is not an interval
    at_end: bool  # the curve rises or falls throughout, so that the best value is an end
    gain: float  # height at `at` above the height at 0
    gain_se: float
    words: str


def optimum(
    curve: Quadratic, *, low: float = 0.0, high: float = 1.0, level: float = 0.95
) -> Optimum:
    """Return the maximum of a quadratic on [low, high], or why there is none.

    Args:
        curve: b1 x + b2 x^2 with its covariance and degrees of freedom.
        low: lower end of x.
        high: upper end of x.
        level: of the intervals, and of the tests of the slopes at both ends.

    Raises:
        AnalysisError: the ends do not make an interval.
    """
    if not low < high:
        raise AnalysisError(f"optimum: low={low} must be below high={high}")
    t = float(stats.t.ppf((1 + level) / 2, curve.df))
    vertex = -curve.b1 / (2 * curve.b2) if curve.b2 else float("nan")
    inside = curve.b2 < 0 and low < vertex < high
    ends = {x: curve.gain(x)[0] for x in (low, high)}
    at = vertex if inside else max(ends, key=lambda x: ends[x])
    fieller = fieller_set(curve, t)
    verdict, words = _verdict(curve, t, (low, high))
    gain, gain_se = curve.gain(at)
    at_end = words in THROUGHOUT
    return Optimum(verdict, at, vertex, fieller, at_end, gain, gain_se, words)


def fieller_set(curve: Quadratic, t: float) -> tuple[float, float]:
    """Return the ends of the Fieller set of the vertex (Fieller 1954).

    Args:
        curve: b1 x + b2 x^2 with the covariance of (b1, b2).
        t: critical value of Student's t for the level wanted.

    Returns:
        Low and high end, in units of x; both infinite where the set is no interval, which is
        where b2 does not differ from zero at this t.
    """
    v = curve.cov_22
    a = 4 * (curve.b2**2 - t**2 * v[1, 1])
    b = 4 * (curve.b1 * curve.b2 - t**2 * v[0, 1])
    c = curve.b1**2 - t**2 * v[0, 0]
    root = b**2 - 4 * a * c
    if a <= 0 or root < 0:  # b2 may be zero: the set has no end on one side or on both
        return -np.inf, np.inf
    half = float(np.sqrt(root))
    return (-b - half) / (2 * a), (-b + half) / (2 * a)


def _verdict(curve: Quadratic, t: float, ends: tuple[float, float]) -> tuple[str, str]:
    """Return the verdict and a sentence, from the slopes at the two ends."""
    signs = []
    for x in ends:
        slope, se = curve.slope(x)
        signs.append(int(np.sign(slope)) if abs(slope) > t * se else 0)
    if signs == [1, -1]:
        return INTERIOR, "the curve rises at the low end and falls at the high end"
    if signs == [-1, 1]:
        return NO_INTERIOR, "the curve has a minimum inside, so the best value is at an end"
    if signs == [1, 1]:
        return NO_INTERIOR, RISES
    if signs == [-1, -1]:
        return NO_INTERIOR, FALLS
    side = {0: "at either end", 1: "at the low end", 2: "at the high end"}
    unclear = [i + 1 for i, sign in enumerate(signs) if not sign]
    where = side[unclear[0]] if len(unclear) == 1 else side[0]
    return NOT_IDENTIFIED, f"the direction of the curve {where} is not determined"

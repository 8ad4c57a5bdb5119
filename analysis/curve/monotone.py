"""A quadratic with a maximum inside against a curve that only rises or only falls.

The statistic is T = SSE(monotone) - SSE(quadratic), referred to what each of the two would give:
scores are drawn from the fitted monotone curve, then from the fitted quadratic, both with the noise
of `curve.level_curve`: a parametric bootstrap of non-nested models (Williams 1970, Biometrics
26(1)). The monotone curve is the better of rising and falling, by isotonic least squares (Barlow et
al. 1972). A quadratic without a maximum inside counts as monotone.

Letters in names: L levels, M = L - 1 steps, D draws.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from analysis.curve.level_curve import Curve, least_squares, power_columns
from analysis.engine.linalg import Array

DRAWS = 1000
ALPHA = 0.05
NAN = float("nan")
NO_MAXIMUM = "the quadratic has no maximum inside, so there is nothing to test"


@dataclass(frozen=True, slots=True)
class MonotoneTest:
    """A quadratic with a maximum inside against a monotone curve, each as the null in turn."""

    p_monotone: float  # small: a monotone curve does not fit
    p_quadratic: float  # small: the quadratic does not fit
    direction: str  # of the better monotone curve: "rising" or "falling"
    verdict: str


def monotone_fit(r_MM: Array, m_M: Array) -> tuple[Array, float, str]:
    """Return the better of the rising and the falling curve: its steps, its SSE, its direction."""
    up_M, up = nnls(r_MM, m_M)
    down_M, down = nnls(-r_MM, m_M)
    return (up_M, up**2, "rising") if up <= down else (-down_M, down**2, "falling")


def monotone_test(found: Curve, *, draws: int = DRAWS, seed: int = 0) -> MonotoneTest:
    """Return whether a monotone curve, a quadratic with a maximum inside, both or neither fits.

    The variance is drawn anew with the scores, so that its own uncertainty is in both p-values.
    """
    x_M2 = power_columns(found, 2)
    b_2, _ = least_squares(x_M2, found.m_M)
    d_M, _, direction = monotone_fit(found.r_MM, found.m_M)
    if not _peaks(b_2, found.x_L):
        return MonotoneTest(NAN, NAN, direction, NO_MAXIMUM)
    here = float(_differences(found, x_M2, found.m_M[None])[0]) / found.variance
    rng = np.random.default_rng(seed)
    null_2D = [_drawn(found, mean_M, draws, rng) for mean_M in (found.r_MM @ d_M, x_M2 @ b_2)]
    p_monotone = (1 + int((null_2D[0] >= here).sum())) / (1 + draws)
    p_quadratic = (1 + int((null_2D[1] <= here).sum())) / (1 + draws)
    verdict = _MONOTONE[p_monotone < ALPHA, p_quadratic < ALPHA]
    return MonotoneTest(p_monotone, p_quadratic, direction, verdict.format(direction=direction))


_MONOTONE = {
    (True, False): "not monotone: it rises and comes back down",
    (False, True): "a {direction} curve fits and the quadratic does not: no interior optimum",
    (False, False): "a {direction} curve fits as well: no interior optimum is shown",
    (True, True): "neither a monotone curve nor a quadratic fits",
}


def _peaks(b_2: Array, x_L: Array) -> bool:
    return bool(b_2[1] < 0 and x_L[0] < -b_2[0] / (2 * b_2[1]) < x_L[-1])


def _differences(found: Curve, x_M2: Array, m_DM: Array) -> Array:
    """Return SSE(monotone) - SSE(quadratic), at most 0 where the quadratic has no maximum."""
    b_D2 = m_DM @ np.linalg.pinv(x_M2).T
    quadratic_D = ((m_DM - b_D2 @ x_M2.T) ** 2).sum(axis=1)
    monotone_D = np.array([monotone_fit(found.r_MM, m_M)[1] for m_M in m_DM])
    gap_D = monotone_D - quadratic_D
    peaks_D = np.array([_peaks(b_2, found.x_L) for b_2 in b_D2])
    return np.where(peaks_D, gap_D, np.minimum(gap_D, 0.0))


def _drawn(found: Curve, mean_M: Array, draws: int, rng: np.random.Generator) -> Array:
    """Return the statistic of scores drawn about `mean_M`, each over a variance of its own (D,)."""
    noise_DM = np.sqrt(found.variance) * rng.standard_normal((draws, len(mean_M)))
    variance_D = found.variance * rng.chisquare(found.df, draws) / found.df
    return _differences(found, power_columns(found, 2), mean_M + noise_DM) / variance_D

"""The runs of every arm over its learning rates, and the rate that its validation loss chooses.

At one place (one level of every other setting, such as the batch size) an arm ran at K rates under
S seeds. With x = log2(rate) less its mean over the K rates, its loss on the validation rows is a
quadratic, by least squares over rates and seeds,

    loss = b0 + b1 x + b2 x^2

The chosen rate is its minimum within the rates tried, x* = -b1 / (2 b2), or the better end. The
score at x* is read off the cubic spline through the mean scores at the K rates (a parabola where
there are three). A quadratic through all rates would be steadier, but scores fall off a cliff where
training becomes unstable, and the parabola is then off by points on the near side of it. A
seed's part in the score, to first order, is

    theta_s = score_s(x*) + score'(x*) (dx*/db) (b_s - b)

with score_s and b_s from the seed's own runs. The mean over seeds is the score at x*, and what
theta_s differ in is the noise of the runs and of the chosen rate together (the delta method).

Letters in names: S seeds, K rates, R runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats
from scipy.interpolate import CubicSpline

from analysis.curve.lack_of_fit import FTest, any_curve_test
from analysis.curve.level_curve import Curve
from analysis.engine.linalg import Array
from analysis.inference.estimates import LEVEL
from analysis.inference.optimum import Quadratic, fieller_set

FEWEST = 3  # rates that a quadratic needs, and a spline
ROUNDING = 1e-9  # of log2(rate)
LOW, HIGH = "at the lowest rate tried", "at the highest rate tried"


@dataclass(frozen=True)
class RateCurve:
    """The runs of one arm at one place: loss and score by seed and rate."""

    arm: str
    place: str
    rate_K: Array  # ascending
    seeds: tuple[str, ...]
    loss_SK: Array  # nats a token, of the validation rows
    score_SK: Array  # points, mean over tasks
    run_SK: tuple[tuple[str, ...], ...]

    @property
    def middle(self) -> float:
        """log2(rate) where x is 0."""
        return float(np.log2(self.rate_K).mean())

    @cached_property
    def x_K(self) -> Array:
        """log2(rate), centred."""
        return np.asarray(np.log2(self.rate_K) - self.middle)

    @cached_property
    def solve_3K(self) -> Array:
        """What turns numbers at the K rates into the coefficients of their quadratic."""
        return np.asarray(np.linalg.pinv(np.vander(self.x_K, 3, increasing=True)))

    @cached_property
    def loss(self) -> Quadratic:
        """The quadratic of the loss, its covariance from what the seeds' own curves differ in."""
        b_S3 = self.loss_SK @ self.solve_3K.T
        cov = np.full((2, 2), np.nan)
        if len(b_S3) > 1:
            cov = np.atleast_2d(np.cov(b_S3[:, 1:].T)) / len(b_S3)
        _, b1, b2 = b_S3.mean(axis=0)
        return Quadratic(float(b1), float(b2), cov, max(len(b_S3) - 1.0, 1.0))

    def thinned(self, keep_K: Sequence[bool]) -> "RateCurve":
        """Return the curve of some of the rates."""
        kept = np.asarray(keep_K, bool)
        runs = tuple(tuple(np.asarray(own)[kept].tolist()) for own in self.run_SK)
        parts = (self.rate_K[kept], self.seeds, self.loss_SK[:, kept], self.score_SK[:, kept])
        return RateCurve(self.arm, self.place, *parts, runs)

    @cached_property
    def spline(self) -> CubicSpline:
        """The cubic spline through 1 at one rate and 0 at the others, for every rate."""
        return CubicSpline(self.x_K, np.eye(len(self.x_K)))

    def weights_K(self, x: float) -> Array:
        """Return what each rate counts in the score at x."""
        return np.asarray(self.spline(x))

    def score(self, x: float) -> float:
        """Return the score at x, between the rates tried by the spline."""
        return float(self.weights_K(x) @ self.score_SK.mean(axis=0))

    def slope(self, x: float) -> float:
        """Return the slope of the score at x, points per log2 of the rate."""
        return float(self.spline(x, 1) @ self.score_SK.mean(axis=0))

    def of_seeds(self, seeds: Sequence[str]) -> "RateCurve":
        """Return the curve of some of the seeds, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        runs = tuple(self.run_SK[row] for row in rows)
        parts = (self.rate_K, tuple(seeds), self.loss_SK[rows], self.score_SK[rows])
        return RateCurve(self.arm, self.place, *parts, runs)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rate that was chosen for an arm at a place, and every seed's part in its score."""

    curve: RateCurve
    x: float  # of the chosen rate, in the curve's own scale
    end: str  # LOW or HIGH where the best rate lies at an end of those tried, else ""
    theta_S: Array  # points
    weights_K: Array  # of the scores at the K rates in the score at x
    shift_S: Array  # a seed's part in x, of which theta_S holds what it does to the score

    @property
    def rate(self) -> float:
        """The chosen rate."""
        return float(2.0 ** (self.x + self.curve.middle))

    @property
    def estimate(self) -> float:
        """The score at the chosen rate."""
        return float(self.theta_S.mean())


def at_optimum(curve: RateCurve) -> Chosen:
    """Return the optimum of the curve of the validation loss, and the score there."""
    x, end, shift_S = _optimum(curve)
    weights_K = curve.weights_K(x)
    theta_S = curve.score_SK @ weights_K + curve.slope(x) * shift_S
    return Chosen(curve, x, end, theta_S, weights_K, shift_S)


def on_parabola(curve: RateCurve) -> Chosen:
    """Return the optimum of the loss, and the score there on one parabola through all rates."""
    x, end, shift_S = _optimum(curve)
    weights_K = np.array([1.0, x, x * x]) @ curve.solve_3K
    slope = float(np.array([0.0, 1.0, 2 * x]) @ curve.solve_3K @ curve.score_SK.mean(axis=0))
    return Chosen(curve, x, end, curve.score_SK @ weights_K + slope * shift_S, weights_K, shift_S)


def _optimum(curve: RateCurve) -> tuple[float, str, Array]:
    """Return where the loss is lowest, which end that is, if one, and a seed's part in it."""
    b1, b2 = curve.loss.b1, curve.loss.b2
    x, end = vertex(b1, b2, curve.x_K)
    if end:
        return x, end, np.zeros(len(curve.seeds))
    moved_3 = np.array([0.0, -1 / (2 * b2), -x / b2])  # dx* / db
    rest_SK = curve.loss_SK - curve.loss_SK.mean(axis=0)
    return x, end, rest_SK @ curve.solve_3K.T @ moved_3


def at_rate_of(curve: RateCurve, other: Chosen) -> Chosen | None:
    """Return the score of a curve at the rate that was chosen for another of the same seeds.

    None where that rate lies beyond those that the curve tried.
    """
    x = other.x + other.curve.middle - curve.middle
    if not curve.x_K[0] - ROUNDING <= x <= curve.x_K[-1] + ROUNDING:
        return None
    weights_K = curve.weights_K(x)
    theta_S = curve.score_SK @ weights_K + curve.slope(x) * other.shift_S
    return Chosen(curve, x, other.end, theta_S, weights_K, other.shift_S)


def vertex(b1: float, b2: float, x_K: Array) -> tuple[float, str]:
    """Return where b1 x + b2 x^2 is lowest within the x tried, and which end that is, if one."""
    low, high = float(x_K[0]), float(x_K[-1])
    if b2 > 0 and low < -b1 / (2 * b2) < high:
        return -b1 / (2 * b2), ""
    return (low, LOW) if b1 * low + b2 * low**2 <= b1 * high + b2 * high**2 else (high, HIGH)


def best_tried(curve: RateCurve) -> Chosen:
    """Return the rate of lowest mean validation loss among those tried, and the score there."""
    return tried(curve, int(curve.loss_SK.mean(axis=0).argmin()))


def tried(curve: RateCurve, k: int) -> Chosen:
    """Return the k-th of the rates tried, and the score there."""
    end = {0: LOW, len(curve.x_K) - 1: HIGH}.get(k, "") if len(curve.x_K) > 1 else ""
    weights_K = np.eye(len(curve.x_K))[k]
    still_S = np.zeros(len(curve.seeds))
    return Chosen(curve, float(curve.x_K[k]), end, curve.score_SK[:, k], weights_K, still_S)


def own_rate(curve: RateCurve) -> Chosen:
    """Return `at_optimum` where enough rates were tried for it, else `best_tried`."""
    return at_optimum(curve) if len(curve.rate_K) >= FEWEST else best_tried(curve)


def pooled_covariance(curves: Sequence[RateCurve]) -> tuple[Array, float]:
    """Return the covariance of a seed's (b1, b2) of the loss, over all curves, and its df.

    In units of the curve's own x, which all curves with equally spaced rates share.
    """
    total, df = np.zeros((2, 2)), 0
    for curve in curves:
        own = len(curve.seeds) - 1
        if own and np.isfinite(curve.loss.cov_22).all():
            total += own * len(curve.seeds) * curve.loss.cov_22
            df += own
    return total / max(df, 1), float(df)


def rate_interval(curve: RateCurve, cov_22: Array, df: float) -> tuple[float, float]:
    """Return Fieller's 95 % interval of the optimum as rates, cut to the rates tried.

    Args:
        curve: with a minimum of the loss.
        cov_22: covariance of a seed's (b1, b2).
        df: its degrees of freedom.
    """
    if not df:
        return float("nan"), float("nan")
    t = float(stats.t.ppf((1 + LEVEL) / 2, df))
    own = Quadratic(-curve.loss.b1, -curve.loss.b2, cov_22 / len(curve.seeds), df)
    ends = np.clip(fieller_set(own, t), curve.x_K[0], curve.x_K[-1])
    low, high = 2.0 ** (ends + curve.middle)
    return float(low), float(high)


def lack_of_fit(curve: RateCurve, value_SK: Array) -> FTest:
    """Return the F test of a quadratic through the means over seeds within any curve.

    The noise is that of rates within seeds: what all rates of a seed share bends no curve.
    """
    seeds, rates = value_SK.shape
    own_SK = value_SK - value_SK.mean(axis=1, keepdims=True)
    rest_SK = own_SK - own_SK.mean(axis=0)
    df = (seeds - 1) * (rates - 1)
    noise = float((rest_SK**2).sum()) / df if df else float("nan")
    # Contrasts of the means with independent errors: an orthonormal basis without the constant.
    basis_MK = np.linalg.qr(np.vander(curve.x_K, increasing=True))[0][:, 1:].T
    lower_KM = np.tril(np.ones((rates, rates - 1)), -1)
    means_M = basis_MK @ value_SK.mean(axis=0)
    return any_curve_test(Curve(curve.x_K, means_M, basis_MK @ lower_KM, noise / seeds, df))


def rate_curves(runs: pd.DataFrame, *, fewest: int = FEWEST) -> Iterator[RateCurve]:
    """Yield the curve of every arm and place that ran under some seed at enough rates.

    Args:
        runs: one row per run: arm, place, seed, rate, loss, score, run. Seeds that lack one of the
            rates of their arm and place are left out.
        fewest: rates that are enough; below `FEWEST` a curve has no optimum, see `own_rate`.
    """
    known = runs.dropna(subset=["loss", "score"]).drop_duplicates(["arm", "place", "seed", "rate"])
    for (arm, place), own in known.groupby(["arm", "place"], sort=False):
        seeds, row = np.unique(own["seed"].to_numpy(str), return_inverse=True)
        rates, column = np.unique(own["rate"].to_numpy(float), return_inverse=True)
        order_SK = np.full((len(seeds), len(rates)), -1)
        order_SK[row, column] = np.arange(len(own))
        whole = (order_SK >= 0).all(axis=1)
        if whole.any() and len(rates) >= fewest:
            loss, score = (own[name].to_numpy(float)[order_SK[whole]] for name in ("loss", "score"))
            names = own["run"].to_numpy(str)[order_SK[whole]].tolist()
            yield RateCurve(str(arm), str(place), rates, tuple(map(str, seeds[whole])), loss,
                            score, tuple(map(tuple, names)))  # fmt: skip

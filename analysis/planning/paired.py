"""One change against its base: a sequential t test on the differences of paired seeds.

Base and candidate run with the same seeds; the differences of their scores, one a seed, are the
data: d_1, d_2, ... with a mean mu and a standard deviation that nobody knows. At each look

    accept      the lower bound of mu lies above 0
    reject      the upper bound of mu lies below the margin, the effect that is worth having

and after the last look neither: undecided. The lower bound errs with probability `alpha` over all
looks together whatever the standard deviation is, the upper one with `miss`: a candidate that is no
better is accepted with a probability of at most `alpha`, one that is better by the margin rejected
with one of at most `miss`. A candidate may be stopped at any time without harm to `alpha`.

Bounds are mean +- t_n s / sqrt(n) with boundaries t_n that spend the error by the number of seeds
(`analysis.planning.sequential`). That module's recursion is for a known variance. Here it runs over
the t statistics themselves: with R_n = sum(d) / sqrt(sum(d^2)), if mu = 0 and d is normal, the
direction of (d_1, ..., d_n), on which all R up to n depend, is independent of its length, so that

    R_{n+1} = (R_n + y) / sqrt(1 + y^2),    y = d_{n+1} / sqrt(sum_{i<=n} d_i^2) ~ t_n / sqrt(n)

is a Markov chain with known transitions, and T_n = R_n sqrt((n - 1) / (n - R_n^2)). Boundaries are
exact for normal differences, two seeds included.

Letters in names: N seeds, L looks.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtr, stdtrit
from scipy.stats import nct, norm

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, listed
from analysis.planning.sequential import SPENDING

BINS, COARSE = 240, 24  # of the grid on which the distribution of a statistic is kept
NEAR = -1.0  # normal score from which on it is fine: what lies lower hardly reaches a boundary
FAR = 8.5  # normal score beyond which no statistic is looked for
Verdict = Literal["accept", "reject", "undecided"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A sequential rule, all of it fixed before the first look.

    Attributes:
        margin: the smallest effect worth having, in units of the score.
        alpha: error of a wrong accept, one-sided, over all looks.
        miss: error of a wrong reject at an effect of `margin`, over all looks.
        looks: numbers of seeds at which one looks, rising; the last is the most that are used.
        accepting: how `alpha` is spent over the looks, a name of `SPENDING`; late unless given,
            which finds smaller effects.
        rejecting: how `miss` is; evenly unless given, for most changes are no better and that is
            to be seen early.
    """

    margin: float
    alpha: float
    miss: float
    looks: tuple[int, ...]
    accepting: str = "obrien_fleming"
    rejecting: str = "pocock"

    def __post_init__(self) -> None:
        if not 0 < self.margin < np.inf:
            raise AnalysisError(f"margin={self.margin}: must be a number above 0")
        for name in ("alpha", "miss"):
            if not 0 < getattr(self, name) < 0.5:
                raise AnalysisError(f"{name}={getattr(self, name)}: must lie between 0 and 0.5")
        for name in ("accepting", "rejecting"):
            if getattr(self, name) not in SPENDING:
                raise AnalysisError(f"{name}={getattr(self, name)}: not one of {listed(SPENDING)}")
        if not self.looks or self.looks[0] < 2 or (np.diff(self.looks) <= 0).any():
            raise AnalysisError(f"looks={list(self.looks)}: must rise from 2 seeds or more")

    @property
    def most(self) -> int:
        """The most seeds that are used."""
        return self.looks[-1]

    @property
    def accept_L(self) -> Array:
        """The t statistic of the mean from which each look accepts, (L,)."""
        return np.array(t_boundaries(self.looks, self.alpha, self.accepting))

    @property
    def reject_L(self) -> Array:
        """The t statistic of the margin less the mean from which each look rejects, (L,)."""
        return np.array(t_boundaries(self.looks, self.miss, self.rejecting))

    @property
    def sha256(self) -> str:
        """The hash over everything in the rule."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Bounds:
    """The mean of the differences at every look, and the bounds that hold at all looks together.

    Attributes:
        estimate_L: the mean, (..., L); not a number at looks whose seeds are not all there.
        low_L: its lower bound, at the rule's `alpha`.
        high_L: its upper bound, at the rule's `miss`.
    """

    estimate_L: Array
    low_L: Array
    high_L: Array


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a rule says of many sequences of differences.

    Attributes:
        accepted: which it accepts, booleans of the sequences' shape.
        rejected: which it rejects.
        seeds: how many seeds it used.
    """

    accepted: np.ndarray
    rejected: np.ndarray
    seeds: np.ndarray


def bounds(rule: Rule, d_N: Array, *, resolution: float = 0.0) -> Bounds:
    """Return the bounds of the mean difference at the looks of a rule.

    Args:
        rule: as it was fixed.
        d_N: differences of paired seeds, (..., N) in the order of the seeds.
        resolution: the smallest step of a score. The standard deviation is never taken to be less:
            differences of a few seeds that agree to the last item are no proof that all would.
    """
    d_N = np.asarray(d_N, dtype=np.float64)
    found = []
    for k, n in enumerate(rule.looks):
        if n > d_N.shape[-1]:
            found.append(np.full((3, *d_N.shape[:-1]), np.nan))
            continue
        part = d_N[..., :n]
        mean, sd = part.mean(-1), np.maximum(part.std(-1, ddof=1), resolution)
        se = sd / np.sqrt(n)
        found.append(np.array([mean, mean - rule.accept_L[k] * se, mean + rule.reject_L[k] * se]))
    estimate_L, low_L, high_L = np.moveaxis(np.array(found), 0, -1)
    return Bounds(estimate_L, low_L, high_L)


def decide(rule: Rule, d_N: Array, *, resolution: float = 0.0) -> Decisions:
    """Return what a rule says of sequences of differences, (..., N), that are all there."""
    found = bounds(rule, d_N, resolution=resolution)
    last = len(rule.looks)
    accepts = _first(found.low_L > 0)
    rejects = _first(found.high_L < rule.margin)
    at = np.minimum(np.minimum(accepts, rejects), last - 1)
    return Decisions(
        accepted=(accepts < last) & (accepts <= rejects),
        rejected=(rejects < last) & (rejects < accepts),
        seeds=np.asarray(rule.looks)[at],
    )


def verdict(rule: Rule, d_N: Sequence[float], *, resolution: float = 0.0) -> Verdict | None:
    """Return the verdict on the differences so far; None where the next look must be waited for."""
    if len(d_N) < 2:
        return None
    found = bounds(rule, np.asarray(d_N, dtype=np.float64), resolution=resolution)
    for low, high in zip(found.low_L, found.high_L, strict=True):
        if low > 0:
            return "accept"
        if high < rule.margin:
            return "reject"
    return None if len(d_N) < rule.most else "undecided"


def foreseen(rule: Rule, effect: float, sd: float, *, draws: int = 4000) -> tuple[float, float]:
    """Return how often a rule accepts, and the seeds that it uses on average, by simulation.

    Args:
        rule: as it will be fixed.
        effect: the true mean of the differences.
        sd: their true standard deviation; the differences are normal.
        draws: simulated decisions; always the same ones.
    """
    d_N = effect + sd * np.random.default_rng(0).standard_normal((draws, rule.most))
    found = decide(rule, d_N)
    return float(found.accepted.mean()), float(found.seeds.mean())


def enough(
    rule: Rule, sd: float, *, found: float = 0.8, most: int = 100, draws: int = 4000
) -> tuple[int, float, float] | None:
    """Return the `most` with which a rule finds so many effects of its margin.

    Looks go on after the rule's last one in steps of its last two. The first tried is a twentieth
    above what a t test takes that looks once, which looking costs at the least. The share is
    simulated; it has to lie above `found` by its standard error.

    Args:
        rule: whose last look may come too early.
        sd: the true standard deviation of the differences.
        found: the share of effects of the margin that are to be found, below 1 - `miss`.
        most: seeds beyond which nothing is tried.
        draws: simulated decisions.

    Returns:
        The number of seeds, the share found and the seeds used on average by an effect of the
        margin; None where it takes more than `most`.
    """
    step = rule.looks[-1] - rule.looks[-2] if len(rule.looks) > 1 else 1
    alone = fixed_seeds(rule.alpha, rule.margin / sd, found, most=most)
    last = rule.most
    while alone is not None and last <= most:
        if last >= 1.05 * alone:
            longer = replace(rule, looks=(*rule.looks, *range(rule.most + step, last + 1, step)))
            share, seeds = foreseen(longer, rule.margin, sd, draws=draws)
            if share >= found + (share * (1 - share) / draws) ** 0.5:
                return last, share, seeds
        last += step
    return None


def fixed_seeds(alpha: float, effect: float, power: float, *, most: int = 500) -> int | None:
    """Return the seeds of a one-sided t test at `alpha` that looks once and finds an effect.

    Args:
        alpha: error of the test.
        effect: in standard deviations of a difference.
        power: how often it is found.
        most: None is returned where it takes more.
    """
    for n in range(2, most + 1):
        if nct.sf(-stdtrit(n - 1, alpha), n - 1, np.sqrt(n) * effect) >= power:
            return n
    return None


def _first(crossed_L: np.ndarray) -> np.ndarray:
    """Return the first look at which a boundary is crossed; the number of looks where none is."""
    return np.where(crossed_L.any(-1), crossed_L.argmax(-1), crossed_L.shape[-1])


@functools.lru_cache(maxsize=256)
def t_boundaries(looks: tuple[int, ...], alpha: float, spending: str) -> tuple[float, ...]:
    """Return the t statistic beyond which each look ends the study, one-sided, (L,).

    Args:
        looks: numbers of observations, rising from 2 or more.
        alpha: the error over all looks.
        spending: a name of `SPENDING`, over the share of the observations.
    """
    shares = np.asarray(looks) / looks[-1]
    spent = np.diff(SPENDING[spending](shares, 2 * alpha) / 2, prepend=0.0)
    state, seen, found = None, 1, []
    for look, now in zip(looks, spent, strict=True):
        for n in range(max(2, seen + 1), look):  # observations at which nobody looks
            state = _after(state, n, FAR)
        score = _bound(state, look, float(now))
        found.append(float(_t(np.array(score), look)))
        state, seen = _after(state, look, score), look
    return tuple(found)


_State = tuple[Array, Array]  # R of the studies that go on, and the chance to be there


def _t(score: Array, n: int) -> Array:
    """Return the t statistic of n observations whose normal score is given."""
    return -np.sign(score) * stdtrit(n - 1, ndtr(-np.abs(score)))


def _r(score: Array, n: int) -> Array:
    """Return R of n observations by the normal score of their t statistic."""
    t = _t(score, n)
    return np.sqrt(n) * t / np.sqrt(n - 1 + t**2)


def _leaving(state: _State | None, n: int, score: float) -> float:
    """Return the chance that the n-th observation is there and brings T above a normal score."""
    if state is None:
        return float(norm.sf(score))
    r, mass = state
    return float(mass @ _below(-r, -_r(np.array([score]), n), n - 1)[:, 0])


def _bound(state: _State | None, n: int, spent: float) -> float:
    if _leaving(state, n, FAR) >= spent:
        return FAR
    return float(brentq(lambda s: _leaving(state, n, s) - spent, -FAR, FAR, xtol=1e-10))


def _after(state: _State | None, n: int, score: float) -> _State:
    """Return where the studies are that go on after n observations, by bins of the normal score."""
    fine = np.linspace(min(NEAR, score - 1), score, BINS + 1)
    edges = np.concatenate([np.linspace(-FAR, fine[0], COARSE, endpoint=False), fine])
    middle = _r((edges[1:] + edges[:-1]) / 2, n)
    if state is None:
        return middle, np.diff(ndtr(edges))
    r, mass = state
    below = _below(r, _r(edges, n), n - 1)
    return middle, mass @ np.diff(below, axis=1)


def _below(r_I: Array, edge_J: Array, n: int) -> Array:
    """Return the chance that R_{n+1} lies below each edge, by R_n: (I, J).

    With y = tan(phi), R_{n+1} = sqrt(1 + R_n^2) sin(phi + a), a = atan(R_n).
    """
    a = np.arctan(r_I)[:, None]
    s = np.arcsin(np.clip(edge_J / np.sqrt(1 + r_I[:, None] ** 2), -1.0, 1.0))
    rising = _angle(s - a, n) - _angle(-np.pi - s - a, n)
    return rising + _angle(s + a - np.pi, n)  # the last by symmetry: phi beyond pi - s - a


def _angle(phi: Array, n: int) -> Array:
    """Return the distribution function of phi, where sqrt(n) tan(phi) has Student's t with n."""
    inside = np.clip(phi, -np.pi / 2, np.pi / 2)
    with np.errstate(over="ignore"):
        return np.asarray(stdtr(n, np.sqrt(n) * np.tan(inside)))

"""Minimises a mixed model's deviance, then checks the minimum.

The search (`engine.newton`) goes most of the way on a guess at the curvature; the Hessian, by
differences of the analytic gradient, does the rest. Two checks follow, each of which can fail: the
Newton decrement g' H^-1 g / 2, which is how much deviance is left to gain, and for every factor
the smallest eigenvalue of D_f, which is negative at a false boundary (a variance that was set to
zero though raising it would lower the deviance). From a false boundary the search starts again
along the offending eigenvector.

The parameters x are theta first, then whatever else the model is minimised over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from analysis.engine.layout import Factor
from analysis.engine.linalg import Array, Mask, triangular
from analysis.engine.newton import minimize
from analysis.engine.summary import brief

FLAT_DEVIANCE = 1e-5  # deviance left to gain that counts as none
FALSE_BOUNDARY = 1e-2  # deviance per unit of relative variance
SINGULAR_SCALE = 1e-4  # smallest singular value of Lambda_f, lme4's own tolerance
NEAR = 0.1  # the same, below which a boundary may be what ended the search
RESTARTS = 4
LEAPS = 10.0 ** np.arange(-1, -7, -1)  # relative variance, tried until the deviance is lower
NEWTON_STEPS = 8  # Hessians
FEW = 25  # steps on one Hessian
NOTHING = 1e-13  # deviance left to gain at which no further step is taken
EPS = float(np.finfo(np.float64).eps)
STALE = 0.01  # share of a flat deviance up to which an older Hessian is good enough


class Evaluated(Protocol):
    """What a model says of itself at one x."""

    @property
    def deviance(self) -> float: ...  # noqa: D102
    @property
    def gradient(self) -> Array: ...  # noqa: D102
    @property
    def slopes(self) -> tuple[Array, ...]: ...  # noqa: D102


P = TypeVar("P", bound=Evaluated)


class Deviance(Protocol[P]):
    """A deviance to be minimised over x = (theta, ...)."""

    factors: tuple[Factor, ...]
    lower: Array  # bounds of x
    size: int  # of theta

    @property
    def start(self) -> Array:
        """Where to begin."""

    def evaluate(self, x: Array) -> P:
        """Return deviance, gradient and slopes at x."""

    def curvature(self, x: Array, at: P) -> Array | None:
        """Return a guess at the Hessian; None where only that at the start is known."""

    def unpack(self, theta: Array) -> list[Array]:
        """Return Lambda_f of every factor."""

    def pack(self, lambdas: Sequence[Array]) -> Array:
        """Return theta."""


@brief
@dataclass(frozen=True, slots=True)
class Minimum(Generic[P]):
    """Where the search ended and what the checks said."""

    theta: Array
    at: P
    evaluations: int
    decrement: float  # deviance left to gain, by the local quadratic
    curved: bool  # the Hessian has no negative eigenvalue
    false_boundary: tuple[str, ...]  # groups whose variance should not be zero but is
    singular: tuple[str, ...]  # groups whose covariance has lost rank
    x: Array  # theta and all else
    hessian: Array  # of the deviance, over `inside`, at the last step's beginning or its end
    inside: Mask  # of x: what is not held by a bound

    @property
    def converged(self) -> bool:
        """Whether every check passed."""
        return self.decrement < FLAT_DEVIANCE and self.curved and not self.false_boundary


@brief
@dataclass(frozen=True, slots=True)
class _End(Generic[P]):
    """Where one search ended."""

    x: Array
    at: P
    decrement: float
    curved: bool
    hessian: Array
    inside: Mask


def minimise(problem: Deviance[P], start: Array | None = None) -> Minimum[P]:
    """Return the minimum of the deviance over x, begun at `start` or where the problem says."""
    counter = _Counter(problem)
    end = _search(counter, problem.start if start is None else start)
    gain = np.inf
    for _ in range(RESTARTS):
        again = _leave_boundary(counter, end)
        if again is None:
            gain = 0.0
            break
        found = _search(counter, again)
        if found.at.deviance > end.at.deviance - FLAT_DEVIANCE:
            # The search's first step may lead straight back to the boundary; Newton's does not.
            found = _polish(counter, again, counter.evaluate(again))
        gain = end.at.deviance - found.at.deviance
        if gain < FLAT_DEVIANCE:
            break
        end = found
    return _checked(counter, end, worth=gain >= FLAT_DEVIANCE)


def _checked(counter: "_Counter[P]", end: _End[P], *, worth: bool) -> Minimum[P]:
    """Return what was found; a slope that leads to nothing worth having is no false boundary."""
    problem = counter.problem
    groups = [f.group for f in problem.factors]
    low = zip(groups, _lowest_slopes(problem, end), strict=True)
    small = zip(groups, _scales(problem, end.x), strict=True)
    return Minimum(
        theta=end.x[: problem.size],
        at=end.at,
        evaluations=counter.calls,
        decrement=end.decrement,
        curved=end.curved,
        false_boundary=tuple(g for g, (d, _) in low if worth and d < -FALSE_BOUNDARY),
        singular=tuple(g for g, s in small if s < SINGULAR_SCALE),
        x=end.x,
        hessian=end.hessian,
        inside=end.inside,
    )


class _Counter(Generic[P]):
    """The problem as the optimiser calls it."""

    def __init__(self, problem: Deviance[P]) -> None:
        self.problem, self.calls = problem, 0
        self._last: tuple[Array, P] | None = None

    def __call__(self, x: Array) -> tuple[float, Array]:
        try:
            at = self.evaluate(x)
        except np.linalg.LinAlgError:
            return np.inf, np.full_like(x, np.nan)
        return at.deviance, at.gradient

    def evaluate(self, x: Array) -> P:
        if self._last is None or not np.array_equal(x, self._last[0]):
            self.calls += 1
            self._last = (x.copy(), self.problem.evaluate(x))
        return self._last[1]

    def recall(self, x: Array, at: P) -> None:
        """Remember what was evaluated before, so that a search begun there need not do it again."""
        self._last = (x.copy(), at)

    def curvature(self, x: Array) -> Array | None:
        return self.problem.curvature(x, self.evaluate(x))


def _search(counter: _Counter[P], x: Array) -> _End[P]:
    """Return the end of a search from x."""
    if len(x):
        found = minimize(counter, x, lower=counter.problem.lower, curvature=counter.curvature)
        x = found.x
    return _polish(counter, x, counter.evaluate(x))


def _scales(problem: Deviance[P], x: Array) -> list[float]:
    """Return the smallest singular value of every Lambda_f."""
    templates = problem.unpack(x[: problem.size])
    return [float(np.linalg.svd(m, compute_uv=False)[-1]) for m in templates]


def _lowest_slopes(problem: Deviance[P], end: _End[P]) -> list[tuple[float, Array]]:
    """Return the smallest eigenvalue of every D_f, and its vector, within the pattern of Lambda_f.

    Away from the boundary the gradient says as much, and a negative one only that the search has
    not ended: zero stands for it there.
    """
    found = []
    scales = _scales(problem, end.x)
    for slope, factor, scale in zip(end.at.slopes, problem.factors, scales, strict=True):
        values, vectors = np.linalg.eigh(slope * (factor.free_PP | factor.free_PP.T))
        near = scale < NEAR or not end.curved
        found.append((float(values[0]) if near else 0.0, vectors[:, 0]))
    return found


def _leave_boundary(counter: _Counter[P], end: _End[P]) -> Array | None:
    """Return a better x away from a false boundary, or None at a true minimum."""
    lowest = _lowest_slopes(counter.problem, end)
    if all(value >= -FALSE_BOUNDARY for value, _ in lowest):
        return None
    for share in LEAPS:  # the minimum may be so near that a long leap lands beyond it
        away = _leap(counter.problem, end.x, lowest, share)
        if counter(away)[0] < end.at.deviance:
            return away
    return None


def _leap(problem: Deviance[P], x: Array, lowest: list[tuple[float, Array]], share: float) -> Array:
    """Return x with every wrongly missing direction given this share of variance."""
    lambdas = problem.unpack(x[: problem.size])
    for i, (value, vector) in enumerate(lowest):
        if value < -FALSE_BOUNDARY:
            size = max(1.0, float(np.trace(lambdas[i] @ lambdas[i].T)))
            longer = np.column_stack([lambdas[i], np.sqrt(share * size) * vector])
            lambdas[i] = triangular(longer)
    return np.concatenate([problem.pack(lambdas), x[problem.size :]])


def _polish(counter: _Counter[P], x: Array, at: P) -> _End[P]:
    """Return where searches on the Hessian itself lead, and the two local checks."""
    low = counter.problem.lower
    for _ in range(NEWTON_STEPS):
        inside = (x > low) | (at.gradient < 0)
        bend = hessian(counter.evaluate, x, at, inside)
        counter.recall(x, at)
        decrement, curved = _decrement(bend, at.gradient[inside])
        nothing = max(NOTHING, 4 * EPS * abs(at.deviance))
        if decrement < nothing:
            break
        before = at.deviance
        whole = np.diag(np.where(inside, 0.0, np.abs(bend).max(initial=1.0)))
        whole[np.ix_(inside, inside)] = bend
        x = minimize(counter, x, lower=low, curvature=whole, gain=nothing, steps=FEW).x
        at = counter.evaluate(x)
        if np.array_equal(inside, (x > low) | (at.gradient < 0)):
            decrement, curved = _decrement(bend, at.gradient[inside])
            if curved and (decrement < FLAT_DEVIANCE * STALE or before - at.deviance < nothing):
                break
    return _End(x, at, decrement, curved, bend, inside)


def _decrement(bend: Array, gradient: Array) -> tuple[float, bool]:
    """Return what the deviance has left to fall, and whether no eigenvalue is negative."""
    if not len(gradient):
        return 0.0, True
    values, vectors = np.linalg.eigh(bend)
    curved = bool(values[0] > -1e-4 * max(np.abs(values).max(), 1e-300))
    firm = values > 1e-8 * max(values[-1], 0.0)
    along = vectors[:, firm].T @ gradient
    return float((along**2 / values[firm]).sum() / 2), curved


def hessian(evaluate: Callable[[Array], P], x: Array, at: P, inside: Mask) -> Array:
    """Return the Hessian of the deviance over `inside`, by differences of the gradient.

    Args:
        evaluate: the model's, at any x.
        x: where it is wanted.
        at: what the model says of itself there.
        inside: of x: what is differentiated by.
    """
    rows = []
    for i in np.flatnonzero(inside):
        step = 1e-5 * max(1.0, abs(x[i]))
        moved = x.copy()
        moved[i] += step
        rows.append((evaluate(moved).gradient - at.gradient)[inside] / step)
    found = np.array(rows).reshape(len(rows), len(rows))
    return (found + found.T) / 2

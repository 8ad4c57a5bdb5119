"""Minimises the profiled deviance of `analysis.lmm` over theta, then checks that it did.

L-BFGS-B with the analytic gradient goes most of the way, a Newton step or two the rest. Two checks
follow, each of which can fail: the Newton decrement g' H^-1 g / 2, which is how much deviance is
left to gain, and for every factor the smallest eigenvalue of D_f, which is negative at a false
boundary (a variance that was set to zero though raising it would lower the deviance). From a false
boundary the search starts again along the offending eigenvector.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from analysis.linalg import Array, Mask
from analysis.lmm import Evaluation, Problem, evaluate

FLAT_DEVIANCE = 1e-5  # deviance left to gain that counts as none
FALSE_BOUNDARY = 1e-2  # deviance per unit of relative variance
SINGULAR_SCALE = 1e-4  # smallest singular value of Lambda_f, lme4's own tolerance
RESTARTS = 4
LEAPS = 10.0 ** np.arange(-1, -7, -1)  # relative variance, tried until the deviance is lower
NEWTON_STEPS = 5


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where the search ended and what the checks said."""

    theta: Array
    at: Evaluation
    evaluations: int
    decrement: float  # deviance left to gain, by the local quadratic
    curved: bool  # the Hessian has no negative eigenvalue
    false_boundary: tuple[str, ...]  # groups whose variance should not be zero but is
    singular: tuple[str, ...]  # groups whose covariance has lost rank

    @property
    def converged(self) -> bool:
        """Whether every check passed."""
        return self.decrement < FLAT_DEVIANCE and self.curved and not self.false_boundary


def minimise(problem: Problem, start: Array | None = None) -> Minimum:
    """Return the minimum of the deviance; without random effects theta is empty."""
    theta = problem.pack([np.eye(len(s)) for s in problem.scales]) if start is None else start
    counter = _Counter(problem)
    if not len(theta):
        return Minimum(theta, evaluate(problem, theta), 1, 0.0, True, (), ())
    theta, at, decrement, curved = _search(counter, theta)
    gain = np.inf
    for _ in range(RESTARTS):
        again = _leave_boundary(counter, theta, at)
        if again is None:
            gain = 0.0
            break
        # The first step of L-BFGS-B may lead straight back to the boundary; Newton's does not.
        near = _polish(counter, again, counter.evaluate(again))
        found = min(_search(counter, again), near, key=lambda end: end[1].deviance)
        gain = at.deviance - found[1].deviance
        if gain < FLAT_DEVIANCE:
            break
        theta, at, decrement, curved = found
    names = [f.group for f in problem.factors]
    low = [_lowest(d, f.free_PP)[0] for d, f in zip(at.slopes, problem.factors, strict=True)]
    # A slope that leads to nothing worth having is no false boundary.
    worth = gain >= FLAT_DEVIANCE
    false = [g for g, d in zip(names, low, strict=True) if worth and d < -FALSE_BOUNDARY]
    small = [np.linalg.svd(m, compute_uv=False)[-1] for m in problem.unpack(theta)]
    return Minimum(
        theta=theta,
        at=at,
        evaluations=counter.calls,
        decrement=decrement,
        curved=curved,
        false_boundary=tuple(false),
        singular=tuple(g for g, s in zip(names, small, strict=True) if s < SINGULAR_SCALE),
    )


class _Counter:
    """The problem as the optimiser calls it."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0
        self._last: tuple[Array, Evaluation] | None = None

    def __call__(self, theta: Array) -> tuple[float, Array]:
        at = self.evaluate(theta)
        return at.deviance, at.gradient

    def evaluate(self, theta: Array) -> Evaluation:
        if self._last is None or not np.array_equal(theta, self._last[0]):
            self.calls += 1
            self._last = (theta.copy(), evaluate(self.problem, theta))
        return self._last[1]


def _lowest_theta(problem: Problem) -> Array:
    """Return the lower bound of every theta: a diagonal entry is not negative."""
    diagonal = [rows == columns for rows, columns in problem.free]
    return np.where(np.concatenate(diagonal), 0.0, -np.inf)


def _search(counter: _Counter, theta: Array) -> tuple[Array, Evaluation, float, bool]:
    """Return theta, the evaluation there, the deviance left to gain and whether it is curved."""
    # No upper bounds: with both, L-BFGS-B starts by a full gradient step, which is far too long.
    bounds = [(low, None) for low in _lowest_theta(counter.problem)]
    found = minimize(
        counter,
        theta,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-10, "gtol": 1e-3, "maxiter": 1000, "maxls": 40},
    )
    return _polish(counter, found.x, counter.evaluate(found.x))


def _lowest(slope: Array, free_PP: Mask) -> tuple[float, Array]:
    """Return the smallest eigenvalue of D_f, and its vector, within the pattern of Lambda_f."""
    values, vectors = np.linalg.eigh(slope * (free_PP | free_PP.T))
    return float(values[0]), vectors[:, 0]


def _leave_boundary(counter: _Counter, theta: Array, at: Evaluation) -> Array | None:
    """Return a better theta away from a false boundary, or None at a true minimum."""
    slopes = zip(at.slopes, counter.problem.factors, strict=True)
    lowest = [_lowest(slope, factor.free_PP) for slope, factor in slopes]
    if all(value >= -FALSE_BOUNDARY for value, _ in lowest):
        return None
    for share in LEAPS:  # the minimum may be so near that a long leap lands beyond it
        away = _leap(counter.problem, theta, lowest, share)
        if counter.evaluate(away).deviance < at.deviance:
            return away
    return None


def _leap(problem: Problem, theta: Array, lowest: list[tuple[float, Array]], share: float) -> Array:
    """Return theta with every wrongly missing direction given this share of variance."""
    lambdas = problem.unpack(theta)
    for i, (value, vector) in enumerate(lowest):
        if value < -FALSE_BOUNDARY:
            size = max(1.0, float(np.trace(lambdas[i] @ lambdas[i].T)))
            longer = np.column_stack([lambdas[i], np.sqrt(share * size) * vector])
            _, triangle = np.linalg.qr(longer.T)
            lambdas[i] = (triangle * np.sign(np.diagonal(triangle) + 1e-300)[:, None]).T
    return problem.pack(lambdas)


def _polish(
    counter: _Counter, theta: Array, at: Evaluation
) -> tuple[Array, Evaluation, float, bool]:
    """Return theta after Newton steps on what is not at a bound, and the two local checks."""
    low = _lowest_theta(counter.problem)
    for _ in range(NEWTON_STEPS):
        inside = (theta > low) | (at.gradient < 0)
        values, vectors = np.linalg.eigh(_hessian(counter, theta, at, inside))
        curved = bool(values.min(initial=0.0) > -1e-4 * np.abs(values).max(initial=1e-300))
        firm = values > 1e-8 * values.max(initial=0.0)
        along = vectors.T @ at.gradient[inside]
        decrement = float((along[firm] ** 2 / values[firm]).sum() / 2)
        if decrement < FLAT_DEVIANCE * 1e-5 or not curved:
            break
        step = np.zeros_like(theta)
        step[inside] = -vectors[:, firm] @ (along[firm] / values[firm])
        after = np.maximum(theta + step, low)
        there = counter.evaluate(after)
        if there.deviance >= at.deviance:
            break
        theta, at = after, there
    return theta, at, decrement, curved


def _hessian(counter: _Counter, theta: Array, at: Evaluation, inside: Mask) -> Array:
    """Return the Hessian of the deviance over `inside`, by differences of the gradient."""
    rows = []
    for i in np.flatnonzero(inside):
        step = 1e-5 * max(1.0, abs(theta[i]))
        moved = theta.copy()
        moved[i] += step
        rows.append((counter.evaluate(moved).gradient - at.gradient)[inside] / step)
    hessian = np.array(rows).reshape(len(rows), len(rows))
    return (hessian + hessian.T) / 2

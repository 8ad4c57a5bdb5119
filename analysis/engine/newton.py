"""Minimises a smooth function over lower bounds, given its gradient and a guess at its curvature.

Newton steps within the bounds (Bertsekas 1982, SIAM J. Control Optim. 20(2), in spirit: what
rests on a bound and would leave it downwards is held), shortened until the function falls. Where
no fresh curvature is to be had, the last one is updated (BFGS, damped as Powell 1978 does).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.engine.linalg import Array
from analysis.engine.summary import brief

GAIN = 1e-3  # of the function left to gain, by the quadratic, at which the search ends
STEPS = 100
FRESH = 6  # steps that a guess at the curvature is good for; then it is updated
LONGEST = 10.0  # step, in units of 1 + |x|
TINY = 1e-12  # the least curvature: what has none moves by its gradient alone
FLAT = 1e-9  # the same, as a share of the largest
HALVINGS = 30
EPS = float(np.finfo(np.float64).eps)
ARMIJO = 1e-4
FIRM = 1e-8  # the least eigenvalue of the curvature when its diagonal is one

Function = Callable[[Array], tuple[float, Array]]
Curvature = Callable[[Array], Array | None]


@brief
@dataclass(frozen=True, slots=True)
class Found:
    """Where the search ended."""

    x: Array
    value: float
    gradient: Array
    curvature: Array  # the last guess


def minimize(
    function: Function,
    start: Array,
    *,
    lower: Array,
    curvature: Curvature | Array,
    gain: float = GAIN,
    steps: int = STEPS,
) -> Found:
    """Return a point where no more than `gain` is left to be had, by the last curvature.

    Args:
        function: value and gradient; a value that is not finite is no place to go.
        start: where the search begins; what lies below its bound is raised to it.
        lower: bounds, -inf where there is none.
        curvature: a guess at the Hessian, for any point or for the first alone; a function
            may answer None for a point that it does not know.
        gain: when to end.
        steps: when to end in any case.
    """
    x = np.maximum(start, lower)
    value, gradient = function(x)
    fresh = curvature(x) if callable(curvature) else curvature
    matrix = np.eye(len(x)) if fresh is None else fresh
    for count in range(steps):
        step = bounded_step(matrix, gradient, lower - x)
        step /= max(1.0, float((np.abs(step) / (1 + np.abs(x))).max()) / LONGEST)
        if -(gradient @ step) / 2 < gain:
            break
        taken = _shortened(function, x, (value, gradient), step, lower)
        if taken is None:
            break
        after, new_value, new_gradient = taken
        again = curvature(after) if callable(curvature) and count < FRESH else None
        change = new_gradient - gradient
        matrix = updated(matrix, after - x, change) if again is None else again
        fall, x, value, gradient = value - new_value, after, new_value, new_gradient
        if fall < max(gain / 10, 4 * EPS * abs(value)):
            break
    return Found(x, value, gradient, matrix)


def bounded_step(matrix: Array, gradient: Array, room: Array) -> Array:
    """Return the step to the quadratic's minimum, with step >= room (which is not positive)."""
    held = (room >= 0) & (gradient > 0)
    step = np.zeros_like(gradient)
    for _ in range(len(gradient) + 1):
        free = ~held
        pull = gradient[free] + matrix[np.ix_(free, held)] @ step[held]
        step[free] = -_solved(matrix[np.ix_(free, free)], pull)
        beyond = free & (step < room)
        if not beyond.any():
            break
        step[beyond] = room[beyond]
        held |= beyond
    return step


def updated(matrix: Array, step: Array, change: Array) -> Array:
    """Return the BFGS update of a curvature, positive definite still."""
    along = matrix @ step
    own, seen = float(step @ along), float(step @ change)
    if own <= 0:
        return matrix
    share = 1.0 if seen >= 0.2 * own else 0.8 * own / (own - seen)
    mixed = share * change + (1 - share) * along
    return matrix - np.outer(along, along) / own + np.outer(mixed, mixed) / (step @ mixed)


def _solved(matrix: Array, right: Array) -> Array:
    """Return matrix^-1 right, every eigenvalue made positive and none too small."""
    if not len(right):
        return right
    diagonal = np.abs(np.diagonal(matrix))
    size = np.sqrt(np.maximum(diagonal, max(FLAT * diagonal.max(), TINY)))
    values, vectors = np.linalg.eigh(matrix / np.outer(size, size))
    values = np.maximum(np.abs(values), FIRM)
    return (vectors @ ((vectors.T @ (right / size)) / values)) / size


def _shortened(
    function: Function, x: Array, here: tuple[float, Array], step: Array, lower: Array
) -> tuple[Array, float, Array] | None:
    """Return the first point along the step where the function falls enough, or None."""
    value, gradient = here
    share = 1.0
    for _ in range(HALVINGS):
        after = np.maximum(x + share * step, lower)
        new_value, new_gradient = function(after)
        slope = float(gradient @ (after - x))
        if np.isfinite(new_value) and new_value <= value + ARMIJO * slope:
            return after, new_value, new_gradient
        if -slope < EPS * abs(value):
            return None
        share *= _shrink(new_value - value, slope)
    return None


def _shrink(rise: float, slope: float) -> float:
    """Return the minimum of the parabola through both ends, between a tenth and a half."""
    if not np.isfinite(rise):
        return 0.25
    return float(np.clip(-slope / (2 * (rise - slope)), 0.1, 0.5)) if rise > slope else 0.5

"""Group-sequential looks at a study: boundaries that spend alpha as the data come in.

Lan and DeMets (1983, Biometrika 70(3)): a function says how much of alpha may be spent by the time
that a share t of the information is there. Two of them, each side
spending half of alpha:

    obrien_fleming   2 (1 - Phi(z_{1 - a / 2} / sqrt(t))), a = alpha / 2: next to nothing early on
    pocock           a log(1 + (e - 1) t): about the same at every look

The boundary of a look is where the statistic's chance of leaving there for the first time is what
the function gives that look. The chance comes from the recursion of Armitage, McPherson and Rowe
(1969, J. R. Stat. Soc. A 132(2)): with S_k = Z_k sqrt(t_k), increments are independent and normal,
and the density of S_k among the studies that go on is a convolution over those before.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, listed

POINTS = 801  # of the grid on which a density is kept
FAR = 12.0  # a boundary that is never crossed
LEAST_ALPHA, MOST_ALPHA = 1e-6, 0.9  # of the table of `repeated_p`
Spending = Callable[[Array, float], Array]


def obrien_fleming(share: Array, alpha: float) -> Array:
    """Return the error spent by a share of the information, O'Brien and Fleming's way.

    Args:
        share: of the information, in (0, 1], (K,).
        alpha: two-sided error over all looks.
    """
    return np.asarray(4 * norm.sf(norm.isf(alpha / 4) / np.sqrt(share)))


def pocock(share: Array, alpha: float) -> Array:
    """Return the error spent by a share of the information, Pocock's way.

    Args:
        share: of the information, in (0, 1], (K,).
        alpha: two-sided error over all looks.
    """
    return np.asarray(alpha * np.log1p((np.e - 1) * share))


SPENDING: Mapping[str, Spending] = {"obrien_fleming": obrien_fleming, "pocock": pocock}


def boundaries(
    shares: Sequence[float], *, alpha: float = 0.05, spending: str = "obrien_fleming"
) -> Array:
    """Return the |z| beyond which each look ends the study, (K,).

    Args:
        shares: of the whole information at each look (of the seeds, say), rising, at most 1.
        alpha: two-sided error over all looks.
        spending: "obrien_fleming" or "pocock".

    Raises:
        AnalysisError: shares that do not rise within (0, 1], or another name.
    """
    if spending not in SPENDING:
        raise AnalysisError(f"spending={spending}: not one of {listed(SPENDING)}")
    t_K = np.asarray(shares, dtype=np.float64)
    if not len(t_K) or t_K[0] <= 0 or t_K[-1] > 1 or (np.diff(t_K) <= 0).any():
        raise AnalysisError(f"looks={list(shares)}: shares of the information rise from 0 to 1")
    if not 0 < alpha < 1:
        raise AnalysisError(f"alpha={alpha}: must lie between 0 and 1")
    spent_K = np.diff(SPENDING[spending](t_K, alpha), prepend=0.0)
    found: list[float] = []
    state = None
    for k, now in enumerate(spent_K):
        step = t_K[k] - (t_K[k - 1] if k else 0.0)
        bound = _bound(state, step, float(now)) / np.sqrt(t_K[k])
        found.append(min(float(bound), FAR))
        state = _after(state, step, found[-1] * np.sqrt(t_K[k]))
    return np.array(found)


def repeated_interval(
    estimate: float, se: float, shares: Sequence[float], *, alpha: float, spending: str
) -> tuple[float, float]:
    """Return the interval of the last of these looks that holds at all of them together.

    Jennison and Turnbull 1989, J. R. Stat. Soc. B 51(3): the estimate, plus or minus the look's
    boundary times its standard error.

    Args:
        estimate: at the last look.
        se: its standard error.
        shares: of the information at the looks so far, as for `boundaries`.
        alpha: two-sided error over all looks.
        spending: "obrien_fleming" or "pocock".
    """
    half = float(boundaries(shares, alpha=alpha, spending=spending)[-1]) * se
    return estimate - half, estimate + half


def repeated_p(
    p: Sequence[float], shares: Sequence[float], *, spending: str = "obrien_fleming"
) -> list[float]:
    """Return p-values of the last of these looks that hold at all of them together.

    Each is the least alpha at which the look's boundary is reached (Jennison and Turnbull 2000,
    section 9.8), found on a table over alpha; what lies below the table is its lower end.

    Args:
        p: two-sided, of the look by itself.
        shares: of the whole information, up to this look.
        spending: "obrien_fleming" or "pocock".
    """
    alphas = np.geomspace(LEAST_ALPHA, MOST_ALPHA, 41)
    bounds = [boundaries(shares, alpha=float(a), spending=spending)[-1] for a in alphas]
    nominal = np.log(2 * norm.sf(bounds))
    logs = np.log(np.clip(np.asarray(p, dtype=np.float64), 1e-300, 1.0))
    found = np.exp(np.interp(logs, nominal, np.log(alphas), right=0.0))
    return [float(x) for x in found]


_State = tuple[Array, Array]  # points of S and the density of going on there, times their width


def _leaving(state: _State | None, step: float, bound: float) -> float:
    """Return the chance that |S| exceeds `bound` after an increment of variance `step`."""
    sd = np.sqrt(step)
    if state is None:
        return float(2 * norm.sf(bound / sd))
    s, mass = state
    return float(mass @ (norm.sf((bound - s) / sd) + norm.cdf((-bound - s) / sd)))


def _bound(state: _State | None, step: float, spent: float) -> float:
    if _leaving(state, step, FAR) >= spent:
        return FAR
    return float(brentq(lambda b: _leaving(state, step, b) - spent, 0.0, FAR, xtol=1e-10))


def _after(state: _State | None, step: float, bound: float) -> _State:
    """Return where the studies are that go on, by Simpson's rule."""
    s = np.linspace(-bound, bound, POINTS)
    width = np.full(POINTS, 2.0)
    width[1::2] = 4.0
    width[[0, -1]] = 1.0
    width *= (s[1] - s[0]) / 3
    sd = np.sqrt(step)
    if state is None:
        return s, norm.pdf(s / sd) / sd * width
    before, mass = state
    density = norm.pdf((s[:, None] - before) / sd) @ mass / sd
    return s, density * width

"""Profile-likelihood intervals for fixed effects and standard deviations, by ML.

Reference: Bates, Maechler, Bolker and Walker 2015, section 5.1. With D(v) the deviance minimised
over everything but one quantity v, the interval holds all v with D(v) - D(v_hat) <= z^2. Its
ends are found one by one, on the signed root zeta(v) = +- sqrt(D(v) - D(v_hat)), which is nearly
straight.

A fixed effect is profiled with its column moved into the response, y - v x. For a standard
deviation its column comes first in its factor: the first row of Lambda has one entry, which
v and sigma then determine, and the rest is minimised over (theta, log sigma),

    D(theta, sigma) = log|V| + n log(2 pi sigma^2) + r^2 / sigma^2.

Letters in names: N rows, B fixed effects, P columns of a factor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.engine.dispersion import Dispersed
from analysis.engine.linalg import Array, Index, triangular
from analysis.engine.lmm import Factor, Problem
from analysis.engine.lmm_fit import LEAPS, NEAR
from analysis.engine.response import with_response
from analysis.errors import AnalysisError
from analysis.inference.bootstrap import RESIDUAL, inwards, quick_minimum, sd_name
from analysis.inference.marginal import gaussian_only
from analysis.mixed import MixedFit, refit

PRECISION = 1e-4  # of zeta: an end is known to this share of a standard error
STEPS = 30  # doublings on the way out, after which there is no end
FALL = 1e-9  # deviance that is a fall and no rounding error
FAR = 60.0  # |log sigma| and |theta| beyond which no search goes

Zeta = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Profiled:
    """A profile-likelihood interval; an end that the data do not give is infinite."""

    name: str
    estimate: float  # by ML
    low: float
    high: float


def profile(
    fit: MixedFit, *, names: tuple[str, ...] | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Return one row per quantity: name, estimate (by ML), low, high.

    Args:
        fit: any; it is refitted by ML.
        names: fixed effects as in `fixef`, standard deviations as "sd group name" and
            "sd residual", or "sd residual level"; all of them unless given.
        level: of the intervals.

    Raises:
        AnalysisError: an unknown name, or a fit that is not Gaussian.
    """
    gaussian_only(fit, "profile", "use coefficients (Wald) or bootstrap")
    fit = refit(fit, "ML")
    deviations = {sd_name(f.group, n): (f.group, n) for f in fit.problem.factors for n in f.names}
    deviations |= {sd_name(RESIDUAL, n): (RESIDUAL, n) for n in fit.residual_sd.index}
    known = [*(str(n) for n in fit.fixef.index), *deviations]
    if names is not None and (unknown := [n for n in names if n not in known]):
        raise AnalysisError(f"profile: no {unknown[0]!r}; there are {', '.join(known)}")
    z = float(stats.norm.ppf((1 + level) / 2))
    found = [
        _deviation(fit, n, deviations[n], z) if n in deviations else _coefficient(fit, n, z)
        for n in (known if names is None else names)
    ]
    return pd.DataFrame([{s: getattr(p, s) for s in Profiled.__slots__} for p in found])


def _coefficient(fit: MixedFit, name: str, z: float) -> Profiled:
    """Return the interval of a fixed effect."""
    j = [str(n) for n in fit.fixef.index].index(name)
    kept = fit.problem.fixed.kept
    x_N, y_N = fit.design.X_NB[:, kept[j]], fit.design.response_N
    rest = _model(fit, np.delete(kept, j), fit.problem.factors)
    at_x = fit.minimum.x

    def deviance(value: float) -> float:
        nonlocal at_x
        moved = with_response(rest, y_N - value * x_N, fit.design.root_N)
        at_x, at = quick_minimum(moved, at_x)
        return float(at.deviance)

    best, se = float(fit.fixef.iloc[j]), float(fit.se.iloc[j])
    zeta = _signed_root(deviance, best, fit.minimum.at.deviance)
    ends = [_end(zeta, best, sign * se, sign * z) for sign in (-1, 1)]
    return Profiled(name, best, *ends)


def _model(fit: MixedFit, columns: Index, factors: Sequence[Factor]) -> Any:
    """Return the fit's model by ML with some of X's columns and these factors.

    It is a `Problem`, or `Dispersed` where the fit's residual variance differs between rows.
    """
    problem = Problem(
        fit.design.X_NB[:, columns],
        fit.design.response_N,
        factors=factors,
        weights_N=fit.design.weights_N,
        reml=False,
    )
    return problem if fit.dispersed is None else Dispersed(problem, fit.dispersed.basis_NK)


def _deviation(fit: MixedFit, name: str, which: tuple[str, str], z: float) -> Profiled:
    """Return the interval of a standard deviation; its lower end may be zero."""
    residual = which[0] == RESIDUAL and which[1] in fit.residual_sd
    if residual:
        best, held = float(fit.residual_sd[which[1]]), _held_residual(fit, which[1])
    else:
        best = float(fit.random[which[0]].sd[which[1]])
        held = _held_first(fit, *which)
    zeta = _signed_root(held.deviance, best, fit.minimum.at.deviance)
    step = max(best, 0.1 * fit.sigma / held.scale) / 4
    high = _end(zeta, best, step, z)
    held.restart()
    at_zero = zeta(0.0) if not residual and best > 0 else -np.inf
    if best == 0 or (not residual and at_zero > -z):
        return Profiled(name, best, 0.0, high)
    held.restart()
    return Profiled(name, best, _end(zeta, best, -min(step, best / 2), -z, floor=0.0), high)


def _held_first(fit: MixedFit, group: str, name: str) -> "_Held":
    """Return the model with one column first in its factor, started at the fit's estimates."""
    i = next(i for i, f in enumerate(fit.problem.factors) if f.group == group)
    factor = fit.problem.factors[i]
    p = factor.names.index(name)
    order = np.array([p, *np.delete(np.arange(len(factor.names)), p)])
    turned = _reordered(factor, order)
    factors = [*fit.problem.factors[:i], turned, *fit.problem.factors[i + 1 :]]
    model = _model(fit, fit.problem.fixed.kept, factors)
    lambdas = fit.problem.unpack(fit.minimum.theta)
    lambdas[i] = triangular(lambdas[i][order])
    sizes = [int(f.free_PP.sum()) for f in model.factors]
    x = np.concatenate([model.pack(lambdas), fit.minimum.x[model.size :]])
    return _Held(model, x, fit.sigma, first=sum(sizes[:i]), factor=i)


def _held_residual(fit: MixedFit, level: str) -> "_Held":
    """Return the model with sigma the residual's standard deviation in this level."""
    model, x = _model(fit, fit.problem.fixed.kept, fit.problem.factors), fit.minimum.x
    if isinstance(model, Dispersed) and level in fit.residual_rows:
        basis_NK = model.basis_NK - model.basis_NK[fit.residual_rows[level]]
        model = Dispersed(model.problem, basis_NK)
        theta = x[: model.size] * (fit.sigma / float(fit.residual_sd[level]))
        x = np.concatenate([theta, x[model.size :]])
    return _Held(model, x, float(fit.residual_sd[level]), first=None)


def _reordered(factor: Factor, order: Array) -> Factor:
    """Return the factor with its columns in another order; what varies together still does."""
    together_PP = (factor.free_PP | factor.free_PP.T)[np.ix_(order, order)]
    return replace(
        factor,
        names=tuple(factor.names[k] for k in order),
        columns_NP=factor.columns_NP[:, order],
        free_PP=np.tril(together_PP),
    )


class _Held:
    """The deviance with one standard deviation held, minimised over (theta, log sigma)."""

    def __init__(
        self,
        problem: Any,
        x: Array,
        sigma: float,
        *,
        first: int | None,
        factor: int = 0,
    ) -> None:
        self.problem, self.first = problem, first
        self.scale = 1.0 if first is None else float(problem.scales[factor][0])
        self.begin = np.append(x, np.log(sigma))
        self.x = self.begin
        self.free = np.ones(len(self.x), dtype=bool)
        self.free[-1 if first is None else first] = False

    def restart(self) -> None:
        """Begin the next search at the fit's own estimates."""
        self.x = self.begin

    def deviance(self, sd: float) -> float:
        """Return the deviance minimised over all that is free; the next search begins there."""
        low = np.append(self.problem.lower, -FAR)[self.free]
        best = self._search(inwards(low, self.x[self.free]), low, sd)
        for k in np.flatnonzero((low == 0) & (best.x < NEAR)).tolist():
            best = self._off_bound(best, k, low, sd)
        self.x = self._whole(best.x, sd)
        return float(best.fun)

    def _search(self, start: Array, low: Array, sd: float) -> optimize.OptimizeResult:
        return optimize.minimize(
            self._at,
            np.maximum(start, low),
            args=(sd,),
            jac=True,
            bounds=[(a, np.inf) for a in low],
            method="L-BFGS-B",
            options={"ftol": 1e-13, "gtol": 1e-7, "maxiter": 500},
        )

    def _off_bound(
        self, best: optimize.OptimizeResult, k: int, low: Array, sd: float
    ) -> optimize.OptimizeResult:
        """Return a lower minimum with a standard deviation above zero, where there is one.

        A long step may end at zero, where the gradient vanishes and the search with it.
        """
        for share in LEAPS:
            away = best.x.copy()
            away[k] = np.sqrt(share)
            if self._at(away, sd)[0] < best.fun - FALL:
                return self._search(away, low, sd)
        return best

    def _whole(self, free: Array, sd: float) -> Array:
        x = np.empty(len(self.free))
        x[self.free] = free
        if self.first is None:
            x[-1] = np.log(sd)
        else:
            x[self.first] = sd * self.scale * np.exp(-x[-1])
        return x

    def _at(self, free: Array, sd: float) -> tuple[float, Array]:
        """Return D(theta, sigma) and its gradient by what is free."""
        x, problem = self._whole(free, sd), self.problem
        if np.abs(x[-1]) > FAR:
            return np.inf, np.zeros_like(free)
        try:
            at = problem.evaluate(x[:-1])
        except np.linalg.LinAlgError:
            return np.inf, np.zeros_like(free)
        df, variance = problem.df, float(np.exp(2 * x[-1]))
        by_ratio = df * (np.log(variance * df / at.r2) - 1) + at.r2 / variance
        by_x = problem.slope(x[:-1], at, variance)
        by_log = 2 * df - 2 * at.r2 / variance
        if self.first is not None:
            by_log -= by_x[self.first] * x[self.first]
        return at.deviance + by_ratio, np.append(by_x, by_log)[self.free]


def _signed_root(deviance: Callable[[float], float], best: float, least: float) -> Zeta:
    def zeta(value: float) -> float:
        rise = deviance(value) - least
        return float(np.sign(value - best) * np.sqrt(max(rise, 0.0)))

    return zeta


def _end(zeta: Zeta, best: float, step: float, target: float, floor: float = -np.inf) -> float:
    """Return where zeta reaches its target, going from `best` by steps.

    Infinite if nowhere. Where the deviance has several minima and zeta jumps over its target, the
    end is the place of the jump.
    """
    gap = cache(lambda value: zeta(value) - target)  # a search begun elsewhere may end elsewhere
    inner, outer = best, best + 1.5 * step
    for _ in range(STEPS):
        if outer <= floor:
            outer = floor + (inner - floor) / 4
        if gap(outer) * np.sign(target) >= 0:
            break
        inner, outer = outer, outer + (outer - best)
    else:
        return float(np.sign(target) * np.inf)
    size = abs(outer - best)
    return float(optimize.brentq(gap, inner, outer, xtol=PRECISION * size, rtol=1e-10))

"""Parametric bootstrap of a linear mixed model: percentile intervals and likelihood-ratio tests.

Responses are drawn from the fitted model, random effects and residuals anew,

    y* = X beta + Z Lambda u* + e*,     u* ~ N(0, sigma^2 I),   e* ~ N(0, sigma^2 W^-1),

and the model is fitted to each. What does not depend on y is shared by all refits. A search
begins at the original fit and ends at a deviance within `GAIN` of the quadratic's minimum, 0.1 %
of a standard error; where that looks like a false boundary the full search takes over.

Intervals are percentiles (Davison and Hinkley 1997, section 5.3.1), the test counts
(1 + #{T* >= T}) / (1 + draws) (ibid., equation 4.11).

Letters in names: N rows, D draws, S quantities.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.engine.lmm import Evaluation, Problem, solution
from analysis.engine.lmm_fit import FALSE_BOUNDARY, NEAR, minimise
from analysis.engine.newton import minimize
from analysis.errors import AnalysisError
from analysis.inference.estimates import same_family
from analysis.inference.marginal import relative_factors, root_weights
from analysis.inference.response import with_response
from analysis.mixed import MixedFit, refit

DRAWS = 1000
GAIN = 1e-6  # deviance
FEWEST = 20  # draws; fewer have no tail to speak of
RESIDUAL = ("residual", "")


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Refits to simulated responses: a column for every fixed effect and standard deviation."""

    draws: pd.DataFrame  # (D, S); standard deviations are named "sd group name"
    estimate: pd.Series  # of the original fit
    failed: int  # refits without a result; they are not among the draws

    def interval(self, name: str, *, level: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval of one quantity."""
        if name not in self.draws:
            raise AnalysisError(
                f"bootstrap: no {name!r}; there are {', '.join(map(str, self.draws))}"
            )
        low, high = np.quantile(self.draws[name], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def table(self, *, level: float = 0.95) -> pd.DataFrame:
        """Return one row per quantity: name, estimate, se (the draws' spread), low, high."""
        rows = []
        for name in map(str, self.draws):
            low, high = self.interval(name, level=level)
            se = float(self.draws[name].std())
            rows.append({"name": name, "estimate": self.estimate[name], "se": se,
                         "low": low, "high": high})  # fmt: skip
        return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class BootstrapTest:
    """A likelihood ratio referred to its distribution under the smaller model, simulated."""

    statistic: float
    p: float
    null_D: Array
    failed: int


def bootstrap(
    fit: MixedFit,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    extra: Callable[[pd.Series], float] | None = None,
) -> Bootstrap:
    """Return the fit's quantities refitted on `draws` simulated responses.

    Args:
        fit: by REML or ML; the refits use the same criterion.
        draws: at least 20; percentiles of 95 % intervals want 1,000.
        seed: the same seed gives the same draws.
        extra: a number computed from the fixed effects (an optimum, say), in column "extra".
    """
    rng, rows, failed = _generator(draws, seed), [], 0
    for y_N in simulated(fit, draws, rng):
        try:
            rows.append(_quantities(fit, *_refitted(fit, y_N), extra))
        except np.linalg.LinAlgError:
            failed += 1
    _enough(rows, draws)
    own = _quantities(fit, fit.problem, fit.minimum.theta, fit.minimum.at, extra)
    return Bootstrap(pd.DataFrame(rows), pd.Series(own), failed)


def bootstrap_ratio(
    small: MixedFit, large: MixedFit, *, draws: int = DRAWS, seed: int = 0
) -> BootstrapTest:
    """Return the likelihood-ratio test of `small` within `large` by simulation from `small`.

    Both are refitted by ML. It needs no chi-square: small tables and zero variances are no harm.

    Raises:
        AnalysisError: the models are of different rows.
    """
    same_family(small, large, "bootstrap")
    if not small.design.rows.equals(large.design.rows):
        raise AnalysisError("bootstrap: the two models are of different rows")
    a, b = refit(small, "ML"), refit(large, "ML")
    if b.loglik < a.loglik - GAIN:
        raise AnalysisError("bootstrap: the larger model fits worse, so it does not hold the other")
    found, failed = [], 0
    for y_N in simulated(a, draws, _generator(draws, seed)):
        try:
            deviances = [_refitted(model, y_N)[2].deviance for model in (a, b)]
            found.append(max(deviances[0] - deviances[1], 0.0))
        except np.linalg.LinAlgError:
            failed += 1
    _enough(found, draws)
    null_D, statistic = np.array(found), max(2 * (b.loglik - a.loglik), 0.0)
    p = (1 + int((null_D >= statistic).sum())) / (1 + len(null_D))
    return BootstrapTest(statistic, p, null_D, failed)


def simulated(fit: MixedFit, draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield responses (N,) drawn from the fitted model, random effects drawn anew."""
    mean_N = fit.design.X_NB[:, fit.problem.fixed.kept] @ fit.fixef.to_numpy()
    noise_N = fit.sigma / root_weights(fit)
    parts = list(zip(fit.problem.factors, relative_factors(fit), strict=True))
    for _ in range(draws):
        y_N = mean_N + noise_N * rng.standard_normal(fit.n)
        for factor, lam in parts:
            b_LP = fit.sigma * rng.standard_normal((len(factor.levels), len(lam))) @ lam.T
            y_N += (factor.columns_NP * b_LP[factor.index_N]).sum(axis=1)
        yield y_N


def _generator(draws: int, seed: int) -> np.random.Generator:
    if draws < FEWEST:
        raise AnalysisError(f"draws={draws}: must be at least {FEWEST}")
    return np.random.default_rng(seed)


def _enough(found: Sequence[object], draws: int) -> None:
    if len(found) < draws / 2:
        raise AnalysisError(
            f"bootstrap: {draws - len(found)} of {draws} refits failed; simplify the random part"
        )


def _refitted(fit: MixedFit, y_N: Array) -> tuple[Problem, Array, Evaluation]:
    """Return the problem with this response and its minimum."""
    problem = with_response(fit.problem, y_N, root_weights(fit))
    return problem, *quick_minimum(problem, fit.minimum.theta)


def quick_minimum(problem: Problem, start: Array) -> tuple[Array, Evaluation]:
    """Return theta and the evaluation at a minimum near `start`, without the final checks."""
    if not len(start):
        return start, problem.evaluate(start)
    seen: dict[bytes, Evaluation] = {}

    def value(theta: Array) -> tuple[float, Array]:
        try:
            at = problem.evaluate(theta)
        except np.linalg.LinAlgError:
            return np.inf, np.full_like(theta, np.nan)
        seen[theta.tobytes()] = at
        return at.deviance, at.gradient

    def bend(theta: Array) -> Array:
        return problem.curvature(theta, seen[theta.tobytes()])

    # On a boundary the gradient vanishes, and a start there would never leave it.
    start = np.where((problem.lower == 0) & (start < NEAR), NEAR, start)
    theta = minimize(value, start, lower=problem.lower, curvature=bend, gain=GAIN).x
    at = seen.get(theta.tobytes()) or problem.evaluate(theta)
    if _suspicious(problem, theta, at):
        full = minimise(problem, theta)
        return full.theta, full.at
    return theta, at


def _suspicious(problem: Problem, theta: Array, at: Evaluation) -> bool:
    """Return whether a variance near zero would rather not be."""
    for slope, template, factor in zip(
        at.slopes, problem.unpack(theta), problem.factors, strict=True
    ):
        near = np.linalg.svd(template, compute_uv=False)[-1] < NEAR
        within = slope * (factor.free_PP | factor.free_PP.T)
        if near and np.linalg.eigvalsh(within)[0] < -FALSE_BOUNDARY:
            return True
    return False


def _quantities(
    fit: MixedFit,
    problem: Problem,
    theta: Array,
    at: Evaluation,
    extra: Callable[[pd.Series], float] | None,
) -> dict[str, float]:
    solved = solution(problem, theta, at)
    sigma = float(np.sqrt(at.r2 / problem.df))
    found = {str(n): float(b) for n, b in zip(fit.fixef.index, solved.beta_B, strict=True)}
    if extra is not None:
        found["extra"] = float(extra(pd.Series(solved.beta_B, index=fit.fixef.index)))
    for factor, lam in zip(problem.factors, solved.lambdas, strict=True):
        sd_P = sigma * np.sqrt((lam**2).sum(axis=1))
        names = (sd_name(factor.group, name) for name in factor.names)
        found.update(zip(names, (float(sd) for sd in sd_P), strict=True))
    found[sd_name(*RESIDUAL)] = sigma
    return found


def sd_name(group: str, name: str) -> str:
    """Return what a standard deviation is called in a table of all quantities."""
    return f"sd {group} {name}".rstrip()

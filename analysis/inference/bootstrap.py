"""Parametric bootstrap of a mixed model: percentile intervals and likelihood-ratio tests.

Responses are drawn from the fitted model, random effects and residuals anew,

    y* = X beta + Z Lambda u* + e*,     u* ~ N(0, sigma^2 I),   e* ~ N(0, sigma^2 W^-1),

and the model is fitted to each; of a generalised model y* is drawn from its family at
o + X beta + Z Lambda u*, between 0 and 1 where exact 0 and 1 are modelled apart. What does not
depend on y is shared by all refits. A search begins at the original fit and ends at a deviance
within `GAIN` of the quadratic's minimum, 0.1 % of a standard error; where that looks like a false
boundary the full search takes over.

Intervals are percentiles (Davison and Hinkley 1997, section 5.3.1), the test counts
(1 + #{T* >= T}) / (1 + draws) (ibid., equation 4.11).

Letters in names: N rows, D draws, S quantities.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.dispersion import Dispersed, DispersedEvaluation
from analysis.engine.glmm import GlmmEvaluation, GlmmProblem
from analysis.engine.layout import Factor
from analysis.engine.linalg import Array
from analysis.engine.lmm import Evaluation, Problem, solution
from analysis.engine.lmm_fit import FALSE_BOUNDARY, NEAR, Deviance, P, minimise
from analysis.engine.newton import minimize
from analysis.engine.response import with_response
from analysis.errors import AnalysisError
from analysis.inference.estimates import same_family
from analysis.inference.marginal import relative_factors, root_weights
from analysis.mixed import GlmmFit, MixedFit, refit

DRAWS = 1000
GAIN = 1e-6  # deviance
FEWEST = 20  # draws; fewer have no tail to speak of
RESIDUAL = "residual"

Model = Problem | Dispersed | GlmmProblem
At = Evaluation | DispersedEvaluation | GlmmEvaluation
Refitted = tuple[Model, Array, At]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Refits to simulated responses: a column for every fixed effect and standard deviation."""

    draws: pd.DataFrame  # (D, S); standard deviations are named "sd group name"; a beta has "phi"
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
        fit: of any family, by REML or ML; the refits use the same criterion.
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
    own = _quantities(fit, fit.problem, fit.minimum.x, fit.minimum.at, extra)
    return Bootstrap(pd.DataFrame(rows), pd.Series(own), failed)


def bootstrap_ratio(
    small: MixedFit, large: MixedFit, *, draws: int = DRAWS, seed: int = 0
) -> BootstrapTest:
    """Return the likelihood-ratio test of `small` within `large` by simulation from `small`.

    Both are fitted by ML. No chi-square approximation is used, so small tables and variances of
    zero do not bias it.

    Args:
        small: a fit of the same rows.
        large: the same with more parameters.
        draws: simulated responses; the smallest possible p is 1 / (1 + draws).
        seed: the same seed gives the same draws.

    Raises:
        AnalysisError: the models are of different rows or families, or not nested.
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
    """Yield responses (N,) drawn from the fitted model, random effects drawn anew.

    Of a linear model they are without its offset.
    """
    if isinstance(fit, GlmmFit):
        yield from _general(fit, draws, rng)
        return
    mean_N = fit.design.X_NB[:, fit.problem.fixed.kept] @ fit.fixef.to_numpy()
    noise_N = fit.sigma / root_weights(fit)
    parts = list(zip(fit.problem.factors, relative_factors(fit), strict=True))
    for _ in range(draws):
        y_N = mean_N + noise_N * rng.standard_normal(fit.n)
        for factor, lam in parts:
            y_N += _random_part(factor, fit.sigma * lam, rng)
        yield y_N


def _general(fit: GlmmFit, draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield scores (N,) drawn from a generalised model."""
    problem = fit.problem
    fixed_N = problem.X_NB @ fit.fixef.to_numpy()
    if problem.offset_N is not None:
        fixed_N += problem.offset_N
    parts = list(zip(problem.factors, relative_factors(fit), strict=True))
    for _ in range(draws):
        eta_N = fixed_N + sum(_random_part(factor, lam, rng) for factor, lam in parts)
        yield problem.family.draw(eta_N, problem.tau(fit.minimum.x), rng)


def _random_part(factor: Factor, lam: Array, rng: np.random.Generator) -> Array:
    """Return Z b of one factor, (N,), b drawn anew with covariance Lambda Lambda'."""
    b_LP = rng.standard_normal((len(factor.levels), len(lam))) @ lam.T
    return np.asarray((factor.columns_NP * b_LP[factor.index_N]).sum(axis=1))


def _generator(draws: int, seed: int) -> np.random.Generator:
    if draws < FEWEST:
        raise AnalysisError(f"draws={draws}: must be at least {FEWEST}")
    return np.random.default_rng(seed)


def _enough(found: Sequence[object], draws: int) -> None:
    if len(found) < draws / 2:
        raise AnalysisError(
            f"bootstrap: {draws - len(found)} of {draws} refits failed; simplify the random part"
        )


def _refitted(fit: MixedFit, y_N: Array) -> Refitted:
    """Return the problem with this response and its minimum."""
    if isinstance(fit, GlmmFit):
        start, found = inwards(fit.problem.lower, fit.minimum.x), fit.minimum
        bend = np.diag(np.full(len(start), np.abs(found.hessian).max(initial=1.0)))
        bend[np.ix_(found.inside, found.inside)] = found.hessian
        general = fit.problem.with_response(y_N, start, bend)
        return general, *quick_minimum(general, start)
    if fit.dispersed is not None:
        dispersed = with_response(fit.dispersed, y_N, fit.design.root_N)
        return dispersed, *quick_minimum(dispersed, fit.minimum.x)
    problem = with_response(fit.problem, y_N, fit.design.root_N)
    return problem, *quick_minimum(problem, fit.minimum.theta)


def inwards(lower: Array, x: Array) -> Array:
    """Return x off its bounds: there the gradient vanishes, and no search would ever leave."""
    return np.where((lower == 0) & (x < NEAR), NEAR, x)


def quick_minimum(problem: Deviance[P], start: Array) -> tuple[Array, P]:
    """Return x and the evaluation at a minimum near `start`, without the final checks."""
    if not len(start):
        return start, problem.evaluate(start)
    seen: dict[bytes, P] = {}

    def value(x: Array) -> tuple[float, Array]:
        try:
            at = problem.evaluate(x)
        except np.linalg.LinAlgError:
            return np.inf, np.full_like(x, np.nan)
        seen[x.tobytes()] = at
        return at.deviance, at.gradient

    def bend(x: Array) -> Array | None:
        return problem.curvature(x, seen[x.tobytes()])

    start = inwards(problem.lower, start)
    x = minimize(value, start, lower=problem.lower, curvature=bend, gain=GAIN).x
    at = seen.get(x.tobytes()) or problem.evaluate(x)
    if _suspicious(problem, x, at):
        full = minimise(problem, x)
        return full.x, full.at
    return x, at


def _suspicious(problem: Deviance[P], x: Array, at: P) -> bool:
    """Return whether a variance near zero would rather not be."""
    lambdas = problem.unpack(x[: problem.size])
    for slope, template, factor in zip(at.slopes, lambdas, problem.factors, strict=True):
        near = np.linalg.svd(template, compute_uv=False)[-1] < NEAR
        within = slope * (factor.free_PP | factor.free_PP.T)
        if near and np.linalg.eigvalsh(within)[0] < -FALSE_BOUNDARY:
            return True
    return False


def _quantities(
    fit: MixedFit,
    problem: Model,
    x: Array,
    at: At,
    extra: Callable[[pd.Series], float] | None,
) -> dict[str, float]:
    if isinstance(at, DispersedEvaluation):
        problem, at = at.problem, at.at
    if isinstance(at, Evaluation):
        assert isinstance(problem, Problem)
        solved, sigma = solution(problem, x, at), float(np.sqrt(at.r2 / problem.df))
        residual = fit.residual_sds(x, sigma)
        beta_B, last = solved.beta_B, {sd_name(RESIDUAL, n): sd for n, sd in residual.items()}
    else:
        assert isinstance(problem, GlmmProblem)
        beta_B, sigma = problem.beta(x), 1.0
        last = {"phi": float(np.exp(problem.tau(x)))} if problem.family.dispersed else {}
    found = {str(n): float(b) for n, b in zip(fit.fixef.index, beta_B, strict=True)}
    if extra is not None:
        found["extra"] = float(extra(pd.Series(beta_B, index=fit.fixef.index)))
    triples = zip(problem.factors, problem.unpack(x), problem.scales, strict=True)
    for factor, template, scale_P in triples:
        sd_P = sigma * np.sqrt((template**2).sum(axis=1)) / scale_P
        names = (sd_name(factor.group, name) for name in factor.names)
        found.update(zip(names, (float(sd) for sd in sd_P), strict=True))
    return found | last


def sd_name(group: str, name: str) -> str:
    """Return what a standard deviation is called in a table of all quantities."""
    return f"sd {group} {name}".rstrip()

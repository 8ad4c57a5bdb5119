"""Fits a mixed model given by a formula: `fit_mixed(frame, "score ~ wp + (1 | task)")`."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from analysis.engine.bounded import FAMILIES, bounded_scores
from analysis.engine.diagnosis import diagnosis, doubts, integrable, left_out, separation
from analysis.engine.dispersion import Dispersed, dispersed_minimum
from analysis.engine.fits import GlmmFit, MixedFit, RandomEffect
from analysis.engine.formula import DesignMatrices, design, parse
from analysis.engine.glmm import GlmmEvaluation, GlmmProblem
from analysis.engine.glmm_fit import coefficient_covariance, fit_glmm, separated
from analysis.engine.layout import Factor
from analysis.engine.linalg import Array
from analysis.engine.lmm import Evaluation, Problem, solution
from analysis.engine.lmm_fit import Minimum, minimise
from analysis.engine.residual import basis, check_noise, without_noise
from analysis.errors import AnalysisError, listed, nearest, told

__all__ = [
    "FAMILIES", "METHODS", "GlmmFit", "MixedFit", "RandomEffect", "fit_mixed", "refit",
    "with_columns", "with_score",
]  # fmt: skip
METHODS = ("REML", "ML")
EXACT_THETA = 1e4  # standard deviation over the residual's that leaves no residual
EXACT_FIT = 1e-10  # residual length, as a share of the score's, that counts as none
ROUNDING = 1e-14  # the same, of the score as it stands: what rounding errors alone may leave
POINTS = (2, 100)  # the fewest and the most of a quadrature
SPREADS = (1e-60, 1e60)  # of a weighted score whose fourth powers are numbers still


def fit_mixed(
    frame: pd.DataFrame,
    formula: str,
    family: str = "gaussian",
    *,
    method: str | None = None,
    weights: str | None = None,
    dispersion: str | None = None,
    quadrature: int | None = None,
) -> MixedFit:
    """Return the fit of `formula` on `frame`; without a random term there is none.

    Args:
        frame: one row per observation; rows with missing values are left out and counted.
        formula: as in `analysis.engine.formula`.
        family: "gaussian"; "binomial", scores 0 or 1, or proportions with `weights` the trials;
            "beta", scores strictly between 0 and 1, or "beta_squeezed" or "beta_inflated" where
            some are 0 or 1 (see `analysis.engine.bounded`).
        method: "REML", the default of a Gaussian fit, or "ML" where fixed parts
            are to be compared. Other families are "ML", by Laplace's approximation unless
            `quadrature` says otherwise.
        weights: a column of positive weights: a row's residual variance is sigma^2 / weight; of
            a binomial the number of trials; of a beta what the log-likelihood is multiplied by.
        dispersion: of a Gaussian fit what the residual's standard deviation differs by, its log
            being linear in the columns: "~ panel" gives every panel its own.

    Raises:
        AnalysisError: an unknown name, a formula that cannot be read, too few rows, a score that
            the family cannot have or that the fixed effects explain exactly.
    """
    if family not in FAMILIES:
        near = nearest(family, FAMILIES)
        raise AnalysisError(f"family={family}: not one of {listed(FAMILIES)}.{near}")
    if family != "gaussian" and dispersion is not None:
        raise AnalysisError(f"dispersion={dispersion}: for family=gaussian alone, not {family}")
    _check_quadrature(quadrature, family)
    counted = family == "binomial" and weights is not None
    parsed = parse(formula, frame.columns)
    found = design(parsed, frame, weights=weights, counted=counted, dispersion=dispersion)
    if family != "gaussian":
        if method not in (None, "ML"):
            raise AnalysisError(f"method={method}: family={family} is fitted by ML alone")
        if quadrature is not None and not integrable(found.factors):
            raise AnalysisError(
                f"quadrature={quadrature}: for one random effect, (1 | g) or (0 + x | g); "
                f"formula={formula} has {sum(len(f.names) for f in found.factors)}"
            )
        return _fit_general(formula, found, family, 1 if quadrature is None else quadrature)
    return _fit(formula, found, "REML" if method is None else method)


def refit(fit: MixedFit, method: str) -> MixedFit:
    """Return the same model fitted by another criterion.

    Args:
        fit: a fit; one that is not Gaussian is of ML already and comes back as it is.
        method: "REML" or "ML".

    Raises:
        AnalysisError: another method.
    """
    if fit.method == method or isinstance(fit, GlmmFit):
        return fit
    return _fit(fit.formula, fit.design, method)


def with_score(fit: MixedFit, y_N: Array) -> MixedFit:
    """Return the same Gaussian model fitted to another score of the same rows.

    Args:
        fit: a Gaussian fit.
        y_N: the score of every row that was fitted, in their order.

    Raises:
        AnalysisError: the score is constant, or explained exactly.
    """
    return _fit(fit.formula, replace(fit.design, y_N=y_N), fit.method)


def with_columns(fit: MixedFit, columns: Mapping[str, Array]) -> MixedFit:
    """Return the same Gaussian model fitted with other values in columns of its fixed part.

    The rest of the model matrix is not made again, which takes most of the time of a small fit.

    Args:
        fit: a Gaussian fit.
        columns: the values of every row that was fitted, by the name of a coefficient.

    Raises:
        AnalysisError: as `fit_mixed`.
    """
    X_NB = fit.design.X_NB.copy()
    for name, x_N in columns.items():
        X_NB[:, list(fit.design.names).index(name)] = x_N
    return _fit(fit.formula, replace(fit.design, X_NB=X_NB), fit.method)


def _check_quadrature(quadrature: int | None, family: str) -> None:
    if quadrature is None:
        return
    if family == "gaussian":
        raise AnalysisError(f"quadrature={quadrature}: family=gaussian needs none")
    if type(quadrature) is not int or not POINTS[0] <= quadrature <= POINTS[1]:
        raise AnalysisError(
            f"quadrature={told(quadrature)}: must be a whole number from {POINTS[0]} to {POINTS[1]}"
        )


def _fit_general(formula: str, found: DesignMatrices, family: str, points: int) -> GlmmFit:
    """Return a fit by Laplace's approximation, or by more points."""
    ready = bounded_scores(found, family)
    used = ready.design
    problem = GlmmProblem(
        used.X_NB, ready.family, factors=used.factors, offset_N=used.offset_N, points=points
    )
    _check_size(used, problem.p)
    try:
        minimum = fit_glmm(problem)
    except np.linalg.LinAlgError as error:
        raise AnalysisError(
            f"formula={formula}: family={family} has no finite fit here; are scores explained "
            f"exactly, or within rounding of 0 or 1? family=gaussian may do"
        ) from error
    beta_B, tau = problem.beta(minimum.x), problem.tau(minimum.x)
    direction_B = separated(problem, beta_B)
    names = [used.names[i] for i in problem.fixed.kept]
    cov_BB = coefficient_covariance(problem, minimum)
    words = [*ready.words, *diagnosis(used, problem, minimum)]
    if direction_B is not None:
        words.append(separation(names, direction_B))
    else:
        words += doubts(problem, minimum)
    return GlmmFit(
        formula=formula,
        method="ML",
        fixef=pd.Series(beta_B, index=names),
        cov=pd.DataFrame(cov_BB, index=names, columns=names),
        sigma=float("nan"),
        loglik=ready.loglik - minimum.at.deviance / 2,
        random=_random_effects(problem, minimum),
        diagnosis=tuple(words),
        left_out=left_out(used, problem),
        design=used,
        problem=problem,
        minimum=minimum,
        family=family,
        phi=float(np.exp(tau)) if ready.family.dispersed else float("nan"),
        inflation=ready.inflation,
        total=len(found.y_N),
        separated=direction_B is not None,
    )


def _fit(formula: str, found: DesignMatrices, method: str) -> MixedFit:
    if method not in METHODS:
        raise AnalysisError(f"method={method}: not one of {listed(METHODS)}")
    _check_score(found)
    problem = _problem(found, method, found.weights_N)
    _check(found, problem)
    dispersed, words = None, list[str]()
    if found.dispersion is None:
        minimum = minimise(problem)
    else:
        dispersed = Dispersed(problem, basis(found.dispersion))
        problem, minimum, words = _dispersed(found, method, dispersed)
    if minimum.theta.max(initial=0.0) > EXACT_THETA:
        raise AnalysisError(
            f"formula={formula}: the random effects explain the score exactly; are rows duplicated?"
        )
    solved = solution(problem, minimum.theta, minimum.at)
    variance = minimum.at.r2 / problem.df
    names = [found.names[i] for i in problem.fixed.kept]
    quads = zip(problem.factors, solved.lambdas, solved.modes, strict=True)
    return MixedFit(
        formula=formula,
        method=method,
        fixef=pd.Series(solved.beta_B, index=names),
        cov=pd.DataFrame(variance * solved.cov_BB, index=names, columns=names),
        sigma=float(np.sqrt(variance)),
        loglik=-minimum.at.deviance / 2,
        random={f.group: _random(f, variance * lam @ lam.T, modes) for f, lam, modes in quads},
        diagnosis=(*diagnosis(found, problem, minimum), *words),
        left_out=left_out(found, problem),
        design=found,
        problem=problem,
        minimum=minimum,
        dispersed=dispersed,
    )


def _problem(
    found: DesignMatrices,
    method: str,
    weights_N: Array | None,
    scales: Sequence[Array] | None = None,
) -> Problem:
    return Problem(
        found.X_NB,
        found.response_N,
        factors=found.factors,
        weights_N=weights_N,
        reml=method == "REML",
        scales=scales,
    )


def _dispersed(
    found: DesignMatrices, method: str, dispersed: Dispersed
) -> tuple[Problem, Minimum[Evaluation], list[str]]:
    """Return the model with the weights that were estimated, where the search ended, and words."""
    assert found.dispersion is not None
    check_noise(found.dispersion, dispersed.basis_NK, dispersed.problem.fixed.q_NB)
    end = dispersed_minimum(dispersed)
    log_N = dispersed.logs(end.x)
    words = without_noise(found.dispersion, log_N, end.at.leverage_N)
    weights_N = dispersed.weights(end.x, found.weights_N)
    problem = _problem(found, method, weights_N, dispersed.problem.scales)
    same = {f.name: getattr(end, f.name) for f in fields(end)}
    settled = Minimum(**same | {"at": problem.evaluate(end.theta)})
    return problem, settled, words


def _check_size(found: DesignMatrices, coefficients: int) -> None:
    if coefficients >= len(found.y_N):
        raise AnalysisError(
            f"score={found.parsed.response}: {coefficients} coefficients for {len(found.y_N)} "
            f"rows; nothing is left to tell the noise from"
        )


def _check_score(found: DesignMatrices) -> None:
    name = f"score={found.parsed.response}"
    spread, rounding = _spread(found)
    if spread <= rounding:
        raise AnalysisError(f"{name}: the same in every row")
    if not SPREADS[0] <= spread <= SPREADS[1]:
        advice = "divide" if spread > 1 else "multiply"
        weighted = "" if found.weights_N is None else " with its weights"
        raise AnalysisError(
            f"{name}: its spread{weighted} is {spread:.3g}, whose powers cannot be computed; "
            f"{advice} the column by a power of ten"
        )


def _check(found: DesignMatrices, problem: Problem) -> None:
    _check_size(found, problem.p)
    spread, rounding = _spread(found)
    left = float(np.linalg.norm(problem.fixed.residual_N))
    if left <= max(EXACT_FIT * spread, rounding):
        raise AnalysisError(
            f"score={found.parsed.response}: the fixed effects explain it exactly; there is no "
            f"noise to hold an effect against"
        )


def _spread(found: DesignMatrices) -> tuple[float, float]:
    """Return the score's length about its mean and its rounding errors', of the mean weight."""
    y_N, root = found.y_N, float(np.sqrt(np.mean(found.root_N**2)))
    length, about = (float(np.linalg.norm(v_N)) for v_N in (y_N, y_N - y_N.mean()))
    return root * about, root * ROUNDING * length


def _random_effects(
    problem: GlmmProblem, minimum: Minimum[GlmmEvaluation]
) -> dict[str, RandomEffect]:
    found = {}
    lambdas = problem.unpack(minimum.theta)
    for f, template, scale, u_LP in zip(
        problem.factors, lambdas, problem.scales, minimum.at.modes, strict=True
    ):
        lam = template / scale[:, None]
        found[f.group] = _random(f, lam @ lam.T, u_LP @ lam.T)
    return found


def _random(factor: Factor, cov_PP: Array, modes_LP: Array) -> RandomEffect:
    names = list(factor.names)
    return RandomEffect(
        factor.group,
        pd.DataFrame(cov_PP, index=names, columns=names),
        pd.DataFrame(modes_LP, index=list(factor.levels), columns=names),
    )

"""Fits a generalised linear mixed model: start values, search, and checks for separation.

The search begins at a working linear mixed model: a logistic regression without random effects
gives eta, its working response z = eta + (y - mu) / (mu (1 - mu)) with weights m mu (1 - mu) is
fitted as a linear mixed model (one step of penalised quasi-likelihood; Breslow and Clayton 1993,
JASA 88(421)), and that fit's curvature is the first guess at the Hessian. The search and its
checks are those of the linear model (`analysis.engine.lmm_fit`).

Standard errors are of the Hessian of the Laplace deviance by all of (theta, beta, tau), by
differences of the analytic gradient, as glmmTMB has them.

Separation is a direction of beta in which every 1 stays at least as likely and every 0 at most:
no finite beta is best (Albert and Anderson 1984, Biometrika 71(1)). It is looked for, by linear
programming, where coefficients have run away.

Letters in names: N rows, B fixed effects, U distinct rows.
"""

from dataclasses import replace

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import linprog
from scipy.special import expit, logit

from analysis.engine.glmm import GlmmEvaluation, GlmmProblem
from analysis.engine.linalg import Array
from analysis.engine.lmm import Evaluation, Problem, average_information, solution
from analysis.engine.lmm_fit import Minimum, hessian, minimise
from analysis.engine.newton import minimize

REGRESSION_STEPS = 6
LARGEST_ETA = 10.0  # of the regression's start
ROUGH = 0.1  # deviance that the working model may be away from its minimum
LEAST_THETA = 0.1  # standard deviation to begin with, on the logit scale
LEAST_PHI = 0.2
RUN_AWAY = 8.0  # fixed part of eta beyond which a coefficient may have run away
ROWS = 100_000  # of X that are weighted at a time
RIDGE = 1e-6  # least eigenvalue of the regression's normal equations, of the largest
MOST_ROWS = 50_000  # distinct rows up to which separation is looked for
SEPARATED = 1e-6  # of a direction within a box of half width one


def fit_glmm(problem: GlmmProblem) -> Minimum[GlmmEvaluation]:
    """Return the minimum of the Laplace deviance, with the Hessian at that very point."""
    _begin(problem)
    found = minimise(problem)
    # The search's own is from a step before: a few per mille of a standard error.
    return replace(found, hessian=hessian(problem.evaluate, found.x, found.at, found.inside))


def coefficient_covariance(problem: GlmmProblem, minimum: Minimum[GlmmEvaluation]) -> Array:
    """Return the covariance of beta, (B, B); NaN where the Hessian is not positive definite."""
    place = np.cumsum(minimum.inside) - 1
    wanted = place[problem.size : problem.size + problem.p]
    values, vectors = np.linalg.eigh(minimum.hessian)
    if not len(values) or values[0] <= 0:
        return np.full((problem.p, problem.p), np.nan)
    half = vectors[wanted] / np.sqrt(values)
    turned = solve_triangular(problem.fixed.r_BB, half, check_finite=False)
    return np.asarray(2 * turned @ turned.T)


def _begin(problem: GlmmProblem) -> None:
    """Set where the search begins, and the curvature there."""
    z_N, weight_N = _working(problem)
    factors = problem.factors
    working = Problem(problem.X_NB, z_N, factors=factors, weights_N=weight_N, reml=False)
    theta = _rough_minimum(working)
    at = working.evaluate(theta)
    sigma = float(np.sqrt(at.r2 / working.df))
    units = _units(problem, working) * sigma
    diagonal = problem.lower[: problem.size] == 0
    ours = np.where(diagonal, np.maximum(theta * units, LEAST_THETA), theta * units)
    at = working.evaluate(ours / units)
    solved, r_BB = solution(working, ours / units, at), problem.fixed.r_BB
    problem.bend = np.zeros((len(problem.lower),) * 2)
    if len(theta):
        by_theta = average_information(working, ours / units, at) / np.outer(units, units)
        problem.bend[: problem.size, : problem.size] = by_theta
    own = slice(problem.size, problem.size + problem.p)
    half_BB = r_BB @ np.linalg.cholesky(solved.cov_BB)
    problem.bend[own, own] = np.linalg.inv(half_BB @ half_BB.T) * 2 / sigma**2
    found = [ours, r_BB @ solved.beta_B]
    if problem.family.dispersed:
        found.append(np.array([np.log(max(1 / sigma**2 - 1, LEAST_PHI))]))
        problem.bend[-1, -1] = float(np.sum(np.ones(problem.n) * problem.family.size_N))
    problem.first = np.concatenate(found)


def _units(problem: GlmmProblem, working: Problem) -> Array:
    """Return our theta for the working model's, whose columns have other sizes."""
    pairs = zip(problem.scales, working.scales, problem.free, strict=True)
    parts = [(ours / theirs)[rows] for ours, theirs, (rows, _) in pairs]
    return np.concatenate([np.empty(0), *parts])


def _rough_minimum(working: Problem) -> Array:
    """Return theta near the working model's minimum."""
    if not working.size:
        return working.start
    last: list[Evaluation] = []

    def value(theta: Array) -> tuple[float, Array]:
        last[:] = [working.evaluate(theta)]
        return last[0].deviance, last[0].gradient

    def bend(theta: Array) -> Array:
        return working.curvature(theta, last[0])

    found = minimize(value, working.start, lower=working.lower, curvature=bend, gain=ROUGH)
    return found.x


def _working(problem: GlmmProblem) -> tuple[Array, Array]:
    """Return the working response of a regression without random effects, and its weights."""
    y_N, size = problem.family.y_N, problem.family.size_N
    offset_N = 0.0 if problem.offset_N is None else problem.offset_N
    eta_N = logit((size * y_N + 0.5) / (size + 1))
    for _ in range(REGRESSION_STEPS):
        mu_N = expit(eta_N)
        spread_N = mu_N * (1 - mu_N)
        z_N = eta_N - offset_N + (y_N - mu_N) / spread_N
        weight_N = size * spread_N
        beta_B = _least_squares(problem, weight_N, z_N)
        eta_N = np.clip(problem.X_NB @ beta_B + offset_N, -LARGEST_ETA, LARGEST_ETA)
    return z_N, weight_N


def _least_squares(problem: GlmmProblem, weight_N: Array, z_N: Array) -> Array:
    """Return the coefficients of z on X with these weights."""
    gram_BB, right_B = np.zeros((problem.p, problem.p)), problem.X_NB.T @ (weight_N * z_N)
    for start in range(0, problem.n, ROWS):  # a weighted copy of all of X may be large
        rows = slice(start, start + ROWS)
        x_RB = problem.X_NB[rows]
        gram_BB += x_RB.T @ (x_RB * weight_N[rows, None])
    r_BB = problem.fixed.r_BB
    turned_BB = solve_triangular(r_BB, gram_BB, trans=1, check_finite=False)
    turned_BB = solve_triangular(r_BB, turned_BB.T, trans=1, check_finite=False)
    right_B = solve_triangular(r_BB, right_B, trans=1, check_finite=False)
    values, vectors = np.linalg.eigh(turned_BB)
    values = np.maximum(values, RIDGE * values[-1])  # where the response is separated
    gamma_B = vectors @ ((vectors.T @ right_B) / values)
    return np.asarray(solve_triangular(r_BB, gamma_B, check_finite=False))


def separated(problem: GlmmProblem, beta_B: Array) -> Array | None:
    """Return a direction of beta in which the likelihood only rises, or None.

    It is looked for where the fixed part of eta has run beyond `RUN_AWAY`: the largest sum of
    s x' delta with every s x' delta >= 0 and |delta| <= 1, s = 1 where y = 1 and -1 where y = 0
    (Konis 2007, Oxford, section 4); a row between 0 and 1 wants x' delta = 0.
    """
    y_N = problem.family.y_N
    if problem.family.name != "binomial" or not problem.p:
        return None
    if float(np.abs(problem.X_NB @ beta_B).max()) < RUN_AWAY:
        return None
    sign_N = np.where(y_N >= 1, 1.0, np.where(y_N <= 0, -1.0, 0.0))
    x_UB, sign_U = _distinct(problem.X_NB / np.abs(problem.X_NB).max(axis=0), sign_N)
    if len(x_UB) > MOST_ROWS:
        return None
    pure = sign_U != 0
    signed_UB = x_UB[pure] * sign_U[pure, None]
    found = linprog(
        -signed_UB.sum(axis=0),
        A_ub=-signed_UB,
        b_ub=np.zeros(len(signed_UB)),
        A_eq=x_UB[~pure] if not pure.all() else None,
        b_eq=np.zeros(int((~pure).sum())) if not pure.all() else None,
        bounds=(-1, 1),
    )
    direction = np.asarray(found.x) if found.x is not None else np.zeros(problem.p)
    return direction if float((signed_UB @ direction).max(initial=0.0)) > SEPARATED else None


def _distinct(X_NB: Array, sign_N: Array) -> tuple[Array, Array]:
    """Return the distinct rows of X with their signs, identified by a random projection."""
    mix_B = np.random.default_rng(0).normal(size=X_NB.shape[1])
    _, first = np.unique(np.column_stack([X_NB @ mix_B, sign_N]), axis=0, return_index=True)
    return X_NB[first], sign_N[first]

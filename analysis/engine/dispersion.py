"""The linear mixed model whose residual standard deviation differs between rows.

    e_i ~ N(0, sigma^2 exp(2 d_i' gamma) / w_i)

d_i are the columns of a dispersion formula without their constant, centred and orthogonal over the
rows, so that sigma is the geometric mean of the rows' standard deviations; w_i are known weights.
With one factor this is nlme's varIdent, and in general what glmmTMB's dispformula is.

At one gamma the model is that of `engine.lmm` with weights w_i exp(-2 d_i' gamma). The deviance,
profiled over beta and sigma, is minimised over x = (theta, gamma) at once. With h_i the leverage of
a row (what random effects, and under REML X too, take of it) and r_i its residual over the root of
its weight,

    gradient by gamma = 2 sum_i d_i (1 - h_i - r_i^2 / sigma^2),

and the columns of the average information that belong to gamma are V_k P y = 2 d_k e.

Where the scores of a level leave no residual, its variance has no minimum. A penalty that sets in
3,000-fold away from the typical standard deviation ends the search there, and
`residual.without_noise` tells what it met.

Letters in names: N rows, L levels, P columns of a factor, B fixed effects, M columns of the dense
part, K variance parameters.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import solve_triangular

from analysis.engine.blocked import Factored, factored, inverse_of_leading, turned
from analysis.engine.linalg import Array, times
from analysis.engine.lmm import (
    Evaluation,
    Problem,
    Templates,
    coefficients,
    convex,
    derivatives,
    evaluation,
    unexplained,
)
from analysis.engine.lmm_fit import Minimum, minimise
from analysis.engine.newton import minimize
from analysis.engine.summary import brief

MOST_LOG = 8.0  # |log| of a residual's SD over the typical one, from which a penalty is put on it
NO_LOG = 30.0  # the same, beyond which numbers mean nothing
START_LOG = 4.0  # |log|, for where a search begins


@brief
@dataclass(frozen=True, slots=True)
class DispersedEvaluation:
    """The deviance at one (theta, gamma) and its derivatives."""

    deviance: float
    gradient: Array  # by theta, then by gamma
    slopes: tuple[Array, ...]  # D_f
    at: Evaluation
    problem: Problem  # with this gamma's weights; its X is not orthogonal under them
    weights_N: Array
    residual_N: Array  # e, the conditional residual
    leverage_N: Array  # h

    @property
    def r2(self) -> float:
        """y' P y."""
        return self.at.r2


class Dispersed(Templates):
    """The deviance over x = (theta, gamma), to be minimised.

    Args:
        problem: the model with the known weights alone.
        basis_NK: d, see `engine.residual`.
    """

    def __init__(self, problem: Problem, basis_NK: Array) -> None:
        super().__init__(problem.factors)
        self.problem, self.factors, self.basis_NK = problem, problem.factors, basis_NK
        self.lower = np.concatenate([self.lower, np.full(basis_NK.shape[1], -np.inf)])
        self.df, self.scales = problem.df, problem.scales

    def logs(self, x: Array) -> Array:
        """Return the log of every row's residual SD over sigma, known weights left out."""
        return self.basis_NK @ x[self.size :]

    def weights(self, x: Array, known_N: Array | None) -> Array:
        """Return the weights of the rows at x: a row's residual variance is sigma^2 / weight."""
        own_N = np.exp(-2 * self.logs(x))
        return own_N if known_N is None else known_N * own_N

    @cached_property
    def start(self) -> Array:
        """Gamma as if residuals and leverages at equal variances were final; theta from moments."""
        at = self.evaluate(np.concatenate([self.problem.start, np.zeros(self.basis_NK.shape[1])]))
        variance = at.r2 / self.df
        share_N = at.weights_N * at.residual_N**2 / variance
        spare_K = 2 * self.basis_NK.T @ (1 - at.leverage_N)

        def value(gamma: Array) -> tuple[float, Array]:
            log_N = self.basis_NK @ gamma
            if np.abs(log_N).max() > START_LOG:
                return np.inf, np.full_like(gamma, np.nan)
            own_N = share_N * np.exp(-2 * log_N)
            return float(spare_K @ gamma + own_N.sum()), spare_K - 2 * self.basis_NK.T @ own_N

        def bend(gamma: Array) -> Array:
            own_N = share_N * np.exp(-2 * self.basis_NK @ gamma)
            return 4 * (self.basis_NK.T * own_N) @ self.basis_NK

        zero_K = np.zeros(self.basis_NK.shape[1])
        low = self.lower[self.size :]
        gamma = minimize(value, zero_K, lower=low, curvature=bend).x
        return np.concatenate([self._theta(gamma), gamma])

    def _theta(self, gamma: Array) -> Array:
        """Return theta from moments under a gamma's weights, see `Problem.start`."""
        weights_N = np.exp(-2 * self.basis_NK @ gamma)
        q_NB, y_N = self.problem.fixed.q_NB, self.problem.fixed.residual_N
        half_BN = q_NB.T * weights_N
        left_N = y_N - q_NB @ np.linalg.solve(half_BN @ q_NB, half_BN @ y_N)
        moved = copy(self.problem)
        moved.__dict__.pop("start", None)
        moved.blocks = moved.layout.blocks(weights_N, np.column_stack([q_NB, left_N]))
        return moved.start

    def evaluate(self, x: Array) -> DispersedEvaluation:
        """Return deviance and derivatives at x.

        Raises:
            numpy.linalg.LinAlgError: x is beyond where a search goes, or a factor does not exist.
        """
        log_N = self.logs(x)
        if np.abs(log_N).max(initial=0.0) > NO_LOG:
            raise np.linalg.LinAlgError("a residual variance is next to nothing")
        beyond_N = log_N - np.clip(log_N, -MOST_LOG, MOST_LOG)
        weights_N = np.exp(-2 * log_N)
        problem = copy(self.problem)
        problem.blocks = problem.layout.blocks(weights_N, problem.dense_NM)
        factor = factored(problem.layout, problem.blocks, self.unpack(x[: self.size]))
        at = evaluation(problem, factor)
        residual_N, leverage_N = _rows(problem, factor, weights_N)
        found_N = 1 - leverage_N - weights_N * residual_N**2 * (self.df / at.r2)
        return DispersedEvaluation(
            deviance=at.deviance + 2 * float(log_N.sum()) + float(beyond_N @ beyond_N),
            gradient=np.concatenate([at.gradient, 2 * self.basis_NK.T @ (found_N + beyond_N)]),
            slopes=at.slopes,
            at=at,
            problem=problem,
            weights_N=weights_N,
            residual_N=residual_N,
            leverage_N=leverage_N,
        )

    def covariance(self, x: Array, at: DispersedEvaluation) -> Array:
        """Return the covariance of beta over sigma^2, (B, B)."""
        return at.problem.covariance(x[: self.size], at.at)

    def slope(self, x: Array, at: DispersedEvaluation, variance: float) -> Array:
        """Return the gradient by x of the deviance at a sigma^2 that is not profiled out."""
        by_theta = at.problem.slope(x[: self.size], at.at, variance)
        found_N = 1 - at.leverage_N - at.weights_N * at.residual_N**2 / variance
        return np.concatenate([by_theta, 2 * self.basis_NK.T @ found_N])

    def curvature(self, x: Array, at: DispersedEvaluation) -> Array:
        """Return a guess at the deviance's Hessian, as `engine.lmm.average_information`."""
        problem, layout, variance = at.problem, at.problem.layout, at.r2 / self.df
        lambdas = self.unpack(x[: self.size])
        turns = derivatives(problem, lambdas)
        moved = [
            layout.rows(f, (a @ t_KPP).transpose(1, 2, 0))
            for f, (a, t_KPP) in enumerate(zip(at.at.scores, turns, strict=True))
        ]
        v_NK = np.column_stack([*moved, 2 * self.basis_NK * at.residual_N[:, None]])
        weighted_NK = v_NK * at.weights_N[:, None]
        c_LPK, c_MK = _products(problem, weighted_NK)
        plain_KK = v_NK.T @ weighted_NK
        linear_K = weighted_NK.T @ at.residual_N
        found = unexplained(problem, (lambdas, at.at), plain_KK, c_LPK, c_MK) / variance
        found -= np.outer(linear_K, linear_K) / (variance**2 * self.df)
        found[: self.size, : self.size] += convex(problem, at.at)
        far_NK = self.basis_NK * (np.abs(self.logs(x)) > MOST_LOG)[:, None]
        found[self.size :, self.size :] += 2 * far_NK.T @ far_NK
        return found


def dispersed_minimum(dispersed: Dispersed) -> Minimum[DispersedEvaluation]:
    """Return where the search ended.

    Where a residual goes to zero, it may have been because the random effects were begun too small
    to leave it anything: then the search is begun again with larger ones.
    """
    found = minimise(dispersed)
    if np.abs(dispersed.logs(found.x)).max() <= MOST_LOG:
        return found
    theta = np.where(dispersed.lower[: dispersed.size] == 0, 1.0, 0.0)
    again = minimise(dispersed, np.concatenate([theta, dispersed.start[dispersed.size :]]))
    return min(found, again, key=lambda end: end.at.deviance)


def _products(problem: Problem, v_NK: Array) -> tuple[Array, Array]:
    """Return Z' v of the first factor, (L, P, K), and that of the others, X' v and y' v, (M, K)."""
    layout = problem.layout
    parts = [layout.transposed(v_N) for v_N in v_NK.T]
    border_MK = problem.dense_NM.T @ v_NK
    if not layout.factors:
        return np.zeros((0, 1, v_NK.shape[1])), border_MK
    rest_MK = np.stack([layout.joined(own) for own in parts], axis=-1)
    return np.stack([own[0] for own in parts], axis=-1), np.vstack([rest_MK, border_MK])


def _rows(problem: Problem, factor: Factored, weights_N: Array) -> tuple[Array, Array]:
    """Return the conditional residual and the leverage of every row, (N,) both."""
    layout, q, chol_MM = problem.layout, problem.q, factor.chol_MM
    own, across, _ = factor.posterior(inverse_of_leading(chol_MM, q))
    leverage_N = np.zeros(problem.n) + layout.variances(own, across)
    left_NB = problem.dense_NM - _random_part(problem, factor)  # X and y without random effects
    step_B = coefficients(chol_MM)[q:]
    if problem.reml:
        half_BN = solve_triangular(chol_MM[q:-1, q:-1], left_NB[:, :-1].T, lower=True)
        leverage_N += (half_BN**2).sum(axis=0)
    return left_NB[:, -1] - left_NB[:, :-1] @ step_B, weights_N * leverage_N


def _random_part(problem: Problem, factor: Factored) -> Array:
    """Return Z G Z' V^-1 of X and y, (N, B + 1): what the random effects take of each."""
    layout, q, lambdas = problem.layout, problem.q, factor.lambdas
    if not lambdas:
        return np.zeros((problem.n, problem.p + 1))
    u_QB = factor.chol_MM[q:, :q].T
    if q:
        u_QB = solve_triangular(factor.chol_MM[:q, :q], u_QB, lower=True, trans=1)
    b_QB = turned(layout, u_QB.T, [t.T for t in lambdas]).T
    v_MB = np.vstack([-b_QB, np.eye(problem.p + 1)])
    first_LPB = times(factor.first.phi_LPP, factor.blocks.coupling.times(v_MB))
    found = layout.rows(0, first_LPB)
    for f, own in enumerate(layout.slices, start=1):
        found += layout.rows(f, b_QB[own].reshape(-1, len(lambdas[f]), problem.p + 1))
    return found

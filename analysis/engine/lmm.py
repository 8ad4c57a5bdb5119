"""The Gaussian linear mixed model: profiled deviance and its gradient by a blocked Cholesky.

Model (Bates, Maechler, Bolker and Walker 2015, J. Stat. Softw. 67(1), arXiv 1406.5823):

    y = X beta + Z b + e,   b = Lambda u,   u ~ N(0, sigma^2 I),   e ~ N(0, sigma^2 W^-1)

theta holds the free entries of Lambda, the relative covariance factor: Lambda is block diagonal,
one lower triangular template Lambda_f (P x P) for every grouping factor f, repeated L times.
With V = I + Z Lambda Lambda' Z' (rows already multiplied by sqrt(W)) the deviance, profiled over
beta and sigma, is

    ML     log|V| + n (1 + log(2 pi r^2 / n)) - log|W|
    REML   the same with n - p for n, + log|X' V^-1 X|;          r^2 = y' P y

The data enter through cross products alone, so an evaluation does not depend on n. The factor
with most columns is absorbed first, where everything is block diagonal; what is left over
(the other factors, X and y) is one dense matrix U = R' V_1^-1 R whose Cholesky factor holds the
rest of log|V|, log|X' V^-1 X| and r. For every factor, with
P = V^-1 - V^-1 X (X' V^-1 X)^-1 X' V^-1 and a = Z_f' P y, and with V^-1 for P under ML,

    D_f = sum over levels of (Z_f' P Z_f) - a a' (n - p) / r^2,      gradient = 2 D_f Lambda_f.

D_f is the derivative by the covariance Lambda_f Lambda_f' itself. A minimum on the boundary needs
D_f to have no negative eigenvalue: that is what tells a true boundary from a false one, because
the gradient by theta is zero at theta = 0 in either case.

Letters in names: N rows, L levels, P columns of a factor, B fixed effects, M columns of the dense
part R = [Z of the other factors, X, y].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import blas, lapack, solve_triangular

from analysis.engine.blocked import Factored, factored, inverse_of_leading, rows_of, turned, weak
from analysis.engine.layout import BlockLayout, Factor
from analysis.engine.linalg import Array, Mask, orthogonal, times
from analysis.engine.summary import brief

__all__ = ["Evaluation", "Factor", "Problem", "Solution", "evaluate", "solution"]
START = (0.1, 30.0)  # the least and the most relative standard deviation to start from


@brief
@dataclass(frozen=True, slots=True)
class Evaluation:
    """The deviance at one theta, its derivatives and what the solution is read from."""

    deviance: float
    gradient: Array  # by theta
    slopes: tuple[Array, ...]  # D_f, (P, P) for every factor
    traces: tuple[Array, ...]  # sum over levels of Z_f' P Z_f
    squares: tuple[Array, ...]  # sum over levels of a a'
    scores: tuple[Array, ...]  # a, (L, P) for every factor
    r2: float
    chol_MM: Array  # its lower triangle
    phi_LPP: Array


@brief
@dataclass(frozen=True, slots=True)
class Solution:
    """The coefficients at one theta, in the units the data came in."""

    beta_B: Array
    cov_BB: Array  # (X' V^-1 X)^-1; times sigma^2 it is the covariance of beta
    lambdas: tuple[Array, ...]  # Lambda_f
    modes: tuple[Array, ...]  # b, (L, P) for every factor


class Templates:
    """The free entries of Lambda_f as one vector theta, factor by factor."""

    def __init__(self, factors: Sequence[Factor]) -> None:
        self.shapes = [f.free_PP.shape for f in factors]
        self.free = [_column_major(f.free_PP) for f in factors]
        self.size = sum(len(rows) for rows, _ in self.free)
        diagonal = [rows == columns for rows, columns in self.free]
        self.lower = np.where(np.concatenate([np.empty(0, bool), *diagonal]), 0.0, -np.inf)

    def unpack(self, theta: Array) -> list[Array]:
        """Return Lambda_f for every factor, in columns of unit size."""
        found, start = [], 0
        for (rows, columns), shape in zip(self.free, self.shapes, strict=True):
            template = np.zeros(shape)
            template[rows, columns] = theta[start : start + len(rows)]
            start += len(rows)
            found.append(template)
        return found

    def pack(self, lambdas: Sequence[Array]) -> Array:
        """Return theta, the inverse of `unpack`."""
        parts = [m[rows, columns] for m, (rows, columns) in zip(lambdas, self.free, strict=True)]
        return np.concatenate([np.empty(0), *parts])


class Problem(Templates):
    """All that the deviance needs of the data: cross products, in columns of unit size.

    Args:
        X_NB: fixed-effects matrix; dependent columns are left out, see `fixed.kept`.
        y_N: response.
        factors: grouping factors, in any order; `self.factors` has the largest first.
        weights_N: positive weights; the residual variance of a row is sigma^2 / weight.
        reml: whether the criterion is REML or ML.
        scales: what the factors' columns are divided by; their sizes unless given.
    """

    def __init__(
        self,
        X_NB: Array,
        y_N: Array,
        *,
        factors: Sequence[Factor] = (),
        weights_N: Array | None = None,
        reml: bool = True,
        scales: Sequence[Array] | None = None,
    ) -> None:
        self.factors = tuple(sorted(factors, key=lambda f: -f.size))
        super().__init__(self.factors)
        root_N = np.ones(len(y_N)) if weights_N is None else np.sqrt(weights_N)
        self.fixed = orthogonal(X_NB * root_N[:, None], y_N * root_N)
        self.n, self.p, self.reml = len(y_N), len(self.fixed.kept), reml
        self.df = self.n - self.p if reml else self.n
        columns = [f.columns_NP * root_N[:, None] for f in self.factors]
        own = [np.sqrt(np.mean(c**2, axis=0)) for c in columns]
        self.scales = own if scales is None else list(scales)
        self.constant = float(-2 * np.log(root_N).sum())
        if reml:
            self.constant += float(2 * np.log(np.abs(np.diagonal(self.fixed.r_BB))).sum())
        scaled = [c / s for c, s in zip(columns, self.scales, strict=True)]
        self.layout = BlockLayout(self.factors, scaled, border=self.p + 1)
        self.blocks = self.layout.blocks(border_NB=self.dense_NM)
        self.q = self.layout.q

    @property
    def dense_NM(self) -> Array:
        """The border: X as an orthogonal basis, and what it leaves of y."""
        return np.column_stack([self.fixed.q_NB, self.fixed.residual_N])

    def evaluate(self, theta: Array) -> Evaluation:
        """Return deviance and derivatives at theta, see `evaluate`."""
        return evaluate(self, theta)

    def curvature(self, theta: Array, at: Evaluation) -> Array:
        """Return a guess at the deviance's Hessian, see `average_information`."""
        return average_information(self, theta, at)

    def covariance(self, theta: Array, at: Evaluation) -> Array:
        """Return the covariance of beta over sigma^2, (B, B)."""
        return solution(self, theta, at).cov_BB

    def slope(self, theta: Array, at: Evaluation, variance: float) -> Array:
        """Return the gradient by theta of the deviance at a sigma^2 that is not profiled out."""
        triples = zip(at.traces, at.squares, self.unpack(theta), strict=True)
        return self.pack([2 * (t - a / variance) @ lam for t, a, lam in triples])

    @cached_property
    def start(self) -> Array:
        """Theta from moments: the squared sums over levels of what X leaves of y.

        They are MINQUE(0)'s equations (Rao 1972), E a_c' a_c = sum over d of tau_d^2
        |Z_c' Z_d|^2, without what X takes from them.
        """
        return self.pack([np.diag(s_P) for s_P in _moments(self)] if self.factors else [])


def evaluate(problem: Problem, theta: Array) -> Evaluation:
    """Return deviance and derivatives at theta.

    Raises:
        numpy.linalg.LinAlgError: theta is so large that the dense part loses definiteness.
    """
    return evaluation(problem, factored(problem.layout, problem.blocks, problem.unpack(theta)))


def evaluation(problem: Problem, factor: Factored) -> Evaluation:
    """Return deviance and derivatives from the factor of the problem's cross products."""
    m = problem.q + (problem.p if problem.reml else 0)
    log_det, r2 = factor.log_det_to(m), float(factor.chol_MM[-1, -1] ** 2)
    inverse_MM = inverse_of_leading(factor.chol_MM, m)
    k_MM = factor.covariance(inverse_MM)
    found = factor.traces(inverse_MM, k_MM, problem.blocks.coupling.quadratic(k_MM))
    scores = _scores(problem, factor)
    squares = tuple(a_LP.T @ a_LP for a_LP in scores)
    df = problem.df
    slopes = tuple(t - a * (df / r2) for t, a in zip(found, squares, strict=True))
    return Evaluation(
        deviance=problem.constant + log_det + df * (1 + np.log(2 * np.pi * r2 / df)),
        gradient=problem.pack([2 * d @ m for d, m in zip(slopes, factor.lambdas, strict=True)]),
        slopes=slopes,
        traces=tuple(found),
        squares=squares,
        scores=scores,
        r2=r2,
        chol_MM=factor.chol_MM,
        phi_LPP=factor.first.phi_LPP,
    )


def _scores(problem: Problem, factor: Factored) -> tuple[Array, ...]:
    """Return a = Z_f' P y of every factor."""
    lambdas, layout = factor.lambdas, problem.layout
    if not lambdas:
        return ()
    u_M = coefficients(factor.chol_MM)
    residual_M = np.append(-turned(layout, u_M, [t.T for t in lambdas]), 1.0)
    a_LPK = problem.blocks.coupling.times(residual_M[:, None])
    found = [(a_LPK - times(problem.blocks.a11_LPP, times(factor.first.phi_LPP, a_LPK)))[..., 0]]
    for own, template in zip(layout.slices, lambdas[1:], strict=True):
        if weak(template):  # u = Lambda' a cannot be turned round
            a_Q = rows_of(factor.first.u_MM, own) @ residual_M
            found.append(a_Q.reshape(-1, len(template)))
        else:
            u_LP = u_M[own].reshape(-1, len(template))
            found.append(np.asarray(np.linalg.solve(template.T, u_LP.T).T, dtype=np.float64))
    return tuple(found)


def average_information(problem: Problem, theta: Array, at: Evaluation) -> Array:
    """Return the deviance's curvature by theta, (K, K), positive semi-definite.

    It is the mean of the observed and the expected one (Gilmour, Thompson and Cullis 1995,
    Biometrics 51(4)), y' P V_i P V_j P y / sigma^2 with V_i the derivative of V, less what
    profiling over sigma takes, plus what D_f adds where it is positive.
    """
    lambdas, variance = problem.unpack(theta), at.r2 / problem.df
    turns = derivatives(problem, lambdas)
    moved = [a @ t_KPP for a, t_KPP in zip(at.scores, turns, strict=True)]  # (K, L, P)
    first_LPK, rest_MK = _spread(problem, moved)
    blocks, coupling = problem.blocks, problem.blocks.coupling
    c_LPK = times(blocks.a11_LPP, first_LPK) + coupling.times(rest_MK)
    c_MK = coupling.transposed(first_LPK) + blocks.a22_MM @ rest_MK
    plain_KK = _flat(first_LPK).T @ _flat(c_LPK) + rest_MK.T @ c_MK
    linear_K = np.concatenate(
        [np.einsum("klp,lp->k", m, a) for m, a in zip(moved, at.scores, strict=True)]
    )
    found = unexplained(problem, (lambdas, at), plain_KK, c_LPK, c_MK) / variance
    found -= np.outer(linear_K, linear_K) / (variance**2 * problem.df)
    return found + convex(problem, at)


def unexplained(
    problem: Problem,
    here: tuple[list[Array], Evaluation],
    plain_KK: Array,
    c_LPK: Array,
    c_MK: Array,
) -> Array:
    """Return v' P v, (K, K), for some columns v over the rows.

    Args:
        problem: the model.
        here: Lambda_f, and the model at them.
        plain_KK: v' v.
        c_LPK: Z_f' v of the first factor.
        c_MK: that of the others, then X' v and y' v.
    """
    lambdas, at = here
    h_LPK = times(at.phi_LPP, c_LPK)
    left_KM = (c_MK - problem.blocks.coupling.transposed(h_LPK)).T
    right_MK = turned(problem.layout, left_KM, lambdas).T
    half_MK = blas.dtrsm(1.0, at.chol_MM, right_MK, lower=1)[:-1]
    return plain_KK - _flat(c_LPK).T @ _flat(h_LPK) - half_MK.T @ half_MK


def _flat(v_LPK: Array) -> Array:
    return v_LPK.reshape(-1, v_LPK.shape[-1])


def derivatives(problem: Problem, lambdas: list[Array]) -> list[Array]:
    """Return of every factor the derivatives of Lambda Lambda' by its thetas, (K, P, P)."""
    found = []
    for (rows, columns), template in zip(problem.free, lambdas, strict=True):
        own = np.zeros((len(rows), *template.shape))
        own[np.arange(len(rows)), rows] = template.T[columns]
        found.append(own + own.transpose(0, 2, 1))
    return found


def _spread(problem: Problem, moved: list[Array]) -> tuple[Array, Array]:
    """Return vectors of every factor's own thetas as columns over all levels and all thetas."""
    count = sum(len(own) for own in moved)
    first_LPK = np.zeros((*moved[0].shape[1:], count))
    rest_MK = np.zeros((len(problem.blocks.a22_MM), count))
    start = len(moved[0])
    first_LPK[..., :start] = moved[0].transpose(1, 2, 0)
    for own, part in zip(problem.layout.slices, moved[1:], strict=True):
        rest_MK[own, start : start + len(part)] = part.reshape(len(part), -1).T
        start += len(part)
    return first_LPK, rest_MK


def convex(problem: Problem, at: Evaluation) -> Array:
    """Return the second derivative of Lambda Lambda' along the positive part of D_f."""
    found, start = np.zeros((len(problem.lower),) * 2), 0
    for (rows, columns), slope in zip(problem.free, at.slopes, strict=True):
        values, vectors = np.linalg.eigh(slope)
        part = (vectors * np.maximum(values, 0.0)) @ vectors.T
        own = slice(start, start + len(rows))
        found[own, own] = 2 * part[np.ix_(rows, rows)] * (columns[:, None] == columns)
        start += len(rows)
    return found


def _moments(problem: Problem) -> list[Array]:
    """Return starting standard deviations of every factor's columns, over the residual's."""
    blocks, layout = problem.blocks, problem.layout
    widths = [len(f.names) for f in problem.factors]
    member_MC = np.zeros((len(blocks.a22_MM), sum(widths[1:])))
    for own, width, last in zip(layout.slices, widths[1:], np.cumsum(widths[1:]), strict=True):
        levels = (own.stop - own.start) // width
        member_MC[own, last - width : last] = np.tile(np.eye(width), (levels, 1))
    y_MK = np.eye(len(blocks.a22_MM))[:, -1:]
    first_C, across = np.sum(blocks.a11_LPP**2, axis=0), blocks.coupling.squares() @ member_MC
    rest_C = member_MC.T @ blocks.a22_MM**2 @ member_MC
    sizes = [np.einsum("laa->a", blocks.a11_LPP), np.diagonal(blocks.a22_MM) @ member_MC]
    y_squares = np.sum(blocks.coupling.times(y_MK) ** 2, axis=(0, 2))
    size_C = np.concatenate(sizes)
    right_C = np.concatenate(
        [y_squares, blocks.a22_MM[-1] ** 2 @ member_MC, blocks.a22_MM[-1:, -1]]
    )
    system = np.block(
        [
            [first_C, across, size_C[:, None][: len(first_C)]],
            [across.T, rest_C, size_C[len(first_C) :, None]],
            [size_C, np.array(problem.n - problem.p)],
        ]
    )
    found = np.linalg.lstsq(system, right_C, rcond=None)[0]
    ratio_C = found[:-1] / found[-1] if found[-1] > 0 else np.ones(len(found) - 1)
    return np.split(np.clip(np.sqrt(np.maximum(ratio_C, 0.0)), *START), np.cumsum(widths)[:-1])


def solution(problem: Problem, theta: Array, at: Evaluation) -> Solution:
    """Return coefficients, their covariance and the conditional modes, back in the data's units."""
    q, fixed = problem.q, problem.fixed
    x_BB = at.chol_MM[q:-1, q:-1]
    half_BB = solve_triangular(x_BB, solve_triangular(fixed.r_BB, np.eye(problem.p)).T, lower=True)
    step_B = solve_triangular(fixed.r_BB, coefficients(at.chol_MM)[q:])
    pairs = zip(problem.unpack(theta), problem.scales, strict=True)
    lambdas = tuple(template / scale[:, None] for template, scale in pairs)
    triples = zip(at.scores, lambdas, problem.scales, strict=True)
    modes = tuple((a_LP * s) @ (lam @ lam.T) for a_LP, lam, s in triples)
    return Solution(fixed.ols_B + step_B, half_BB.T @ half_BB, lambdas, modes)


def coefficients(chol_MM: Array) -> Array:
    """Return [u of the other factors, beta] from the factor whose last row is y."""
    # LAPACK itself, on all of it: scipy's checks cost more than a small solve, a block of a large
    # matrix is copied, and this is in every evaluation. A zero for y leaves the others alone.
    right_M = chol_MM[-1].copy()
    right_M[-1] = 0
    found, _ = lapack.dtrtrs(chol_MM, right_M, lower=1, trans=1, overwrite_b=1)
    return np.asarray(found[:-1], dtype=np.float64)


def _column_major(free_PP: Mask) -> tuple[Array, Array]:
    columns, rows = np.nonzero(free_PP.T)
    return rows.astype(np.intp), columns.astype(np.intp)

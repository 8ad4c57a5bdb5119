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
from itertools import pairwise

import numpy as np
from scipy.linalg import lapack, solve_triangular
from scipy.sparse import csr_array, hstack

from analysis.linalg import Array, Index, Mask, contracted, inverse, orthogonal, sweep, times

_NO_BLOCKS = np.zeros((0, 1, 1))


@dataclass(frozen=True, slots=True)
class Factor:
    """One grouping factor and the columns whose coefficients vary over its levels."""

    group: str
    names: tuple[str, ...]
    columns_NP: Array
    index_N: Index
    levels: tuple[str, ...]
    free_PP: Mask  # free entries of Lambda_f, within the lower triangle

    @property
    def size(self) -> int:
        """The number of columns of Z that this factor has."""
        return len(self.levels) * len(self.names)

    def matrix(self, columns_NP: Array) -> csr_array:
        """Return these columns as a sparse (N, L P) matrix, level by level."""
        n, width = columns_NP.shape
        where = (self.index_N[:, None] * width + np.arange(width)).ravel()
        starts = np.arange(0, n * width + 1, width)
        return csr_array((columns_NP.ravel(), where, starts), shape=(n, self.size))


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
    chol_MM: Array


@dataclass(frozen=True, slots=True)
class Solution:
    """The coefficients at one theta, in the units the data came in."""

    beta_B: Array
    cov_BB: Array  # (X' V^-1 X)^-1; times sigma^2 it is the covariance of beta
    lambdas: tuple[Array, ...]  # Lambda_f
    modes: tuple[Array, ...]  # b, (L, P) for every factor


@dataclass(frozen=True, slots=True)
class _Reduced:
    """The cross products after the first factor is absorbed: Z' V_1^-1 [Z, X, y]."""

    log_det: float
    u_MM: Array
    sums: list[Array]  # (P, P) for every factor: diagonal blocks of Z_f' V_1^-1 Z_f, summed
    rows: list[Array]  # (L, P, M) for every factor: Z_f' V_1^-1 R


class Problem:
    """All that the deviance needs of the data: cross products, in columns of unit size.

    Args:
        X_NB: fixed-effects matrix; dependent columns are left out, see `fixed.kept`.
        y_N: response.
        factors: grouping factors, in any order; `self.factors` has the largest first.
        weights_N: positive weights; the residual variance of a row is sigma^2 / weight.
        reml: whether the criterion is REML or ML.
    """

    def __init__(
        self,
        X_NB: Array,
        y_N: Array,
        *,
        factors: Sequence[Factor] = (),
        weights_N: Array | None = None,
        reml: bool = True,
    ) -> None:
        root_N = np.ones(len(y_N)) if weights_N is None else np.sqrt(weights_N)
        self.fixed = orthogonal(X_NB * root_N[:, None], y_N * root_N)
        self.n, self.p, self.reml = len(y_N), len(self.fixed.kept), reml
        self.df = self.n - self.p if reml else self.n
        self.factors = tuple(sorted(factors, key=lambda f: -f.size))
        columns = [f.columns_NP * root_N[:, None] for f in self.factors]
        self.scales = [np.sqrt(np.mean(c**2, axis=0)) for c in columns]
        self.free = [_column_major(f.free_PP) for f in self.factors]
        self.constant = float(-2 * np.log(root_N).sum())
        if reml:
            self.constant += float(2 * np.log(np.abs(np.diagonal(self.fixed.r_BB))).sum())
        self._cross_products([c / s for c, s in zip(columns, self.scales, strict=True)])

    def _cross_products(self, columns: list[Array]) -> None:
        dense_NM = np.column_stack([self.fixed.q_NB, self.fixed.residual_N])
        pairs = zip(self.factors, columns, strict=True)
        z = [factor.matrix(c_NP) for factor, c_NP in pairs] or [csr_array((self.n, 0))]
        ends = np.cumsum([0, *(matrix.shape[1] for matrix in z[1:])])
        self.q = int(ends[-1])
        self.slices = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        width = len(self.factors[0].names) if self.factors else 1
        across = [(z[0].T @ matrix).toarray() for matrix in z[1:]]
        self.a12_LPM = np.hstack([*across, z[0].T @ dense_NM]).reshape(
            -1, width, self.q + self.p + 1
        )
        self.a11_LPP = _own_blocks(self.factors[0], columns[0]) if self.factors else _NO_BLOCKS
        self.a22_MM = _gram(z[1:], dense_NM)

    def unpack(self, theta: Array) -> list[Array]:
        """Return Lambda_f for every factor, in columns of unit size."""
        found, start = [], 0
        for (rows, columns), factor in zip(self.free, self.factors, strict=True):
            template = np.zeros(factor.free_PP.shape)
            template[rows, columns] = theta[start : start + len(rows)]
            start += len(rows)
            found.append(template)
        return found

    def pack(self, lambdas: Sequence[Array]) -> Array:
        """Return theta, the inverse of `unpack`."""
        parts = [m[rows, columns] for m, (rows, columns) in zip(lambdas, self.free, strict=True)]
        return np.concatenate([np.empty(0), *parts])

    def scaled(self, rows_M: Array, lambdas: list[Array]) -> Array:
        """Return an array (..., M) times diag(Lambda of the other factors, I)."""
        found = rows_M.copy()
        for block, template in zip(self.slices, lambdas[1:], strict=True):
            shape = (*rows_M.shape[:-1], -1, len(template))
            part = rows_M[..., block].reshape(shape)
            product = part * template[0, 0] if len(template) == 1 else part @ template
            found[..., block] = product.reshape(rows_M[..., block].shape)
        return found


def evaluate(problem: Problem, theta: Array) -> Evaluation:
    """Return deviance and derivatives at theta.

    Raises:
        numpy.linalg.LinAlgError: theta is so large that the dense part loses definiteness.
    """
    lambdas = problem.unpack(theta)
    reduced = _absorb(problem, lambdas[0] if lambdas else np.zeros((1, 1)))
    chol_MM = _factorised(problem, reduced.u_MM, lambdas)
    m = problem.q + (problem.p if problem.reml else 0)
    log_det = reduced.log_det + 2 * float(np.log(np.diagonal(chol_MM)[:m]).sum())
    r2 = float(chol_MM[-1, -1] ** 2)
    inverse_MM = inverse(chol_MM[:m, :m])
    gamma_M = problem.scaled(_coefficients(chol_MM), [t.T for t in lambdas])
    left = [problem.scaled(rows, lambdas)[..., :m] for rows in reduced.rows]
    pairs = zip(reduced.sums, left, strict=True)
    traces = tuple(total - contracted(w_LPM, inverse_MM) for total, w_LPM in pairs)
    scores = tuple(rows[..., -1] - rows[..., :-1] @ gamma_M for rows in reduced.rows)
    squares = tuple(a_LP.T @ a_LP for a_LP in scores)
    df = problem.df
    slopes = tuple(t - a * (df / r2) for t, a in zip(traces, squares, strict=True))
    return Evaluation(
        deviance=problem.constant + log_det + df * (1 + np.log(2 * np.pi * r2 / df)),
        gradient=problem.pack([2 * d @ m for d, m in zip(slopes, lambdas, strict=True)]),
        slopes=slopes,
        traces=traces,
        squares=squares,
        scores=scores,
        r2=r2,
        chol_MM=chol_MM,
    )


def solution(problem: Problem, theta: Array, at: Evaluation) -> Solution:
    """Return coefficients, their covariance and the conditional modes, back in the data's units."""
    q, fixed = problem.q, problem.fixed
    x_BB = at.chol_MM[q:-1, q:-1]
    half_BB = solve_triangular(x_BB, solve_triangular(fixed.r_BB, np.eye(problem.p)).T, lower=True)
    step_B = solve_triangular(fixed.r_BB, _coefficients(at.chol_MM)[q:])
    pairs = zip(problem.unpack(theta), problem.scales, strict=True)
    lambdas = tuple(template / scale[:, None] for template, scale in pairs)
    triples = zip(at.scores, lambdas, problem.scales, strict=True)
    modes = tuple((a_LP * s) @ (lam @ lam.T) for a_LP, lam, s in triples)
    return Solution(fixed.ols_B + step_B, half_BB.T @ half_BB, lambdas, modes)


def _absorb(problem: Problem, template: Array) -> _Reduced:
    """Return the cross products given the first factor: V_1 = I + Z_1 Lambda_1 Lambda_1' Z_1'."""
    a11_LPP, a12_LPM = problem.a11_LPP, problem.a12_LPM
    inverse_LPP, log_det = sweep(template.T @ a11_LPP @ template + np.eye(len(template)))
    phi_LPP = template @ inverse_LPP @ template.T
    h_LPM = times(phi_LPP, a12_LPM)
    m = a12_LPM.shape[-1]
    u_MM = problem.a22_MM - a12_LPM.reshape(-1, m).T @ h_LPM.reshape(-1, m)
    sums, rows = [], []
    if problem.factors:
        sums.append((a11_LPP - a11_LPP @ phi_LPP @ a11_LPP).sum(axis=0))
        rows.append(a12_LPM - times(a11_LPP, h_LPM))
    for block, factor in zip(problem.slices, problem.factors[1:], strict=True):
        levels, width = len(factor.levels), len(factor.names)
        own = u_MM[block, block].reshape(levels, width, levels, width)
        sums.append(np.einsum("lalb->ab", own))
        rows.append(u_MM[block].reshape(levels, width, m))
    return _Reduced(log_det, u_MM, sums, rows)


def _factorised(problem: Problem, u_MM: Array, lambdas: list[Array]) -> Array:
    """Return the lower Cholesky factor of Lambda' U Lambda + I, X and y carried along."""
    s_MM = problem.scaled(problem.scaled(u_MM, lambdas).T, lambdas)
    s_MM[np.arange(problem.q), np.arange(problem.q)] += 1
    chol_MM, failed = lapack.dpotrf(s_MM, lower=1, clean=1)
    if failed:
        raise np.linalg.LinAlgError("the dense part is not positive definite")
    return chol_MM


def _coefficients(chol_MM: Array) -> Array:
    """Return [u of the other factors, beta] from the factor whose last row is y."""
    k = len(chol_MM) - 1
    return solve_triangular(chol_MM[:k, :k], chol_MM[k, :k], lower=True, trans=1)


def _column_major(free_PP: Mask) -> tuple[Array, Array]:
    columns, rows = np.nonzero(free_PP.T)
    return rows.astype(np.intp), columns.astype(np.intp)


def _own_blocks(factor: Factor, columns_NP: Array) -> Array:
    """Return Z_f' Z_f as (L, P, P), which is all of it: a row belongs to one level."""
    products = [
        np.bincount(factor.index_N, a_N * b_N, len(factor.levels)).astype(np.float64)
        for a_N in columns_NP.T
        for b_N in columns_NP.T
    ]
    width = len(factor.names)
    return np.stack(products, axis=1).reshape(-1, width, width)


def _gram(others: list[csr_array], dense_NM: Array) -> Array:
    """Return R' R for R = [Z of the other factors, X, y]."""
    if not others:
        return dense_NM.T @ dense_NM
    z = hstack(others, format="csr")
    corner = z.T @ dense_NM
    return np.block([[(z.T @ z).toarray(), corner], [corner.T, dense_NM.T @ dense_NM]])

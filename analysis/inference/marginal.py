"""Dense cross products under the fitted covariance, for what needs all pairs of random effects.

With rows multiplied by sqrt(W), V = I + Z Lambda Lambda' Z' (relative to sigma^2) and X = Q R,

    A = Z'Z,   C = I + Lambda' A Lambda,   S = Z' V^-1 Z = A - A Lambda C^-1 Lambda' A

and likewise T = Z' V^-1 Q and F = Q' V^-1 Q. No matrix has as many rows as the table: a million
rows cost one product of sparse matrices. Q stands for X because it is well conditioned in any
units; a contrast l' beta is (R^-T l)' gamma.

Letters in names: N rows, L levels, P columns of a factor, B fixed effects, Q columns of Z in all.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse import csr_array, hstack

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.mixed import GlmmFit, MixedFit

MOST_EFFECTS = 4000  # random effects in all; the matrices hold their square


@dataclass(frozen=True, slots=True)
class Marginal:
    """The products of one fit; factors in the order of `problem.factors`."""

    n: int
    s_QQ: Array
    t_QB: Array
    f_BB: Array
    r_BB: Array  # X = Q R
    slices: tuple[slice, ...]  # of every factor's columns of Z, level by level
    relative: tuple[Array, ...]  # Lambda_f Lambda_f', (P, P), in the data's units

    def turned(self, l_B: Array) -> Array:
        """Return a contrast of beta, or several as columns, as one of gamma."""
        found = solve_triangular(self.r_BB, l_B, trans=1)
        return np.asarray(found, dtype=np.float64)

    def back(self, cov_BB: Array) -> Array:
        """Return a covariance of gamma as one of beta."""
        half_BB = solve_triangular(self.r_BB, cov_BB)
        return np.asarray(solve_triangular(self.r_BB, half_BB.T), dtype=np.float64)


def marginal(fit: MixedFit, *, asked: str) -> Marginal:
    """Return the dense cross products of a fit.

    Args:
        fit: a Gaussian fit.
        asked: what they are wanted for, the beginning of an error's line.

    Raises:
        AnalysisError: more than `MOST_EFFECTS` random effects, or a fit that is not Gaussian.
    """
    gaussian_only(fit, asked)
    problem, root_N = fit.problem, root_weights(fit)
    ends = np.cumsum([0, *(f.size for f in problem.factors)])
    if ends[-1] > MOST_EFFECTS:
        raise AnalysisError(
            f"{asked}: {int(ends[-1]):,} random effects; at most {MOST_EFFECTS:,}, because all "
            f"pairs of them are needed"
        )
    slices = tuple(slice(int(a), int(b)) for a, b in pairwise(ends))
    lambdas = relative_factors(fit)
    z = [f.matrix(f.columns_NP * root_N[:, None]) for f in problem.factors]
    z_NQ = csr_array(hstack(z)) if z else csr_array((fit.n, 0))
    a_QQ = np.asarray((z_NQ.T @ z_NQ).toarray(), dtype=np.float64)
    b_QB = np.asarray(z_NQ.T @ problem.fixed.q_NB, dtype=np.float64)
    half_QQ = _times_lambda(a_QQ, slices, lambdas)
    c_QQ = _times_lambda(half_QQ.T, slices, lambdas) + np.eye(len(a_QQ))
    chol_QQ = cholesky(c_QQ, lower=True) if len(a_QQ) else c_QQ
    w_QQ = _lower_solve(chol_QQ, half_QQ.T)
    w_QB = _lower_solve(chol_QQ, _times_lambda(b_QB.T, slices, lambdas).T)
    return Marginal(
        n=fit.n,
        s_QQ=a_QQ - w_QQ.T @ w_QQ,
        t_QB=b_QB - w_QQ.T @ w_QB,
        f_BB=np.eye(problem.p) - w_QB.T @ w_QB,
        r_BB=problem.fixed.r_BB,
        slices=slices,
        relative=tuple(lam @ lam.T for lam in lambdas),
    )


def gaussian_only(fit: MixedFit, asked: str, instead: str = "") -> None:
    """Refuse what only a linear mixed model has.

    Args:
        fit: any.
        asked: what is wanted, the beginning of the error's line.
        instead: what to use where the fit is none, the line's end.

    Raises:
        AnalysisError: the fit is a generalised one.
    """
    if isinstance(fit, GlmmFit):
        end = f"; {instead}" if instead else ""
        raise AnalysisError(f"{asked}: for family=gaussian alone, this is {fit.family}{end}")


def root_weights(fit: MixedFit) -> Array:
    """Return the square roots of the rows' weights, (N,); ones without weights."""
    weights_N = fit.weights_N
    return np.ones(fit.n) if weights_N is None else np.sqrt(weights_N)


def relative_factors(fit: MixedFit) -> list[Array]:
    """Return Lambda_f of every factor in the data's units, in the order of `problem.factors`."""
    pairs = zip(fit.problem.unpack(fit.minimum.theta), fit.problem.scales, strict=True)
    return [template / scale[:, None] for template, scale in pairs]


def _times_lambda(rows_Q: Array, slices: tuple[slice, ...], lambdas: list[Array]) -> Array:
    """Return rows (..., Q) times the block diagonal Lambda."""
    found = np.empty_like(rows_Q)
    for own, lam in zip(slices, lambdas, strict=True):
        part = rows_Q[:, own].reshape(len(rows_Q), -1, len(lam))
        found[:, own] = (part @ lam).reshape(len(rows_Q), -1)
    return found


def _lower_solve(chol_QQ: Array, right: Array) -> Array:
    if not len(chol_QQ):
        return np.zeros_like(right)
    return np.asarray(solve_triangular(chol_QQ, right, lower=True), dtype=np.float64)

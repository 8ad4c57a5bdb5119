"""The same linear mixed model with another response: only what depends on y is recomputed."""

from copy import copy
from dataclasses import replace
from typing import TypeVar

import numpy as np
from scipy.linalg import solve_triangular

from analysis.engine.coupling import Coupling, DenseCoupling
from analysis.engine.dispersion import Dispersed
from analysis.engine.linalg import Array
from analysis.engine.lmm import Problem

Linear = TypeVar("Linear", Problem, Dispersed)


def with_response(problem: Linear, y_N: Array, root_N: Array) -> Linear:
    """Return `problem` for another response; X, Z and their cross products are shared.

    Args:
        problem: any; it is left as it is.
        y_N: the new response.
        root_N: square roots of the rows' known weights, ones without weights.
    """
    if isinstance(problem, Dispersed):
        return Dispersed(with_response(problem.problem, y_N, root_N), problem.basis_NK)
    found, fixed = copy(problem), problem.fixed
    found.__dict__.pop("start", None)  # kept from the other response
    fit_B = fixed.q_NB.T @ (y_N * root_N)
    residual_N = y_N * root_N - fixed.q_NB @ fit_B
    ols_B = solve_triangular(fixed.r_BB, fit_B, check_finite=False) if problem.p else fit_B
    found.fixed = replace(fixed, ols_B=ols_B, residual_N=residual_N)
    if not problem.factors:
        a22_MM = problem.blocks.a22_MM.copy(order="F")
        a22_MM[-1, -1] = residual_N @ residual_N
        found.blocks = replace(problem.blocks, a22_MM=a22_MM)
        return found
    first_LP, *rest = problem.layout.transposed(residual_N)
    a22_MM = problem.blocks.a22_MM.copy(order="F")
    last_M = np.concatenate([*(part.ravel() for part in rest), np.zeros(problem.p)])
    a22_MM[-1, :-1] = a22_MM[:-1, -1] = last_M
    a22_MM[-1, -1] = residual_N @ residual_N
    coupling = _with_last(problem.blocks.coupling, first_LP)
    found.blocks = replace(problem.blocks, coupling=coupling, a22_MM=a22_MM)
    return found


def _with_last(coupling: Coupling, last_LP: Array) -> Coupling:
    """Return the coupling with another last column, that of y."""
    if isinstance(coupling, DenseCoupling):
        a_LPM = coupling.a_LPM.copy()
        a_LPM[..., -1] = last_LP
        return DenseCoupling(a_LPM)
    found = copy(coupling)
    found.border_LPB = coupling.border_LPB.copy()
    found.border_LPB[..., -1] = last_LP
    return found

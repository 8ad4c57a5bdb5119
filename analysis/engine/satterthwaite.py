"""Satterthwaite degrees of freedom of a contrast in a linear mixed model.

Reference: Kuznetsova, Brockhoff and Christensen 2017, J. Stat. Softw. 82(13), section 2. With
V(phi) = sigma^2 (X' V^-1 X)^-1, phi = (theta, sigma), A = 2 H^-1 where H is the Hessian of the
deviance (not profiled over sigma) at the fit, and g the gradient of l' V l by phi,

    df = 2 (l' V l)^2 / (g' A g).

Without random effects this is n - p exactly.
"""

from dataclasses import dataclass

import numpy as np

from analysis.engine.linalg import Array
from analysis.engine.lmm import Evaluation, Problem, evaluate, solution
from analysis.engine.summary import brief

STEP = 1e-4  # of theta, for central differences
LOST = 1e-10  # eigenvalues of H below this share of the largest carry no information


@brief
@dataclass(frozen=True, slots=True)
class Curvature:
    """How V and the deviance bend in phi = (theta, sigma), K + 1 parameters."""

    cov_BB: Array  # V
    jacobian_KBB: Array  # dV / dphi
    phi_cov_KK: Array  # A

    def df(self, l_B: Array) -> float:
        """Return the degrees of freedom of the contrast l' beta."""
        variance = float(l_B @ self.cov_BB @ l_B)
        g_K = l_B @ self.jacobian_KBB @ l_B
        spread = float(g_K @ self.phi_cov_KK @ g_K)
        return 2 * variance**2 / spread if spread > 0 else float("inf")


def curvature(problem: Problem, theta: Array, at: Evaluation) -> Curvature:
    """Return what the degrees of freedom of every contrast of one fit are computed from."""
    sigma = np.sqrt(at.r2 / problem.df)
    jacobian, hessian = [], []
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = STEP * max(1.0, abs(theta[i]))
        pairs = [(moved, evaluate(problem, moved)) for moved in (theta + step, theta - step)]
        cov = [solution(problem, moved, there).cov_BB for moved, there in pairs]
        slope = [_gradient(problem, moved, there, sigma) for moved, there in pairs]
        jacobian.append(sigma**2 * (cov[0] - cov[1]) / (2 * step[i]))
        hessian.append((slope[0] - slope[1]) / (2 * step[i]))
    cov_BB = solution(problem, theta, at).cov_BB
    jacobian.append(2 * sigma * cov_BB)
    # By sigma: d2/dsigma2 of df log sigma^2 + r^2 / sigma^2, at its minimum; the rest by symmetry.
    last = np.array([row[-1] for row in hessian] + [4 * problem.df / sigma**2])
    h_KK = np.vstack([*hessian, last]) if len(theta) else last[None, :]
    h_KK = (h_KK + h_KK.T) / 2
    return Curvature(sigma**2 * cov_BB, np.array(jacobian), 2 * _pseudo_inverse(h_KK))


def _gradient(problem: Problem, theta: Array, at: Evaluation, sigma: float) -> Array:
    """Return the gradient of the deviance by (theta, sigma) at this sigma."""
    lambdas = problem.unpack(theta)
    triples = zip(at.traces, at.squares, lambdas, strict=True)
    by_theta = problem.pack([2 * (t - a / sigma**2) @ lam for t, a, lam in triples])
    return np.append(by_theta, 2 * problem.df / sigma - 2 * at.r2 / sigma**3)


def _pseudo_inverse(h_KK: Array) -> Array:
    values, vectors = np.linalg.eigh(h_KK)
    firm = values > LOST * values.max()
    return (vectors[:, firm] / values[firm]) @ vectors[:, firm].T

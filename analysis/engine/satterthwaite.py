"""Satterthwaite degrees of freedom of a contrast in a linear mixed model.

Reference: Kuznetsova, Brockhoff and Christensen 2017, J. Stat. Softw. 82(13), section 2. With
V(phi) = sigma^2 (X' V^-1 X)^-1, phi = (theta, sigma), or (theta, gamma, sigma) where the residual
variance differs between rows, A = 2 H^-1 where H is the Hessian of the deviance (not profiled over
sigma) at the fit, and g the gradient of l' V l by phi,

    df = 2 (l' V l)^2 / (g' A g).

Without random effects this is n - p exactly. sigma is counted in units of its own estimate, so that
nothing here depends on the unit of the score.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from analysis.engine.linalg import Array
from analysis.engine.summary import brief

STEP = 1e-4  # of theta, for central differences
LOST = 1e-10  # eigenvalues of H below this share of the largest carry no information


class Squares(Protocol):
    """A linear model at one x."""

    @property
    def r2(self) -> float: ...  # noqa: D102


P = TypeVar("P", bound=Squares)


@brief
@dataclass(frozen=True, slots=True)
class Curvature:
    """How V and the deviance bend in phi = (theta, sigma / its estimate), K + 1 parameters."""

    cov_BB: Array  # V
    jacobian_KBB: Array  # dV / dphi
    phi_cov_KK: Array  # A

    def df(self, l_B: Array) -> float:
        """Return the degrees of freedom of the contrast l' beta."""
        variance = float(l_B @ self.cov_BB @ l_B)
        if not variance > 0:
            return float("inf")
        share_K = l_B @ self.jacobian_KBB @ l_B / variance  # squares of either may be no numbers
        spread = float(share_K @ self.phi_cov_KK @ share_K)
        return 2 / spread if spread > 0 else float("inf")


class Varying(Protocol[P]):
    """A linear model as a function of x, its variance parameters but for sigma."""

    df: int

    def evaluate(self, x: Array) -> P:
        """Return the deviance at x and what the rest is read from."""

    def covariance(self, x: Array, at: P) -> Array:
        """Return the covariance of beta over sigma^2."""

    def slope(self, x: Array, at: P, variance: float) -> Array:
        """Return the gradient of the deviance by x at this sigma^2."""


def curvature(problem: Varying[P], x: Array, at: P) -> Curvature:
    """Return what the degrees of freedom of every contrast of one fit are computed from."""
    variance = at.r2 / problem.df
    jacobian, hessian = [], []
    for i in range(len(x)):
        step = np.zeros_like(x)
        step[i] = STEP * max(1.0, abs(x[i]))
        pairs = [(moved, problem.evaluate(moved)) for moved in (x + step, x - step)]
        cov = [problem.covariance(*pair) for pair in pairs]
        slope = [
            np.append(problem.slope(*pair, variance), 2 * problem.df - 2 * pair[1].r2 / variance)
            for pair in pairs
        ]
        jacobian.append(variance * (cov[0] - cov[1]) / (2 * step[i]))
        hessian.append((slope[0] - slope[1]) / (2 * step[i]))
    cov_BB = problem.covariance(x, at)
    jacobian.append(2 * variance * cov_BB)
    # By s = sigma / its estimate: the second derivative of df log s^2 + df / s^2 at s = 1; the rest
    # by symmetry.
    last = np.array([row[-1] for row in hessian] + [4.0 * problem.df])
    h_KK = np.vstack([*hessian, last]) if len(x) else last[None, :]
    h_KK = (h_KK + h_KK.T) / 2
    return Curvature(variance * cov_BB, np.array(jacobian), 2 * _pseudo_inverse(h_KK))


def _pseudo_inverse(h_KK: Array) -> Array:
    values, vectors = np.linalg.eigh(h_KK)
    firm = values > LOST * values.max()
    return (vectors[:, firm] / values[firm]) @ vectors[:, firm].T

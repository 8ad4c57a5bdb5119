"""The likelihood of a model with one scalar random effect, by adaptive Gauss-Hermite quadrature.

Laplace's approximation takes each level's posterior for a normal one. It is poor where a level has
few rows; there the integral over its effect u is had from K points t, weights w (Liu and Pierce
1994, Biometrika 81(3); lme4's nAGQ), about the mode u^ in units of its SD, s = H^-1/2:

    log of integral phi(u) f(y | u) du
        = log sum_k s w_k exp(t_k^2 - u_k^2 / 2 + l(u_k)) pi^-1/2,     u_k = u^ + sqrt(2) s t_k,

which is Laplace's approximation for K = 1. The gradient is that of this very sum, whose points move
with the parameters.

Letters in names: N rows, L levels, K points.
"""

from dataclasses import dataclass

import numpy as np

from analysis.engine.families import Family, Inner, Outer
from analysis.engine.linalg import Array, Index
from analysis.engine.summary import brief


@brief
@dataclass(frozen=True, slots=True)
class OneEffect:
    """A model with one scalar random effect, at the modes of its levels."""

    family: Family
    tau: float
    theta: float
    index_N: Index  # the level of every row
    z_N: Array
    u_L: Array
    eta_N: Array
    inner: Inner
    outer: Outer

    def sums(self, v_N: Array) -> Array:
        """Return the sum over the rows of every level."""
        found = np.bincount(self.index_N, v_N, len(self.u_L))
        return found.astype(np.float64, copy=False)


def integrated(at: OneEffect, points: int) -> tuple[float, float, Array, float]:
    """Return the deviance, and half its fall by theta, by eta of every row, and by tau."""
    index_N, z_N, theta, inner, outer = at.index_N, at.z_N, at.theta, at.inner, at.outer
    s_L = 1 / np.sqrt(1 + theta**2 * at.sums(inner.weight_N * z_N**2))
    sum_of = _Sums(at)
    for t, w in zip(*np.polynomial.hermite.hermgauss(points), strict=True):
        sum_of.add(at.u_L + np.sqrt(2) * s_L * t, float(t), float(w))
    total_L = sum_of.total_L
    deviance = -2 * float((np.log(total_L * s_L / np.sqrt(np.pi)) + sum_of.peak_L).sum())
    # What the points' places and their scale do to the sum; nothing to the integral.
    by_h_L = -(s_L**3) / 2 * (1 / s_L + sum_of.by_scale_L / total_L)
    by_u_L = sum_of.by_place_L / total_L + by_h_L * theta**3 * at.sums(z_N**3 * outer.bend_N)
    by_score_N = (by_u_L * s_L**2)[index_N] * theta * z_N  # the mode moves by H^-1
    by_weight_N = by_h_L[index_N] * theta**2 * z_N**2
    moved_N = by_weight_N * outer.bend_N - by_score_N * inner.weight_N
    by_theta_N = sum_of.by_u_N / total_L[index_N] + moved_N * z_N * at.u_L[index_N]
    by_theta_N += (by_u_L * s_L**2)[index_N] * z_N * inner.score_N
    by_theta_N += by_h_L[index_N] * 2 * theta * z_N**2 * inner.weight_N
    by_eta_N, by_tau = sum_of.by_eta_N / total_L[index_N] + moved_N, 0.0
    if outer.tau is not None:
        by_tau_N = sum_of.by_tau_N / total_L[index_N]
        by_tau_N += by_score_N * outer.tau.score_N + by_weight_N * outer.tau.weight_N
        by_tau = float(by_tau_N.sum())
    return deviance, float(by_theta_N.sum()), by_eta_N, by_tau


class _Sums:
    """Sums over the points, each relative to the integrand at the mode."""

    def __init__(self, at: OneEffect) -> None:
        self.at = at
        self.fixed_N = at.eta_N - at.theta * at.z_N * at.u_L[at.index_N]
        self.peak_L = at.sums(at.inner.loglik_N) - at.u_L**2 / 2
        self.total_L, self.by_place_L, self.by_scale_L = np.zeros((3, len(at.u_L)))
        self.by_eta_N, self.by_u_N, self.by_tau_N = np.zeros((3, len(at.eta_N)))

    def add(self, u_L: Array, t: float, w: float) -> None:
        """Add what the integrand is at u, and how it moves."""
        at, index_N = self.at, self.at.index_N
        eta_N = self.fixed_N + at.theta * at.z_N * u_L[index_N]
        inner = at.family.inner(eta_N, at.tau)
        log_L = at.sums(inner.loglik_N) - u_L**2 / 2 - self.peak_L
        share_L = np.exp(np.log(w) + t**2 + log_L)
        pull_N = share_L[index_N] * inner.score_N
        along_L = at.theta * at.sums(pull_N * at.z_N) - share_L * u_L
        self.total_L += share_L
        self.by_place_L += along_L
        self.by_scale_L += np.sqrt(2) * t * along_L
        self.by_eta_N += pull_N
        self.by_u_N += pull_N * at.z_N * u_L[index_N]
        by_tau = at.family.outer(eta_N, at.tau).tau if at.family.dispersed else None
        if by_tau is not None:
            self.by_tau_N += share_L[index_N] * by_tau.loglik_N

"""Kenward and Roger's covariance and degrees of freedom for fixed effects of a REML fit.

Reference: Kenward and Roger 1997, Biometrics 53(3), 983-997; the covariance is linear in its
parameters, so their second derivatives are zero. With Sigma = sum_i psi_i G_i, where G_0 = W^-1
belongs to the residual and every free entry of a random effect's covariance has its own G_i,

    Phi  = (X' Sigma^-1 X)^-1                    P_i  = -X' Sigma^-1 G_i Sigma^-1 X
    Q_ij = X' Sigma^-1 G_i Sigma^-1 G_j Sigma^-1 X
    W^-1 = 1/2 [tr(Sigma^-1 G_i Sigma^-1 G_j) - 2 tr(Phi Q_ij) + tr(Phi P_i Phi P_j)]
    Phi_A = Phi + 2 Phi [sum_ij W_ij (Q_ij - P_i Phi P_j)] Phi

The textbook way multiplies N x N matrices. Here G_i = Z E_i Z' and G_0 = V - sum_i gamma_i G_i
turn all of it into products of S = Z' V^-1 Z and T = Z' V^-1 X (`inference.marginal`), so that the
limit is on random effects, not on rows. Everything is relative to sigma^2 and in X's orthogonal
columns until the end.

Letters in names: Q random effects, B fixed effects, K covariance parameters, C contrasts.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from scipy import stats

from analysis.engine.layout import Factor
from analysis.engine.linalg import Array, Index
from analysis.engine.lmm import Problem
from analysis.errors import AnalysisError
from analysis.inference.marginal import Marginal, gaussian_only, marginal
from analysis.mixed import MixedFit

MOST_PARAMETERS = 60  # covariance parameters; the cost grows with their square
LOST = 1e-10  # eigenvalues below this share of the largest carry no information
NEAR_TWO = 1e-2  # degrees of freedom at which F has no mean to match
RULE = "df=kenward-roger"


@dataclass(frozen=True, slots=True)
class ScaledF:
    """Kenward and Roger's F test: `scale` times the Wald F is referred to F(df, df_residual)."""

    statistic: float  # scaled already
    df: int
    df_residual: float
    scale: float
    p: float


@dataclass(frozen=True, slots=True)
class KenwardRoger:
    """What the tests of every contrast of one fit are computed from, in X's orthogonal columns."""

    products: Marginal
    sigma2: float
    phi_BB: Array
    adjusted_BB: Array  # Phi_A
    p_KBB: Array
    w_KK: Array

    @property
    def cov(self) -> Array:
        """The adjusted covariance of the fixed effects, (B, B)."""
        return self.sigma2 * self.products.back(self.adjusted_BB)

    def se(self, l_B: Array) -> float:
        """Return the adjusted standard error of l' beta."""
        l_B = self.products.turned(l_B)
        return float(np.sqrt(max(self.sigma2 * float(l_B @ self.adjusted_BB @ l_B), 0.0)))

    def df(self, l_B: Array) -> float:
        """Return the degrees of freedom of l' beta."""
        return self._match(self.products.turned(l_B)[None])[0]

    def test(self, l_CB: Array, beta_B: Array) -> ScaledF:
        """Return the F test of l beta = 0; contrasts that others determine are not counted."""
        turned_CB = self.products.turned(l_CB.T).T
        values, vectors = np.linalg.eigh(turned_CB @ self.adjusted_BB @ turned_CB.T)
        firm = values > LOST * values.max()
        own_CB = vectors[:, firm].T @ turned_CB
        estimate_C = vectors[:, firm].T @ (l_CB @ beta_B)
        df, scale = self._match(own_CB)
        f = scale * float((estimate_C**2 / values[firm]).mean()) / self.sigma2
        q = int(firm.sum())
        return ScaledF(f, q, df, scale, float(stats.f.sf(f, q, df)))

    def _match(self, l_CB: Array) -> tuple[float, float]:
        """Return (m, lambda), which give lambda F the first two moments of F(C, m)."""
        q = len(l_CB)
        half_BC = self.phi_BB @ l_CB.T
        inverse_CC = np.linalg.inv(l_CB @ half_BC)
        seen_KCC = half_BC.T @ self.p_KBB @ half_BC @ inverse_CC
        trace_K = np.trace(seen_KCC, axis1=1, axis2=2)
        a1 = float(trace_K @ self.w_KK @ trace_K)
        pairs_KK = np.einsum("iab,jba->ij", seen_KCC, seen_KCC)
        a2 = float((self.w_KK * pairs_KK).sum())
        return _moments(q, a1, a2)


def _moments(q: int, a1: float, a2: float) -> tuple[float, float]:
    """Return Kenward and Roger's (m, lambda) from A1 and A2, their section 3."""
    if a2 <= 0:  # no covariance parameter moves this contrast's variance
        return float("inf"), 1.0
    b = (a1 + 6 * a2) / (2 * q)
    g = ((q + 1) * a1 - (q + 4) * a2) / ((q + 2) * a2)
    under = 3 * q + 2 * (1 - g)
    c1, c2, c3 = g / under, (q - g) / under, (q + 2 - g) / under
    v0, v1, v2 = 1 + c1 * b, 1 - c2 * b, 1 - c3 * b
    mean = 1 - a2 / q  # 1 / E*
    # For one contrast v1 is 1 - A2 too: together they stay finite when both vanish.
    ratio = 1.0 if abs(v1) < LOST and abs(mean) < LOST else mean / v1
    if v2 == 0:  # rho has no end, and m goes to 4
        return 4.0, 2 * mean
    rho = ratio**2 * (0.0 if abs(v0) < LOST else v0) / v2 / q
    m = 4 + (q + 2) / (q * rho - 1)
    return (m, 1.0) if abs(m - 2) < NEAR_TWO else (m, m * mean / (m - 2))


_KEPT: WeakKeyDictionary[Problem, KenwardRoger] = WeakKeyDictionary()


def kenward_roger(fit: MixedFit) -> KenwardRoger:
    """Return the adjusted covariance and what its tests need; made once for a fit, then kept.

    Raises:
        AnalysisError: the fit is not by REML, or has too many random effects or parameters.
    """
    if fit.problem not in _KEPT:
        _KEPT[fit.problem] = _made(fit)
    return _KEPT[fit.problem]


def _made(fit: MixedFit) -> KenwardRoger:
    gaussian_only(fit, RULE, "its tests are normal ones, df=normal")
    if fit.design.dispersion is not None:
        raise AnalysisError(
            f"{RULE}: not for a fit with dispersion={fit.design.dispersion.formula}; use "
            f"df=satterthwaite, which takes it into account"
        )
    if fit.method != "REML":
        raise AnalysisError(f"{RULE}: needs a fit by REML, not by {fit.method}")
    entries = sum(int(f.free_PP.sum()) for f in fit.problem.factors)
    if entries > MOST_PARAMETERS:
        raise AnalysisError(
            f"{RULE}: {entries} covariance parameters; at most {MOST_PARAMETERS}. Use "
            f"df=satterthwaite, which has no such limit"
        )
    products = marginal(fit, asked=f"{RULE} (df=satterthwaite has no such limit)")
    p_KBB, q_KKBB, t_KK = _derivatives(products, fit.problem.factors)
    phi_BB: Array = np.linalg.inv(products.f_BB).astype(np.float64)
    seen_KBB = phi_BB @ p_KBB
    information = (
        t_KK
        - 2 * np.einsum("ab,ijba->ij", phi_BB, q_KKBB)
        + np.einsum("iab,jba->ij", seen_KBB, seen_KBB)
    )
    w_KK = 2 * _pseudo_inverse((information + information.T) / 2)
    twice_BB = np.einsum("ij,iab,jbc->ac", w_KK, p_KBB, seen_KBB, optimize=True)
    u_BB = np.einsum("ij,ijab->ab", w_KK, q_KKBB) - twice_BB
    adjusted_BB: Array = phi_BB + 2 * phi_BB @ ((u_BB + u_BB.T) / 2) @ phi_BB
    return KenwardRoger(products, fit.sigma**2, phi_BB, adjusted_BB, p_KBB, w_KK)


def _derivatives(products: Marginal, factors: tuple[Factor, ...]) -> tuple[Array, Array, Array]:
    """Return -P_i, Q_ij and tr(V^-1 G_i V^-1 G_j), the residual first.

    They are found for (V, G_1, ...) and then turned, because G_0 = V - sum_i gamma_i G_i.
    """
    parts, gamma_K = _entries(products, factors)
    s_QQ, t_QB = products.s_QQ, products.t_QB
    k, b = len(parts) + 1, t_QB.shape[1]
    p_KBB, q_KKBB, t_KK = np.zeros((k, b, b)), np.zeros((k, k, b, b)), np.zeros((k, k))
    p_KBB[0] = q_KKBB[0, 0] = products.f_BB
    t_KK[0, 0] = products.n
    for i, (rows, columns) in enumerate(parts, start=1):
        p_KBB[i] = q_KKBB[0, i] = q_KKBB[i, 0] = t_QB[rows].T @ t_QB[columns]
        t_KK[0, i] = t_KK[i, 0] = s_QQ[columns, rows].sum()
        for j, (rows_j, columns_j) in enumerate(parts[:i], start=1):
            middle = s_QQ[np.ix_(columns, rows_j)]
            t_KK[i, j] = t_KK[j, i] = (s_QQ[np.ix_(columns_j, rows)].T * middle).sum()
            q_KKBB[i, j] = t_QB[rows].T @ middle @ t_QB[columns_j]
            q_KKBB[j, i] = q_KKBB[i, j].T
    turn_KK = np.eye(k)
    turn_KK[0, 1:] = -gamma_K
    return (
        np.einsum("ij,jab->iab", turn_KK, p_KBB),
        np.einsum("ik,jl,klab->ijab", turn_KK, turn_KK, q_KKBB, optimize=True),
        turn_KK @ t_KK @ turn_KK.T,
    )


def _entries(
    products: Marginal, factors: tuple[Factor, ...]
) -> tuple[list[tuple[Index, Index]], Array]:
    """Return E_i as the places of its ones, (rows, columns), and gamma_i, for every free entry."""
    parts, gamma = [], []
    triples = zip(factors, products.slices, products.relative, strict=True)
    for factor, own, relative in triples:
        for a, b in zip(*np.nonzero(factor.free_PP), strict=True):
            first = np.arange(own.start + a, own.stop, len(factor.names), dtype=np.intp)
            second = first - a + b
            both = a != b
            rows = np.concatenate([first, second]) if both else first
            columns = np.concatenate([second, first]) if both else second
            parts.append((rows, columns))
            gamma.append(relative[a, b])
    return parts, np.array(gamma, dtype=np.float64)


def _pseudo_inverse(symmetric_KK: Array) -> Array:
    """Return the inverse; parameters may differ in size by many orders, so they are scaled."""
    size = np.sqrt(np.maximum(np.diagonal(symmetric_KK), np.finfo(np.float64).tiny))
    values, vectors = np.linalg.eigh(symmetric_KK / np.outer(size, size))
    firm = values > LOST * values.max()
    return ((vectors[:, firm] / values[firm]) @ vectors[:, firm].T) / np.outer(size, size)

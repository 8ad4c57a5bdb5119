"""How much a linear mixed model explains, and predictions and random effects with their errors.

R2 of Nakagawa and Schielzeth (2013, Methods Ecol. Evol. 4(2)), with Johnson's (2014, ibid. 5(9))
mean variance for random slopes: of the variance of the fixed part f, the mean over rows of the
random part z' Sigma z, and the residual e,

    marginal = f / (f + r + e)      conditional = (f + r) / (f + r + e)     ICC = r / (r + e)

A random effect's standard error is conditional on beta and theta, as lme4's condVar: the root of
the diagonal of sigma^2 Lambda C^-1 Lambda', C = I + Lambda' Z' W Z Lambda. That of a fitted value
adds what beta's error brings, with the random effects' answer to it.

Letters in names: N rows, L levels, P columns of a factor, Q columns of Z, B fixed effects.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.blocked import inverse_of_leading, sandwiched
from analysis.engine.linalg import Array, symmetric
from analysis.inference.estimates import LEVEL
from analysis.inference.marginal import marginal, relative_factors
from analysis.mixed import MixedFit


@dataclass(frozen=True, slots=True)
class Explained:
    """Shares of the score's variance; `icc` of what the fixed effects leave, `by_group` of it."""

    marginal: float  # R2 of the fixed effects
    conditional: float  # R2 of fixed and random effects
    icc: float
    by_group: dict[str, float]


def explained(fit: MixedFit) -> Explained:
    """Return R2 and intraclass correlations; the residual variance is its mean over rows."""
    fixed_N = fit.design.X_NB[:, fit.problem.fixed.kept] @ fit.fixef.to_numpy()
    fixed = float(np.var(fixed_N, ddof=1))
    random = {f.group: _mean_variance(fit, f.group) for f in fit.problem.factors}
    total = sum(random.values())
    weights_N = fit.design.weights_N
    noise = fit.sigma**2 * (1.0 if weights_N is None else float(np.mean(1 / weights_N)))
    return Explained(
        marginal=fixed / (fixed + total + noise),
        conditional=(fixed + total) / (fixed + total + noise),
        icc=total / (total + noise),
        by_group={group: own / (total + noise) for group, own in random.items()},
    )


def _mean_variance(fit: MixedFit, group: str) -> float:
    """Return the mean over rows of z' Sigma z."""
    factor = next(f for f in fit.problem.factors if f.group == group)
    c_NP = factor.columns_NP
    return float((c_NP @ fit.random[group].cov.to_numpy() * c_NP).sum() / len(c_NP))


def random_effects(fit: MixedFit, *, level: float = LEVEL) -> pd.DataFrame:
    """Return one row per random effect: group, level, name, estimate, se, low, high.

    The intervals are normal and conditional on beta and theta, as lme4's dotplot draws them.
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    parts = []
    for factor, cov_LPP in zip(fit.problem.factors, conditional_covariances(fit), strict=True):
        modes = fit.random[factor.group].modes
        se_LP = np.sqrt(np.maximum(np.einsum("lpp->lp", cov_LPP), 0.0))
        part = pd.DataFrame(
            {
                "group": factor.group,
                "level": np.repeat(np.array(factor.levels, dtype=object), len(factor.names)),
                "name": list(factor.names) * len(factor.levels),
                "estimate": modes.to_numpy().ravel(),
                "se": se_LP.ravel(),
            }
        )
        parts.append(part)
    columns = ["group", "level", "name", "estimate", "se"]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return found.assign(
        low=found["estimate"] - z * found["se"], high=found["estimate"] + z * found["se"]
    )


def conditional_covariances(fit: MixedFit) -> list[Array]:
    """Return the covariance of every level's random effects given beta, (L, P, P) a factor.

    It works on the blocked factor, so that any model that could be fitted has them.
    """
    problem = fit.problem
    if not problem.factors:
        return []
    lambdas, layout, at = problem.unpack(fit.minimum.theta), problem.layout, fit.minimum.at
    inverse_MM = inverse_of_leading(at.chol_MM, problem.q)
    k_MM = sandwiched(layout, inverse_MM, [template.T for template in lambdas])
    form_LPP = problem.blocks.coupling.quadratic(k_MM)
    found = [at.phi_LPP + at.phi_LPP @ form_LPP @ at.phi_LPP]
    whole_MM = symmetric(k_MM)
    for own, template in zip(layout.slices, lambdas[1:], strict=True):
        p = len(template)
        part = whole_MM[own, own].reshape(-1, p, (own.stop - own.start) // p, p)
        found.append(np.einsum("lalb->lab", part))
    return [
        fit.sigma**2 * cov_LPP / np.outer(scale, scale)
        for cov_LPP, scale in zip(found, problem.scales, strict=True)
    ]


def fitted_values(fit: MixedFit, *, level: float = LEVEL) -> pd.DataFrame:
    """Return every row's fitted value, random effects included: fitted, se, low, high.

    The standard error is of x' beta + z' b about its truth, given theta: with G = Lambda Lambda'
    and c = x - X' V^-1 Z G z, sigma^2 (z' (G - G S G) z + c' (X' V^-1 X)^-1 c).

    Raises:
        AnalysisError: too many random effects, see `analysis.inference.marginal`.
    """
    products = marginal(fit, asked="standard errors of fitted values")
    q_NB = fit.design.X_NB[:, fit.problem.fixed.kept] @ np.linalg.inv(products.r_BB)
    zg_NQ = np.zeros((fit.n, len(products.s_QQ)))
    own_N = np.zeros(fit.n)
    rows = np.arange(fit.n)
    for f, own, lam in zip(
        fit.problem.factors, products.slices, relative_factors(fit), strict=True
    ):
        turned_NP = f.columns_NP @ (lam @ lam.T)
        own_N += (turned_NP * f.columns_NP).sum(axis=1)
        for p in range(len(f.names)):
            zg_NQ[rows, own.start + f.index_N * len(f.names) + p] = turned_NP[:, p]
    own_N -= np.einsum("nq,nq->n", zg_NQ @ products.s_QQ, zg_NQ)
    c_NB = q_NB - zg_NQ @ products.t_QB
    own_N += (c_NB @ np.linalg.inv(products.f_BB) * c_NB).sum(axis=1)
    se = fit.sigma * np.sqrt(np.maximum(own_N, 0.0))
    return _interval(fit.fitted.to_numpy(), se, level, index=fit.design.rows)


def predicted(fit: MixedFit, rows: pd.DataFrame, *, level: float = LEVEL) -> pd.DataFrame:
    """Return the mean score at other rows, random effects at zero: fitted, se, low, high.

    A row whose mean the fitted table does not determine is NaN. The intervals are normal.
    """
    l_NB = fit.matrix(rows)
    se = np.sqrt(np.einsum("na,ab,nb->n", l_NB, fit.cov.to_numpy(), l_NB))
    return _interval(l_NB @ fit.fixef.to_numpy(), se, level, index=rows.index)


def _interval(
    fitted_N: Array, se_N: Array, level: float, *, index: "pd.Index[int]"
) -> pd.DataFrame:
    half_N = float(stats.norm.ppf((1 + level) / 2)) * se_N
    found = {"fitted": fitted_N, "se": se_N, "low": fitted_N - half_N, "high": fitted_N + half_N}
    return pd.DataFrame(found, index=index)

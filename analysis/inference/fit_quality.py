"""R2, ICC, predictions and random effects of a mixed model, with standard errors.

R2 of Nakagawa and Schielzeth (2013, Methods Ecol. Evol. 4(2)), with Johnson's (2014, ibid. 5(9))
mean variance for random slopes: of the variance of the fixed part f, the mean over rows of the
random part z' Sigma z, and the residual e,

    marginal = f / (f + r + e)      conditional = (f + r) / (f + r + e)     ICC = r / (r + e)

Of a generalised model all three are on the link's scale (Nakagawa, Johnson and Schielzeth 2017, J.
R. Soc. Interface 14(134)): e is pi^2 / 3 for a binomial, and by the delta method
1 / ((1 + phi) mu (1 - mu)) for a beta, mu the mean score of the fixed part and the offset.

An offset is known, not explained: f leaves it out (as R's summary.lm and MuMIn's r.squaredGLMM do),
so that R2 is of the score less its offset. The noise of a beta is evaluated with it, because that
depends on where the scores are: a constant offset only moves the intercept and must not change R2.

A random effect's standard error is conditional on beta and theta, as lme4's condVar: the root of
the diagonal of sigma^2 Lambda C^-1 Lambda', C = I + Lambda' Z' W Z Lambda. That of a fitted value
adds what beta's error brings, with the random effects' answer to it. W are the observed weights of
a generalised model, sigma is one, and fitted values are carried back to the score's scale
(`inference.scale`).

Letters in names: N rows, L levels, P columns of a factor, Q columns of Z, B fixed effects.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit

from analysis.engine.blocked import inverse_of_leading, sandwiched
from analysis.engine.formula import offset_for
from analysis.engine.linalg import Array, symmetric
from analysis.inference.estimates import LEVEL
from analysis.inference.marginal import marginal, relative_factors
from analysis.inference.scale import scale_of
from analysis.mixed import GlmmFit, MixedFit


@dataclass(frozen=True, slots=True)
class Explained:
    """Shares of the score's variance; `icc` of what the fixed effects leave, `by_group` of it."""

    marginal: float  # R2 of the fixed effects
    conditional: float  # R2 of fixed and random effects
    icc: float
    by_group: dict[str, float]


def explained(fit: MixedFit) -> Explained:
    """Return R2 and intraclass correlations, on the link's scale.

    The one place where they are computed. The residual variance is its mean over rows; of a beta
    with exact 0 and 1 modelled apart, the shares are of the scores between them.

    Args:
        fit: of any family, with or without random effects and offset.
    """
    fixed_N = fit.design.X_NB[:, fit.problem.fixed.kept] @ fit.fixef.to_numpy()
    fixed = float(np.var(fixed_N, ddof=1))
    random = {f.group: _mean_variance(fit, f.group) for f in fit.problem.factors}
    total = sum(random.values())
    noise = _noise(fit, fixed_N)
    return Explained(
        marginal=fixed / (fixed + total + noise),
        conditional=(fixed + total) / (fixed + total + noise),
        icc=total / (total + noise),
        by_group={group: own / (total + noise) for group, own in random.items()},
    )


def _noise(fit: MixedFit, fixed_N: Array) -> float:
    """Return the residual variance, on the link's scale."""
    if isinstance(fit, GlmmFit):
        if not fit.problem.family.dispersed:
            return float(np.pi**2 / 3)
        offset_N = 0.0 if fit.design.offset_N is None else fit.design.offset_N
        mu = float(expit(fixed_N + offset_N).mean())
        return 1 / ((1 + fit.phi) * mu * (1 - mu))
    weights_N = fit.weights_N
    return fit.sigma**2 * (1.0 if weights_N is None else float(np.mean(1 / weights_N)))


def _mean_variance(fit: MixedFit, group: str) -> float:
    """Return the mean over rows of z' Sigma z."""
    factor = next(f for f in fit.problem.factors if f.group == group)
    c_NP = factor.columns_NP
    return float((c_NP @ fit.random[group].cov.to_numpy() * c_NP).sum() / len(c_NP))


def random_effects(fit: MixedFit, *, level: float = LEVEL) -> pd.DataFrame:
    """Return one row per random effect: group, level, name, estimate, se, low, high.

    Args:
        fit: a fitted model.
        level: of the intervals, which are normal and conditional on beta and theta, as those of
            lme4's dotplot.
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
    if isinstance(fit, GlmmFit):
        pairs = zip(fit.problem.posterior(fit.minimum.x), problem.scales, strict=True)
        return [cov_LPP / np.outer(scale, scale) for cov_LPP, scale in pairs]
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

    Of a generalised model they are on the score's scale.

    The standard error is of x' beta + z' b about its true value, given theta: with G = Lambda
    Lambda' and c = x - X' V^-1 Z G z, sigma^2 (z' (G - G S G) z + c' (X' V^-1 X)^-1 c).

    Args:
        fit: a fitted model.
        level: of the intervals.

    Raises:
        AnalysisError: too many random effects, see `analysis.inference.marginal`.
    """
    if isinstance(fit, GlmmFit):
        variance_N = fit.problem.eta_variances(fit.minimum.x, fit.cov.to_numpy())
        return _back(fit, fit.linear.to_numpy(), np.sqrt(variance_N), level, index=fit.design.rows)
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
    """Return the score at other rows, random effects at zero: fitted, se, low, high.

    It is the mean of a linear model, and of a generalised one the score of a typical level of every
    group.

    Args:
        fit: a fitted model.
        rows: a table with the columns of the formula's right side; a row that the fitted table does
            not determine is NaN.
        level: of the intervals, which are normal.
    """
    l_NB = fit.matrix(rows)
    se = np.sqrt(np.einsum("na,ab,nb->n", l_NB, fit.cov.to_numpy(), l_NB))
    fitted_N = l_NB @ fit.fixef.to_numpy() + offset_for(fit.design, rows)
    if isinstance(fit, GlmmFit):
        return _back(fit, fitted_N, se, level, index=rows.index)
    return _interval(fitted_N, se, level, index=rows.index)


def _back(
    fit: GlmmFit, eta_N: Array, se_N: Array, level: float, *, index: "pd.Index[int]"
) -> pd.DataFrame:
    """Return an interval on the link's scale as one of the score."""
    found, scale = _interval(eta_N, se_N, level, index=index), scale_of(fit)
    found["se"] *= scale.slope(eta_N)
    for name in ("fitted", "low", "high"):
        found[name] = scale.inverse(found[name].to_numpy())
    return found


def _interval(
    fitted_N: Array, se_N: Array, level: float, *, index: "pd.Index[int]"
) -> pd.DataFrame:
    half_N = float(stats.norm.ppf((1 + level) / 2)) * se_N
    found = {"fitted": fitted_N, "se": se_N, "low": fitted_N - half_N, "high": fitted_N + half_N}
    return pd.DataFrame(found, index=index)

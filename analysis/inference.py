"""Tests and intervals from a fit: contrasts, likelihood ratios, equivalence, visible effects.

An interval is estimate +- t se, with Satterthwaite's degrees of freedom (`analysis.satterthwaite`)
unless the normal is asked for. "No effect" is never a large p-value: it is an equivalence test
with its margin (two one-sided tests, Schuirmann 1987), and beside every null stands the smallest
effect that the data would have shown with 80 % power.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import AnalysisError
from analysis.linalg import Array
from analysis.mixed import MixedFit, refit

LEVEL = 0.95
POWER = 0.80
NOT_ESTIMABLE = "not estimable"  # the table does not determine it
DF_RULES = ("satterthwaite", "normal")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its uncertainty."""

    name: str
    estimate: float
    se: float
    df: float
    level: float = LEVEL

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return float(stats.t.ppf((1 + self.level) / 2, self.df)) * self.se

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.estimate - self.half_width

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.estimate + self.half_width

    @property
    def t(self) -> float:
        """The estimate in standard errors."""
        return self.estimate / self.se if self.se > 0 else float("nan")

    @property
    def p(self) -> float:
        """The two-sided p-value against zero."""
        return float(2 * stats.t.sf(abs(self.t), self.df))

    @property
    def visible(self) -> float:
        """The smallest true effect that this design would have shown, see `smallest_visible`."""
        return smallest_visible(self.se, self.df, alpha=1 - self.level)

    def row(self) -> dict[str, float | str]:
        """Return all of it as one row of a table."""
        names = ("name", "estimate", "se", "df", "t", "p", "low", "high", "visible")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests against a margin, and what they say together with the usual test."""

    margin: float
    p: float
    verdict: str  # "no effect beyond the margin", "an effect", "a small effect", "undecided", ...


@dataclass(frozen=True, slots=True)
class Joint:
    """An F test that several contrasts are all zero."""

    statistic: float
    df: int
    df_residual: float  # Satterthwaite's, as Fai and Cornelius (1996) join those of the parts
    p: float


@dataclass(frozen=True, slots=True)
class LikelihoodRatio:
    """A likelihood-ratio test of nested models, both fitted by ML, and their AIC.

    With many coefficients for the number of runs its p-value is too small (24 coefficients and
    120 runs: 12 % of null tables below 0.05). `joint`, the F test of the same coefficients in the
    REML fit, is not; it is there where the models differ in fixed effects alone.
    """

    small: str
    large: str
    statistic: float
    df: int
    p: float
    aic_small: float
    aic_large: float
    note: str
    joint: Joint | None = None


def contrast(
    fit: MixedFit, l_B: Array, *, name: str = "", level: float = LEVEL, df: str = DF_RULES[0]
) -> Estimate:
    """Return the estimate of l' beta; all of it is NaN for a contrast that is not estimable."""
    if df not in DF_RULES:
        raise AnalysisError(f"df={df}: not one of {', '.join(DF_RULES)}")
    if np.isnan(l_B).any():
        return Estimate(name, float("nan"), float("nan"), float("nan"), level)
    se = float(np.sqrt(max(float(l_B @ fit.cov.to_numpy() @ l_B), 0.0)))
    freedom = float("inf") if df == "normal" or se == 0 else fit.curvature.df(l_B)
    return Estimate(name, float(l_B @ fit.fixef.to_numpy()), se, freedom, level)


def coefficients(fit: MixedFit, *, level: float = LEVEL, df: str = DF_RULES[0]) -> pd.DataFrame:
    """Return one row per fixed effect: name, estimate, se, df, t, p, low, high, visible."""
    rows = np.eye(len(fit.fixef))
    named = zip(fit.fixef.index, rows, strict=True)
    found = [contrast(fit, l_B, name=name, level=level, df=df) for name, l_B in named]
    return pd.DataFrame([estimate.row() for estimate in found])


def variances(fit: MixedFit) -> pd.DataFrame:
    """Return one row per standard deviation: group, name, sd, levels; the residual comes last."""
    rows = [
        {"group": group, "name": name, "sd": sd, "levels": len(effect.modes)}
        for group, effect in fit.random.items()
        for name, sd in effect.sd.items()
    ]
    rows.append({"group": "residual", "name": "", "sd": fit.sigma, "levels": fit.n})
    return pd.DataFrame(rows)


def likelihood_ratio(small: MixedFit, large: MixedFit) -> LikelihoodRatio:
    """Return the test of `small` within `large`; both are refitted by ML where they are not.

    Raises:
        AnalysisError: the models are of different rows, or `large` has no more parameters.
    """
    if not small.design.rows.equals(large.design.rows):
        raise AnalysisError("likelihood ratio: the two models are of different rows")
    a, b = refit(small, "ML"), refit(large, "ML")
    df = b.parameters - a.parameters
    if df < 1:
        raise AnalysisError("likelihood ratio: the larger model has no more parameters")
    statistic = max(2 * (b.loglik - a.loglik), 0.0)
    random = len(b.minimum.theta) > len(a.minimum.theta)
    note = "a variance is zero under the small model, so p is too large (at most twofold for one)"
    return LikelihoodRatio(
        small=small.formula,
        large=large.formula,
        statistic=statistic,
        df=df,
        p=float(stats.chi2.sf(statistic, df)),
        aic_small=a.aic,
        aic_large=b.aic,
        note=note if random else "",
        joint=None if random else _extra(small, large),
    )


def joint(fit: MixedFit, l_KB: Array) -> Joint:
    """Return the F test of l beta = 0, its residual df by Satterthwaite's method.

    Reference: Kuznetsova et al. 2017, section 2.2; the contrasts are turned so that they are
    uncorrelated, each has its own df, and theirs are joined.
    """
    values, vectors = np.linalg.eigh(l_KB @ fit.cov.to_numpy() @ l_KB.T)
    firm = values > 1e-10 * values.max()
    turned_KB = vectors[:, firm].T @ l_KB
    statistic = float(((turned_KB @ fit.fixef.to_numpy()) ** 2 / values[firm]).mean())
    parts = np.array([fit.curvature.df(l_B) for l_B in turned_KB])
    return Joint(
        statistic,
        len(parts),
        _joined(parts),
        float(stats.f.sf(statistic, len(parts), _joined(parts))),
    )


def _joined(parts: Array) -> float:
    """Return the df of an F whose one-df parts have these: matches its mean."""
    if np.ptp(parts) < 1e-6 * parts.max() or (parts <= 2).any():
        return float(parts.min())
    total = float((parts / (parts - 2)).sum())
    return 2 * total / (total - len(parts))


def _extra(small: MixedFit, large: MixedFit) -> Joint | None:
    """Return the F test of what `large` has and `small` has not; None where they do not nest."""
    names = large.fixef.index
    extra = np.flatnonzero(~names.isin(small.fixef.index))
    nested = len(extra) + len(small.fixef) == len(names)
    return joint(refit(large, "REML"), np.eye(len(names))[extra]) if nested else None


def equivalence(effect: Estimate, margin: float) -> Equivalence:
    """Return whether `effect` lies within +- margin, at the effect's own level."""
    if margin <= 0:
        raise AnalysisError(f"margin={margin}: must be positive")
    if not effect.se > 0:
        return Equivalence(margin, float("nan"), NOT_ESTIMABLE)
    above = stats.t.sf((effect.estimate + margin) / effect.se, effect.df)
    below = stats.t.cdf((effect.estimate - margin) / effect.se, effect.df)
    p, alpha = float(max(above, below)), 1 - effect.level
    verdicts = {
        (True, True): "a small effect",
        (True, False): "no effect beyond the margin",
        (False, True): "an effect",
        (False, False): "undecided",
    }
    return Equivalence(margin, p, verdicts[p < alpha, effect.p < alpha])


def smallest_visible(se: float, df: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the true effect that a two-sided test at `alpha` finds with this power."""
    return float((stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(power, df)) * se)


def holm(p_values: Sequence[float]) -> Array:
    """Return p-values adjusted for their number (Holm 1979), in the order given; NaN stays NaN."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def table(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """Return estimates as a table, one row each, with p-values adjusted by Holm beside them."""
    found = pd.DataFrame([{**e.row(), "name": name} for name, e in estimates.items()])
    return found.assign(p_holm=holm(found["p"].tolist())) if len(found) else found

"""Tests and intervals from a fit: contrasts, likelihood ratios, equivalence, the MDE.

An interval is estimate +- t se, with Satterthwaite's degrees of freedom (`engine.satterthwaite`)
unless Kenward and Roger's (`inference.kenward_roger`) or the normal are asked for. "No effect" is
never a large p-value: it is an equivalence test with its margin (two one-sided tests, Schuirmann
1987), and beside every null stands the minimum detectable effect (MDE): the true effect that a
test finds with 80 % power. Of a generalised model all of it is on the link's scale and normal: its
df are infinite.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.canonical import eigen
from analysis.engine.linalg import Array
from analysis.engine.ties import settled
from analysis.errors import AnalysisError, nearest
from analysis.inference.boundary import boundary_p
from analysis.inference.kenward_roger import kenward_roger
from analysis.inference.multiplicity import holm as holm
from analysis.mixed import GlmmFit, MixedFit, refit

LEVEL = 0.95
POWER = 0.80
NOT_ESTIMABLE = "not estimable"  # the table does not determine it
DF_RULES = ("satterthwaite", "kenward-roger", "normal")


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
    def mde(self) -> float:
        """The minimum detectable effect of this design, see `minimum_detectable_effect`."""
        return minimum_detectable_effect(self.se, self.df, alpha=1 - self.level)

    def __format__(self, spec: str) -> str:
        """Return the estimate and its interval, each number by `spec`; without one, `str`."""
        if not spec:
            return str(self)
        ends = (settled(value) for value in (self.estimate, self.low, self.high))
        estimate, low, high = (format(value, spec) for value in ends)
        return f"{estimate} ({low} to {high})"

    def row(self) -> dict[str, float | str]:
        """Return all of it as one row of a table."""
        names = ("name", "estimate", "se", "df", "t", "p", "low", "high", "mde")
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
    """Return the estimate of l' beta with its standard error and degrees of freedom.

    Degrees of freedom: Satterthwaite's (Kuznetsova, Brockhoff and Christensen 2017, J. Stat. Softw.
    82(13)) unless another rule is asked for.

    Args:
        fit: a fitted model; of a generalised one the estimate is on the link's scale.
        l_B: weights of the fixed effects, in the order of `fit.fixef`; NaN where not estimable.
        name: what the estimate is called in tables.
        level: of the interval, in (0, 1).
        df: one of `DF_RULES`.

    Returns:
        The estimate in units of the score; all NaN for a contrast that is not estimable.

    Raises:
        AnalysisError: an unknown rule, or Kenward and Roger's for a fit that cannot have it.
    """
    _check_rule(df)
    if np.isnan(l_B).any():
        return Estimate(name, float("nan"), float("nan"), float("nan"), level)
    if df == "kenward-roger":
        se = kenward_roger(fit).se(l_B)
    else:
        se = float(np.sqrt(max(float(l_B @ fit.cov.to_numpy() @ l_B), 0.0)))
    freedom = float("inf") if se == 0 else _freedom(fit, l_B, df)
    return Estimate(name, float(l_B @ fit.fixef.to_numpy()), se, freedom, level)


def covariance(fit: MixedFit, df: str = DF_RULES[0]) -> Array:
    """Return the covariance of `fixef` that goes with a rule for degrees of freedom, (B, B).

    Args:
        fit: a fitted model.
        df: one of `DF_RULES`; "kenward-roger" has an adjusted covariance, the others the plain one.

    Raises:
        AnalysisError: as for `contrast`.
    """
    _check_rule(df)
    return kenward_roger(fit).cov if df == "kenward-roger" else fit.cov.to_numpy()


def _check_rule(df: str) -> None:
    if df not in DF_RULES:
        near = nearest(df, DF_RULES)
        raise AnalysisError(f"df={df}: not one of {', '.join(DF_RULES)}.{near}")


def _freedom(fit: MixedFit, l_B: Array, df: str) -> float:
    if df == "normal":
        return float("inf")
    return kenward_roger(fit).df(l_B) if df == "kenward-roger" else fit.curvature.df(l_B)


def coefficients(fit: MixedFit, *, level: float = LEVEL, df: str = DF_RULES[0]) -> pd.DataFrame:
    """Return one row per fixed effect: name, estimate, se, df, t, p, low, high, mde.

    Args:
        fit: a fitted model.
        level: of the intervals.
        df: one of `DF_RULES`.
    """
    rows = np.eye(len(fit.fixef))
    named = zip(fit.fixef.index, rows, strict=True)
    found = [contrast(fit, l_B, name=name, level=level, df=df) for name, l_B in named]
    return pd.DataFrame([estimate.row() for estimate in found])


def likelihood_ratio(small: MixedFit, large: MixedFit) -> LikelihoodRatio:
    """Return the likelihood-ratio test of `small` within `large`, by ML.

    Where one variance is zero under `small`, p is of the mixture of chi-squares that holds on the
    boundary, see `analysis.inference.boundary`.

    Args:
        small: a fit of the same rows; it is fitted again by ML where it is of REML.
        large: the same with more parameters.

    Raises:
        AnalysisError: the models are of different rows, scores or families, or `large` has no more
            parameters.
    """
    same_family(small, large, "likelihood ratio")
    if not small.design.rows.equals(large.design.rows):
        raise AnalysisError("likelihood ratio: the two models are of different rows")
    a, b = refit(small, "ML"), refit(large, "ML")
    df = b.parameters - a.parameters
    if df < 1:
        raise AnalysisError("likelihood ratio: the larger model has no more parameters")
    statistic = max(2 * (b.loglik - a.loglik), 0.0)
    fixed_alone = df == len(b.fixef) - len(a.fixef)
    p, note = boundary_p(a, b, statistic)
    return LikelihoodRatio(
        small=small.formula,
        large=large.formula,
        statistic=statistic,
        df=df,
        p=p,
        aic_small=a.aic,
        aic_large=b.aic,
        note=note,
        joint=_extra(small, large) if fixed_alone else None,
    )


def same_family(small: MixedFit, large: MixedFit, asked: str) -> None:
    """Refuse two fits that are not of one family and one score.

    Raises:
        AnalysisError: they are not.
    """
    for what in ("family", "score"):
        a, b = (f.family if what == "family" else f.design.parsed.response for f in (small, large))
        if a != b:
            raise AnalysisError(f"{asked}: {what}={a} in one model and {b} in the other")


def joint(fit: MixedFit, l_KB: Array, *, df: str = DF_RULES[0]) -> Joint:
    """Return the F test that several contrasts are zero, l beta = 0.

    The contrasts are rotated so that they are uncorrelated; each has its own Satterthwaite df, and
    theirs are combined into the residual df (Fai and Cornelius 1996; Kuznetsova et al. 2017,
    section 2.2).

    Args:
        fit: a fitted model.
        l_KB: one contrast a row; linearly dependent rows count once.
        df: one of `DF_RULES`; "kenward-roger" has its own F, "normal" an infinite residual df.

    Raises:
        AnalysisError: as for `contrast`; every contrast is zero.
    """
    _check_rule(df)
    if not np.any(l_KB):
        raise AnalysisError("a joint test of contrasts that are all zero: there is nothing to test")
    if df == "kenward-roger":
        found = kenward_roger(fit).test(l_KB, fit.fixef.to_numpy())
        return Joint(found.statistic, found.df, found.df_residual, found.p)
    values, vectors = eigen(l_KB @ fit.cov.to_numpy() @ l_KB.T)
    firm = values > 1e-10 * values.max()
    turned_KB = vectors[:, firm].T @ l_KB
    statistic = float(((turned_KB @ fit.fixef.to_numpy()) ** 2 / values[firm]).mean())
    parts = len(turned_KB)
    if df == "normal" or isinstance(fit, GlmmFit):
        return Joint(statistic, parts, float("inf"), float(stats.chi2.sf(parts * statistic, parts)))
    residual = _joined(np.array([fit.curvature.df(l_B) for l_B in turned_KB]))
    return Joint(statistic, parts, residual, float(stats.f.sf(statistic, parts, residual)))


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
    """Return whether an effect lies within +- margin: two one-sided tests (Schuirmann 1987).

    Args:
        effect: with its standard error and degrees of freedom.
        margin: the smallest effect of interest, positive, in the effect's units.

    Returns:
        The larger of the two one-sided p-values, and a verdict at alpha = 1 - `effect.level` that
        takes the test against zero into account as well.

    Raises:
        AnalysisError: the margin is not positive.
    """
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


def minimum_detectable_effect(se: float, df: float, *, alpha: float = 0.05) -> float:
    """Return the true effect that a two-sided test finds with a power of `POWER`.

    (t_{1 - alpha / 2} + t_{power}) se (Bloom 1995, Eval. Rev. 19(5)): a central t in place of the
    noncentral one, which matters below about ten degrees of freedom.

    Args:
        se: standard error of the estimate.
        df: its degrees of freedom; infinite for a normal one.
        alpha: of the test.
    """
    return float((stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(POWER, df)) * se)

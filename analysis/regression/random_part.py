"""The random part and the fit: intervals and tests of standard deviations, criteria, R2 and ICC.

standard deviations  profile-likelihood intervals (Gaussian, by ML); for other families Wald's
                     on the log scale, from the Hessian of the Laplace deviance
random terms         likelihood-ratio tests by ML, on the boundary where a variance is zero
R2, ICC              `analysis.inference.fit_quality`
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.fits import GlmmFit
from analysis.errors import AnalysisError
from analysis.inference.bootstrap import sd_name
from analysis.inference.estimates import likelihood_ratio
from analysis.inference.fit_quality import explained
from analysis.inference.profile import profile
from analysis.inference.simplify import written
from analysis.mixed import MixedFit, fit_mixed, refit
from analysis.regression.model import Regression, status
from analysis.report import words
from analysis.report.tables import P_VALUE, SIGNIFICANT, Table

SECONDS = 15.0  # that profiles, or the refits without a term, may take by estimate
EVALUATIONS = 400  # of the deviance for one profile interval
SMALLEST = 1e-8  # standard deviation that has a logarithm to speak of


def variance_rows(reg: Regression) -> pd.DataFrame:
    """Return one row per standard deviation, with its interval and its group's share."""
    ends, shares = _intervals(reg), explained(reg.fit).by_group
    rows = []
    for group, effect in reg.fit.random.items():
        for k, (name, sd) in enumerate(effect.sd.items()):
            low, high = ends.get(sd_name(group, str(name)), (np.nan, np.nan))
            share = np.nan if k else shares[group]  # of the group, given once
            rows.append({"group": group, "what": _what(str(name)), "levels": len(effect.modes),
                         "sd": sd, "low": low, "high": high, "share": share})  # fmt: skip
    if not reg.general:
        low, high = ends.get("sd residual", (np.nan, np.nan))
        rest = 1 - sum(shares.values())
        rows.append({"group": "residual", "what": "rows", "levels": reg.fit.n, "sd": reg.fit.sigma,
                     "low": low, "high": high, "share": rest})  # fmt: skip
    return pd.DataFrame(rows)


def _what(name: str) -> str:
    return "intercept" if name == "Intercept" else f"slope of {words.term_text(name)}"


def _intervals(reg: Regression) -> dict[str, tuple[float, float]]:
    if isinstance(reg.fit, GlmmFit):
        return _wald(reg.fit)
    names = [sd_name(f.group, n) for f in reg.fit.problem.factors for n in f.names]
    names.append("sd residual")
    if seconds(reg.fit) * EVALUATIONS * len(names) > SECONDS:
        return {}
    found = profile(reg.fit, names=tuple(names))
    return {str(r["name"]): (r["low"], r["high"]) for r in found.to_dict("records")}


def seconds(fit: MixedFit) -> float:
    """Return how long the deviance takes once, by its size: a report must not hang on the clock.

    Multiply-adds of the first factor's coupling with what is left and of the Cholesky factor of
    that, at the rates of one core of 2024 (measured to a factor of two).
    """
    factors, border, n = fit.problem.factors, len(fit.fixef) + 1, len(fit.fitted)
    dense = sum(f.size for f in factors[1:]) + border
    wide, products = sum(len(f.names) for f in factors[1:]), 0.0
    if factors:
        per_level = min(dense, border + n / len(factors[0].levels) * wide)
        products = factors[0].size * per_level**2
    linear = 3e-4 + 2e-10 * products + 1e-9 * dense**3 / 3
    return 5e-4 + 1e-7 * n + 3 * linear if isinstance(fit, GlmmFit) else linear


def _wald(fit: GlmmFit) -> dict[str, tuple[float, float]]:
    """Return intervals of the standard deviations of intercepts and slopes that stand alone."""
    inside = fit.minimum.inside
    values, vectors = np.linalg.eigh(fit.minimum.hessian)
    if not len(values) or values[0] <= 0:
        return {}
    cov = 2 * (vectors / values) @ vectors.T
    place = np.cumsum(inside) - 1
    z, found, start = float(stats.norm.ppf(0.975)), {}, 0
    for factor in fit.problem.factors:
        alone = not np.tril(factor.free_PP, -1).any()
        for k, name in enumerate(factor.names):
            sd = float(fit.random[factor.group].sd.iloc[k])
            at = start + k
            if alone and inside[at] and sd > SMALLEST:
                # sd is |theta| in other units, so the two have one error on the log scale.
                share = np.sqrt(cov[place[at], place[at]]) / abs(fit.minimum.theta[at])
                found[sd_name(factor.group, name)] = (sd * np.exp(-z * share),
                                                      sd * np.exp(z * share))  # fmt: skip
        start += int(factor.free_PP.sum())
    return found


def variance_table(reg: Regression, rows: pd.DataFrame) -> Table:
    """Return the standard deviations as a table of the report."""
    scale = "logits" if reg.general else f"units of {reg.unit}"
    kind = "Wald's, on the log scale" if reg.general else "profile likelihood, by ML"
    if rows["low"].isna().all():
        kind = "none (too costly here, or not available for correlated effects)"
    note = (
        f"Standard deviations in {scale}; 95 % intervals: {kind}. Share: of the variance that the "
        f"fixed effects leave (intraclass correlation), of a group as a whole."
    )
    heads = words.HEADS | {"sd": "standard deviation"}
    formats = dict.fromkeys(("sd", "low", "high"), SIGNIFICANT) | {"share": ".0%", "levels": ",.0f"}
    return Table(
        "variances", "Standard deviations of the random effects", rows, note, heads, formats
    )


def term_rows(reg: Regression) -> pd.DataFrame:
    """Return the likelihood-ratio test of every random term; empty where it would take too long."""
    parsed, rows = reg.fit.design.parsed, []
    refits = 25 * (1 + len(parsed.bars))
    if not parsed.bars or seconds(reg.fit) * refits > SECONDS:
        return pd.DataFrame()
    large = refit(reg.fit, "ML")
    for term, formula in smaller(reg.fit):
        try:
            small = fit_mixed(
                reg.used, formula, reg.family, method="ML", weights=reg.proposal.weights
            )
            test = likelihood_ratio(small, large)
        except AnalysisError:
            continue
        rows.append({"term": term, "chi2": test.statistic, "df": test.df, "p": test.p,
                     "aic_without": test.aic_small, "aic_with": test.aic_large,
                     "fit_status": _both(large, small)})  # fmt: skip
    return pd.DataFrame(rows)


def smaller(fit: MixedFit) -> Iterator[tuple[str, str]]:
    """Yield every random term, and the slopes of one apart, with the formula without it."""
    parsed = fit.design.parsed
    for place, bar in enumerate(parsed.bars):
        mark, group = "|" if bar.correlated else "||", ":".join(bar.group)
        rest = [b for i, b in enumerate(parsed.bars) if i != place]
        names = next(f.names for f in fit.problem.factors if f.group == group)
        if len(names) > 1 and re.match(r"1 \+", bar.expression):
            plain = replace(bar, expression="1", correlated=True)
            slopes = bar.expression.removeprefix("1 + ")
            bars = (*parsed.bars[:place], plain, *parsed.bars[place + 1 :])
            yield f"slope of {slopes} over {group}", written(replace(parsed, bars=bars))
        yield (
            f"({bar.expression} {mark} {group})",
            written(replace(parsed, bars=tuple(rest))),
        )


def _both(large: MixedFit, small: MixedFit) -> str:
    """Return the status of the worse of two fits."""
    trouble = {status(large), status(small)} - {"converged"}
    return ", ".join(sorted(trouble)) if trouble else "converged"


def term_table(rows: pd.DataFrame) -> Table:
    """Return the tests of the random terms as a table of the report."""
    note = (
        "Likelihood-ratio tests by ML of the model without each term. Where one variance is zero "
        "without it, p is of the 50:50 mixture of chi-squares that holds on the boundary; where "
        "several are, of the plain chi-square, which is too large. A design's grouping belongs in "
        "the model whatever its p."
    )
    formats = {"chi2": ".2f", "p": P_VALUE, "aic_without": ".1f", "aic_with": ".1f"}
    heads = words.HEADS | {
        "chi2": "χ²", "aic_without": "AIC without", "aic_with": "AIC with", "fit_status": "fit"
    }  # fmt: skip
    return Table("random_terms", "Tests of the random terms", rows, note, heads, formats)


def quality_rows(reg: Regression) -> pd.DataFrame:
    """Return the criteria and shares of the fit: quantity, value, said of."""
    fit, found = reg.fit, explained(reg.fit)
    rows = [
        ("rows", fit.n, "used by the fit"),
        ("fixed effects", len(fit.fixef), "coefficients, the intercept included"),
        ("parameters", fit.parameters, "fixed effects, covariances and dispersion"),
        ("log-likelihood", fit.loglik, "restricted" if fit.method == "REML" else "by ML"),
        ("AIC", fit.aic, "to compare models of the same rows and fixed effects"),
        ("BIC", fit.bic, "to compare models of the same rows and fixed effects"),
        ("R² marginal", found.marginal, "share of variance of the fixed effects"),
        ("R² conditional", found.conditional, "share of variance of fixed and random effects"),
    ]
    if fit.method == "ML":
        rows[4] = ("AIC", fit.aic, "to compare models of the same rows")
        rows[5] = ("BIC", fit.bic, "to compare models of the same rows")
    if fit.random:
        rows.append(("ICC", found.icc, "of all groups together, after the fixed effects"))
    if isinstance(fit, GlmmFit) and np.isfinite(fit.phi):
        rows.append(("φ", fit.phi, "precision of the beta distribution"))
        rows += [(f"share of scores at {end:g}", share, "modelled apart")
                 for end, share in fit.inflation.items()]  # fmt: skip
    if not isinstance(fit, GlmmFit):
        rows.append(("σ", fit.sigma, "standard deviation of the residuals"))
    return pd.DataFrame(rows, columns=["quantity", "value", "meaning"])


def quality_table(reg: Regression, rows: pd.DataFrame) -> Table:
    """Return the criteria as a table of the report."""
    note = "R² and ICC after Nakagawa and Schielzeth (2013)."
    if reg.general:
        note += " They are on the logit scale (Nakagawa, Johnson and Schielzeth 2017)."
    return Table("fit", "How well the model fits", rows, note, formats={"value": ".4g"})

"""Sensitivity of a fit: to single levels of a column, and to nearly collinear columns.

Leverage of a level is read off the fit without its rows, at the fitted variance parameters:

    share of a coefficient's information that goes with the level = 1 - var(with) / var(without)
    shift of the estimate = (without - with) / se(with)

A quadratic over prompt loss weights 0, 0.01, 0.1 and 1 may depend on weight 0 alone: then its share
is near 1, and what looks like curvature is the difference between "none" and "a little".

Collinearity: the generalised variance inflation factor of a term (Fox and Monette 1992, JASA
87(417)) to the power 1 / its columns, from the correlation of the coefficients without the
intercept, and the condition number
of the columns scaled to length 1 (Belsley, Kuh and Welsch 1980).

Letters in names: N rows, B fixed effects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array, Index, Mask, triangular
from analysis.engine.lmm import Factor, Problem, evaluate, solution
from analysis.engine.ties import falling, first_largest
from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.marginal import gaussian_only, relative_factors
from analysis.mixed import MixedFit

DEPENDS = 0.5  # share of information from which a coefficient depends on a level
SHIFTED = 1.0  # standard errors
INFLATED = (5.0, 10.0)  # variance inflation that is reported, and that is too large
ILL = 30.0  # condition number, Belsley's own
MOST_LEVELS = 200


@dataclass(frozen=True, slots=True)
class Leverage:
    """How the coefficients depend on single levels of one column."""

    column: str
    table: pd.DataFrame  # level, name, share, shift, estimate_without, se_without
    words: tuple[str, ...]  # in plain words; empty when nothing depends on one level


@dataclass(frozen=True, slots=True)
class Collinearity:
    """How well the coefficients can be separated."""

    vif: pd.Series  # generalised, by term, per coefficient
    condition: float
    words: tuple[str, ...]


def leverage(
    fit: MixedFit, frame: pd.DataFrame, column: str, *, names: Sequence[str] | None = None
) -> Leverage:
    """Return what every level of `column` contributes to every fixed effect.

    Args:
        fit: a fit of `frame`.
        frame: the table that was fitted; the column need not be in the formula.
        column: whose levels are left out one at a time, "plw" say.
        names: the fixed effects to look at; all but the intercept unless given.

    Raises:
        AnalysisError: an unknown column or coefficient, more than 200 levels, or a fit that is not
            Gaussian.
    """
    gaussian_only(fit, f"leverage of {column}", "fit again without the rows of a level")
    level_N = _levels(fit, frame, column)
    known = [str(n) for n in fit.fixef.index]
    wanted = [n for n in known if n != "Intercept"] if names is None else list(names)
    if unknown := [n for n in wanted if n not in known]:
        raise AnalysisError(f"leverage: no coefficient {unknown[0]!r}.{nearest(unknown[0], known)}")
    places = np.array([known.index(n) for n in wanted], dtype=np.intp)
    rows, beta_B, se_B = [], fit.fixef.to_numpy(), fit.se.to_numpy()
    for level in sorted(pd.unique(level_N)):
        without_B, spread_B = _without(fit, np.asarray(level_N != level))
        for j, name in zip(places, wanted, strict=True):
            lost = bool(np.isnan(spread_B[j]))
            share = 1.0 if lost else max(0.0, 1 - (se_B[j] / spread_B[j]) ** 2)
            shift = (without_B[j] - beta_B[j]) / se_B[j]
            rows.append((level, name, share, shift, without_B[j], spread_B[j]))
    columns = ["level", "name", "share", "shift", "estimate_without", "se_without"]
    table = pd.DataFrame(rows, columns=columns)
    return Leverage(column, table, tuple(_sentences(column, table)))


def _levels(fit: MixedFit, frame: pd.DataFrame, column: str) -> "pd.Series[Any]":
    if column not in frame:
        raise AnalysisError(f"leverage of {column}: no such column.{nearest(column, frame)}")
    used = frame[list(fit.design.parsed.columns)].notna().all(axis=1)
    level_N = frame.loc[used, column]
    if not level_N.index.equals(fit.design.rows):
        raise AnalysisError("leverage: this is not the table that was fitted; its rows differ")
    if level_N.isna().any():
        raise AnalysisError(f"leverage of {column}: it has missing values")
    if level_N.nunique() > MOST_LEVELS:
        raise AnalysisError(
            f"leverage of {column}: {level_N.nunique()} levels; at most {MOST_LEVELS}"
        )
    return level_N


def _without(fit: MixedFit, keep_N: Mask) -> tuple[Array, Array]:
    """Return beta and its standard errors on some of the rows, at the fit's own covariances."""
    kept = fit.problem.fixed.kept
    beta_B, se_B = np.full((2, len(kept)), np.nan)
    if keep_N.sum() == 0:
        return beta_B, se_B
    factors = [_subset(f, keep_N) for f in fit.problem.factors]
    weights_N = fit.weights_N
    problem = Problem(
        fit.design.X_NB[np.ix_(keep_N, kept)],
        fit.design.response_N[keep_N],
        factors=[f for f, _ in factors],
        weights_N=None if weights_N is None else weights_N[keep_N],
        reml=False,
    )
    templates = {
        f.group: lam for f, lam in zip(fit.problem.factors, relative_factors(fit), strict=True)
    }
    places = {f.group: used for f, used in factors}
    lambdas = [
        templates[f.group][places[f.group]] * scale[:, None]
        for f, scale in zip(problem.factors, problem.scales, strict=True)
    ]
    theta = problem.pack([triangular(lam) for lam in lambdas])
    found = solution(problem, theta, evaluate(problem, theta))
    there = _determined(fit.design.X_NB[np.ix_(keep_N, kept)], problem.fixed.kept)
    beta_B[problem.fixed.kept[there]] = found.beta_B[there]
    se_B[problem.fixed.kept[there]] = fit.sigma * np.sqrt(np.diagonal(found.cov_BB))[there]
    return beta_B, se_B


def _subset(factor: Factor, keep_N: Mask) -> tuple[Factor, Index]:
    """Return a factor on some rows, and which of its columns are there still."""
    columns_NP = factor.columns_NP[keep_N]
    used = np.flatnonzero(columns_NP.any(axis=0))
    return replace(
        factor,
        names=tuple(factor.names[p] for p in used),
        columns_NP=columns_NP[:, used],
        index_N=factor.index_N[keep_N],
        free_PP=(factor.free_PP | factor.free_PP.T)[np.ix_(used, used)]
        & np.tri(len(used), dtype=bool),
    ), used


def _determined(X_NB: Array, kept: Index) -> Mask:
    """Return which kept columns mean the same without the columns that were lost.

    A lost column that repeats others leaves their coefficients meaning something else.
    """
    gone = np.setdiff1d(np.arange(X_NB.shape[1]), kept)
    if not len(gone):
        return np.ones(len(kept), dtype=bool)
    repeats = np.linalg.lstsq(X_NB[:, kept], X_NB[:, gone], rcond=None)[0]
    size = np.linalg.norm(X_NB[:, gone], axis=0) + 1e-300
    share = np.abs(repeats) * np.linalg.norm(X_NB[:, kept], axis=0)[:, None] / size
    return np.asarray(share.max(axis=1) < 1e-6)


def _sentences(column: str, table: pd.DataFrame) -> list[str]:
    """Return a sentence for every coefficient that depends on one level."""
    words = []
    for name, part in table.groupby("name", sort=False):
        most = part.iloc[first_largest(part["share"])]
        level = f"{column}={most['level']}"
        if np.isnan(most["se_without"]):
            words.append(f"{name} depends on {level} entirely: without it there is no estimate.")
        elif most["share"] >= DEPENDS:
            words.append(
                f"{name} depends on {level}: {most['share']:.0%} of its information comes from "
                f"there. Without it the estimate is {most['estimate_without']:.3g} "
                f"(standard error {most['se_without']:.2g})."
            )
        far = part[(part["shift"].abs() > SHIFTED) & (part["share"] < DEPENDS)]
        for _, row in far.iterrows():
            words.append(
                f"{name} moves by {abs(row['shift']):.1f} standard errors, to "
                f"{row['estimate_without']:.3g}, without {column}={row['level']}."
            )
    return words


def collinearity(fit: MixedFit) -> Collinearity:
    """Return how well the fixed effects can be separated, given the fitted covariances.

    Args:
        fit: a fitted model.

    Returns:
        Generalised variance inflation by term, per coefficient (Fox and Monette 1992), the
        condition number of the scaled columns (Belsley, Kuh and Welsch 1980), and sentences about
        both.
    """
    names = [str(n) for n in fit.fixef.index]
    inside = np.array([n != "Intercept" for n in names], dtype=bool)
    cov_BB = fit.cov.to_numpy()[np.ix_(inside, inside)]
    sd_B = np.sqrt(np.diagonal(cov_BB))
    corr_BB = cov_BB / np.outer(sd_B, sd_B)
    terms = _terms(fit)
    own_B = np.array([terms[n] for n in names], dtype=object)[inside]
    vif = {str(t): _inflation(corr_BB, own_B == t) for t in dict.fromkeys(own_B)}
    X_NB = fit.design.X_NB[:, fit.problem.fixed.kept]
    condition = float(np.linalg.cond(X_NB / np.linalg.norm(X_NB, axis=0))) if len(names) else 1.0
    words = tuple(_inflated(vif, condition))
    return Collinearity(pd.Series(vif, dtype=np.float64), condition, words)


def _terms(fit: MixedFit) -> dict[str, str]:
    """Return the term that every column of the fixed part belongs to."""
    found = {}
    for term, own in fit.design.spec.term_slices.items():
        found.update({name: str(term) for name in fit.design.names[own]})
    return found


def _inflation(corr_BB: Array, own_B: Mask) -> float:
    """Return det(R_own) det(R_rest) / det(R) per coefficient, by logs."""
    if own_B.all():
        return 1.0
    parts = [corr_BB[np.ix_(k, k)] for k in (own_B, ~own_B)]
    logs = [float(np.linalg.slogdet(part)[1]) for part in (*parts, corr_BB)]
    return float(np.exp((logs[0] + logs[1] - logs[2]) / own_B.sum()))


def _inflated(vif: dict[str, float], condition: float) -> list[str]:
    high = {t: v for t, v in vif.items() if v >= INFLATED[0]}
    words = []
    if high:
        order = falling(list(high.values()))
        each = listed([f"{t} ({v:.1f})" for t, v in (list(high.items())[i] for i in order)], 6)
        much = "hardly" if max(high.values()) >= INFLATED[1] else "not well"
        words.append(
            f"Terms that can {much} be separated from the others (variance inflation factor): "
            f"{each}. Their joint test and the fitted values hold; single coefficients are "
            f"imprecise."
        )
    if condition >= ILL:
        words.append(
            f"The columns are nearly dependent (condition number {condition:.0f}); centring a "
            f"covariate before its square or product is taken makes its coefficients readable."
        )
    return words

"""Fits a mixed model given by a formula: `fit_mixed(frame, "score ~ wp + (1 | task)")`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, listed
from analysis.formula import Design, design, matrix_for, parse
from analysis.linalg import Array
from analysis.lmm import Factor, Problem, solution
from analysis.lmm_fit import Minimum, minimise
from analysis.satterthwaite import Curvature, curvature

FAMILIES = ("gaussian",)
METHODS = ("REML", "ML")
FEW_LEVELS = 5  # a variance over fewer levels is hardly estimated
EXACT_THETA = 1e4  # standard deviation over the residual's that leaves no residual
ESTIMABLE = 1e-6  # how far a contrast may be from the rows' own dependence
EXACT_FIT = 1e-10  # residual length, as a share of the score's, that counts as none


@dataclass(frozen=True, slots=True)
class RandomEffect:
    """What varies over one group: covariance and the predicted deviation of every level."""

    group: str
    cov: pd.DataFrame  # (P, P)
    modes: pd.DataFrame  # (L, P), conditional modes, indexed by level

    @property
    def sd(self) -> pd.Series:
        """The standard deviations."""
        return pd.Series(np.sqrt(np.diagonal(self.cov)), index=self.cov.index)

    @property
    def corr(self) -> pd.DataFrame:
        """The correlations; NaN beside a standard deviation of zero."""
        sd = self.sd.replace(0.0, np.nan)
        return self.cov.div(sd, axis=0).div(sd, axis=1)


@dataclass(frozen=True)
class MixedFit:
    """A fitted linear mixed model; indices are the names that formulaic gives the columns."""

    formula: str
    method: str
    fixef: pd.Series  # (B,)
    cov: pd.DataFrame  # (B, B), of fixef given theta
    sigma: float
    loglik: float  # the restricted one under REML
    random: Mapping[str, RandomEffect]
    diagnosis: tuple[str, ...]  # in plain words; empty when there is nothing to say
    left_out: tuple[str, ...]  # columns that earlier columns determine
    design: Design
    problem: Problem
    minimum: Minimum
    family: str = "gaussian"

    @property
    def se(self) -> pd.Series:
        """The standard errors of `fixef`."""
        return pd.Series(np.sqrt(np.diagonal(self.cov)), index=self.fixef.index)

    @property
    def n(self) -> int:
        """The number of rows used."""
        return self.problem.n

    @property
    def parameters(self) -> int:
        """Fixed effects, entries of theta and sigma."""
        return len(self.fixef) + len(self.minimum.theta) + 1

    @property
    def aic(self) -> float:
        """Akaike's criterion; under REML comparable between equal fixed parts alone."""
        return 2 * self.parameters - 2 * self.loglik

    @property
    def bic(self) -> float:
        """Schwarz's criterion, by the number of rows; comparable as `aic` is."""
        return float(np.log(self.n)) * self.parameters - 2 * self.loglik

    @property
    def converged(self) -> bool:
        """Whether the checks at the end of the search passed."""
        return self.minimum.converged

    @property
    def singular(self) -> bool:
        """Whether a random-effects covariance has lost rank (a variance of zero, say)."""
        return bool(self.minimum.singular)

    @cached_property
    def curvature(self) -> Curvature:
        """What Satterthwaite's degrees of freedom are computed from; made when first asked for."""
        return curvature(self.problem, self.minimum.theta, self.minimum.at)

    @property
    def fitted(self) -> pd.Series:
        """The score as fitted, fixed and random parts together."""
        fixed_N = self.design.X_NB[:, self.problem.fixed.kept] @ self.fixef.to_numpy()
        random = [
            (f.columns_NP * self.random[f.group].modes.to_numpy()[f.index_N]).sum(axis=1)
            for f in self.problem.factors
        ]
        return pd.Series(sum(random, fixed_N), index=self.design.rows)

    @property
    def residuals(self) -> pd.Series:
        """The score less `fitted`."""
        return pd.Series(self.design.y_N, index=self.design.rows) - self.fitted

    def matrix(self, rows: pd.DataFrame) -> Array:
        """Return the fixed-effects matrix (N, B) of other `rows`, columns as in `fixef`.

        A row whose mean this table does not determine is NaN, see `kept`.
        """
        return self.kept(matrix_for(self.design, rows))

    def kept(self, l_NC: Array) -> Array:
        """Return contrasts of all columns as contrasts of `fixef`, NaN where not estimable.

        A column that was left out repeats others, and a contrast can be estimated only if it
        repeats them likewise: l_left_out = l_kept A, where X_left_out = X_kept A.
        """
        kept = self.problem.fixed.kept
        gone = np.setdiff1d(np.arange(len(self.design.names)), kept)
        l_NB = l_NC[:, kept]
        if not len(gone):
            return l_NB
        off = np.abs(l_NC[:, gone] - l_NB @ self._repeats).max(axis=1)
        size = 1 + np.abs(l_NC).max(axis=1)
        return np.where((off <= ESTIMABLE * size)[:, None], l_NB, np.nan)

    @cached_property
    def _repeats(self) -> Array:
        """A in X_left_out = X_kept A."""
        kept, X_NC = self.problem.fixed.kept, self.design.X_NB
        gone = np.setdiff1d(np.arange(X_NC.shape[1]), kept)
        repeats = np.linalg.lstsq(X_NC[:, kept], X_NC[:, gone], rcond=None)[0]
        return np.asarray(repeats, dtype=np.float64)


def fit_mixed(
    frame: pd.DataFrame,
    formula: str,
    family: str = "gaussian",
    *,
    method: str = "REML",
    weights: str | None = None,
) -> MixedFit:
    """Return the fit of `formula` on `frame`; without a random term it is least squares.

    Args:
        frame: one row per observation; rows with missing values are left out and counted.
        formula: as in `analysis.formula`.
        family: only "gaussian".
        method: "REML", or "ML" where fixed parts are to be compared.
        weights: a column of positive weights; a row's residual variance is sigma^2 / weight.

    Raises:
        AnalysisError: an unknown name, a formula that cannot be read, too few rows, a score that
            the fixed effects explain exactly.
    """
    if family not in FAMILIES:
        raise AnalysisError(f"family={family}: not one of {listed(FAMILIES)}")
    parsed = parse(formula, frame.columns)
    return _fit(formula, design(parsed, frame, weights=weights), method)


def refit(fit: MixedFit, method: str) -> MixedFit:
    """Return the same model fitted by REML or by ML."""
    return fit if fit.method == method else _fit(fit.formula, fit.design, method)


def _fit(formula: str, found: Design, method: str) -> MixedFit:
    if method not in METHODS:
        raise AnalysisError(f"method={method}: not one of {listed(METHODS)}")
    problem = Problem(
        found.X_NB,
        found.y_N,
        factors=found.factors,
        weights_N=found.weights_N,
        reml=method == "REML",
    )
    _check(found, problem)
    minimum = minimise(problem)
    if minimum.theta.max(initial=0.0) > EXACT_THETA:
        raise AnalysisError(
            f"formula={formula}: the random effects explain the score exactly; are rows duplicated?"
        )
    solved = solution(problem, minimum.theta, minimum.at)
    variance = minimum.at.r2 / problem.df
    names = [found.names[i] for i in problem.fixed.kept]
    quads = zip(problem.factors, solved.lambdas, solved.modes, strict=True)
    return MixedFit(
        formula=formula,
        method=method,
        fixef=pd.Series(solved.beta_B, index=names),
        cov=pd.DataFrame(variance * solved.cov_BB, index=names, columns=names),
        sigma=float(np.sqrt(variance)),
        loglik=-minimum.at.deviance / 2,
        random={f.group: _random(f, variance * lam @ lam.T, modes) for f, lam, modes in quads},
        diagnosis=tuple(_diagnosis(found, problem, minimum)),
        left_out=_left_out(found, problem),
        design=found,
        problem=problem,
        minimum=minimum,
    )


def _check(found: Design, problem: Problem) -> None:
    if problem.p >= problem.n:
        raise AnalysisError(
            f"score={found.parsed.response}: {problem.p} coefficients for {problem.n} rows; "
            f"nothing is left to tell the noise from"
        )
    scale = float(np.linalg.norm(found.y_N - found.y_N.mean()))
    if scale <= EXACT_FIT * float(np.linalg.norm(found.y_N)):
        raise AnalysisError(f"score={found.parsed.response}: the same in every row")
    if float(np.linalg.norm(problem.fixed.residual_N)) <= EXACT_FIT * scale:
        raise AnalysisError(
            f"score={found.parsed.response}: the fixed effects explain it exactly; there is no "
            f"noise to hold an effect against"
        )


def _random(factor: Factor, cov_PP: Array, modes_LP: Array) -> RandomEffect:
    names = list(factor.names)
    return RandomEffect(
        factor.group,
        pd.DataFrame(cov_PP, index=names, columns=names),
        pd.DataFrame(modes_LP, index=list(factor.levels), columns=names),
    )


def _left_out(found: Design, problem: Problem) -> tuple[str, ...]:
    """Return the columns that others determine; one that is zero throughout says nothing."""
    gone = np.setdiff1d(np.arange(len(found.names)), problem.fixed.kept)
    return tuple(found.names[i] for i in gone if found.X_NB[:, i].any())


def _diagnosis(found: Design, problem: Problem, minimum: Minimum) -> list[str]:
    """Return what a reader should know about this fit, a sentence each."""
    words = []
    if found.dropped:
        words.append(f"{found.dropped} rows with a missing value were left out.")
    if gone := _left_out(found, problem):
        words.append(
            f"{len(gone)} columns are determined by the others in this table and were left out "
            f"of the model, so their effects cannot be told apart: {listed(gone, 6)}."
        )
    for group in minimum.singular:
        words.append(
            f"Singular: the variation over {group} is estimated as none (a variance of zero, or "
            f"effects that move in lockstep). The data do not call for this term as written; the "
            f"other estimates stand, its standard deviation has no useful interval."
        )
    for group in minimum.false_boundary:
        words.append(
            f"Not converged: the variance over {group} was left at zero although raising it fits "
            f"better. Do not use this fit; rescale the columns or simplify the term."
        )
    if not minimum.converged and not minimum.false_boundary:
        words.append(
            f"Not converged: {minimum.decrement:.2g} of deviance may be left to gain. Do not use "
            f"the standard errors; simplify the random part."
        )
    few = [f.group for f in problem.factors if len(f.levels) < FEW_LEVELS]
    for group in few:
        words.append(
            f"The variance over {group} rests on fewer than {FEW_LEVELS} levels and is hardly "
            f"known; {group} may do better as a fixed effect."
        )
    return words

"""Fitted mixed models: estimates, criteria, fitted values, residuals and summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit

from analysis.engine.dispersion import Dispersed
from analysis.engine.formula import DesignMatrices, matrix_for
from analysis.engine.glmm import GlmmEvaluation, GlmmProblem
from analysis.engine.linalg import Array
from analysis.engine.lmm import Evaluation, Problem
from analysis.engine.lmm_fit import Minimum
from analysis.engine.residual import first_rows, log_table
from analysis.engine.satterthwaite import Curvature, curvature
from analysis.engine.summary import FitSummary, brief, random_table

ESTIMABLE = 1e-6  # how far a contrast may be from the rows' own dependence


@brief
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


@dataclass(frozen=True, repr=False)
class MixedFit:
    """A fitted mixed model; indices are the names that formulaic gives the columns."""

    formula: str
    method: str
    fixef: pd.Series  # (B,)
    cov: pd.DataFrame  # (B, B), of fixef given theta
    sigma: float
    loglik: float  # the restricted one under REML
    random: Mapping[str, RandomEffect]
    diagnosis: tuple[str, ...]  # in plain words; empty when there is nothing to say
    left_out: tuple[str, ...]  # columns that earlier columns determine
    design: DesignMatrices
    problem: Problem
    minimum: Minimum[Evaluation]
    dispersed: Dispersed | None = None  # the search for the rows' own residual variances
    family: str = "gaussian"
    link: str = "identity"

    @property
    def weights_N(self) -> Array | None:
        """The rows' weights, estimated ones included: residual variances are sigma^2 / weight."""
        if self.dispersed is None:
            return self.design.weights_N
        return self.dispersed.weights(self.minimum.x, self.design.weights_N)

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
        """Fixed effects, entries of theta, what the residual variance differs by, and sigma."""
        return len(self.fixef) + len(self.minimum.x) + 1

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
        if self.dispersed is None:
            return curvature(self.problem, self.minimum.theta, self.minimum.at)
        x = self.minimum.x
        return curvature(self.dispersed, x, self.dispersed.evaluate(x))

    @property
    def residual_sd(self) -> pd.Series:
        """The residual's standard deviation by level of the dispersion.

        Without one, and of more than 30 levels, it is `sigma` alone, of name "".
        """
        return pd.Series(self.residual_sds(self.minimum.x, self.sigma), dtype=np.float64)

    def residual_sds(self, x: Array, sigma: float) -> dict[str, float]:
        """Return what `residual_sd` would be at other values of all variance parameters."""
        if self.dispersed is None or not self.residual_rows:
            return {"": sigma}
        ratio_N = np.exp(self.dispersed.logs(x))
        return {name: sigma * float(ratio_N[i]) for name, i in self.residual_rows.items()}

    @cached_property
    def residual_rows(self) -> dict[str, int]:
        """The first row of every level of the dispersion, where they are few enough to show."""
        return first_rows(self.design.dispersion)

    @cached_property
    def dispersion(self) -> pd.DataFrame:
        """The coefficients of the log of the residual's standard deviation: name, estimate, se.

        Without a dispersion there are none.
        """
        found, known = self.design.dispersion, self.dispersed
        if found is None or known is None:
            return pd.DataFrame(columns=["name", "estimate", "se"])
        own = slice(known.size, None)  # gamma, and the log of sigma
        by_NK = np.column_stack([known.basis_NK, np.ones(self.n)])
        log_N = known.logs(self.minimum.x) + np.log(self.sigma)
        return log_table(found, log_N, by_NK, self.curvature.phi_cov_KK[own, own])

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return self.summary()._repr_html_()

    def summary(self) -> FitSummary:
        """Return what lme4's summary says; its `tables` are "random", "dispersion" and "fixed".

        Degrees of freedom are Satterthwaite's; families other than the Gaussian have z for t and
        no degrees of freedom.
        """
        return FitSummary(
            title=self._title(),
            facts={"Formula": self.formula} | self._facts(),
            tables={
                "random": random_table(self.random, self.residual_sd),
                "dispersion": pd.DataFrame() if self.residual_rows else self.dispersion,
                "fixed": self._fixed(),
            },
            notes=self._notes(),
        )

    def _title(self) -> str:
        kind = "Linear mixed model" if self.random else "Linear model"
        return f"{kind} fitted by {self.method}"

    def _facts(self) -> dict[str, str]:
        rows = f"{self.n:,}"
        if self.design.dropped:
            rows += f" ({self.design.dropped:,} more have missing values)"
        name = "restricted log-likelihood" if self.method == "REML" else "log-likelihood"
        criteria = f"AIC {self.aic:.2f}   BIC {self.bic:.2f}   {name} {self.loglik:.2f}"
        found = {"Rows": rows, "Criteria": criteria} | self._rule()
        if self.design.dispersion is not None:
            found |= {"Residual SD": f"differs between rows: {self.design.dispersion.formula}"}
        return found

    def _rule(self) -> dict[str, str]:
        return {"Tests": "t, Satterthwaite's degrees of freedom"}

    def _fixed(self) -> pd.DataFrame:
        """Return one row per fixed effect: name, estimate, se, df, t, p."""
        eye = np.eye(len(self.fixef))
        df = np.array([self.curvature.df(l_B) for l_B in eye])
        t = self.fixef.to_numpy() / self.se.to_numpy()
        return pd.DataFrame({
            "name": [str(n) for n in self.fixef.index], "estimate": self.fixef.to_numpy(),
            "se": self.se.to_numpy(), "df": df, "t": t, "p": 2 * stats.t.sf(np.abs(t), df),
        })  # fmt: skip

    def _notes(self) -> tuple[str, ...]:
        return self.diagnosis if self.converged else ("NOT CONVERGED", *self.diagnosis)

    @property
    def linear(self) -> pd.Series:
        """The linear predictor: fixed and random parts and offset together."""
        eta_N = self.design.X_NB[:, self.problem.fixed.kept] @ self.fixef.to_numpy()
        for f in self.problem.factors:
            modes_LP = self.random[f.group].modes.to_numpy()
            eta_N += (f.columns_NP * modes_LP[f.index_N]).sum(axis=1)
        if self.design.offset_N is not None:
            eta_N += self.design.offset_N
        return pd.Series(eta_N, index=self.design.rows)

    @property
    def fitted(self) -> pd.Series:
        """The score as fitted, random effects included."""
        return self.linear

    @property
    def residuals(self) -> pd.Series:
        """The score less `fitted`."""
        return pd.Series(self.design.y_N, index=self.design.rows) - self.fitted

    @property
    def standardised(self) -> pd.Series:
        """The residuals of a linear model, each over its own standard deviation."""
        root_N = 1.0 if self.weights_N is None else np.sqrt(self.weights_N)
        return self.residuals * root_N / self.sigma

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
        off = np.abs(l_NC[:, gone] - l_NB @ self.repeats)
        size = 1 + np.abs(l_NC[:, gone]) + np.abs(l_NB) @ np.abs(self.repeats)
        return np.where((off <= ESTIMABLE * size).all(axis=1)[:, None], l_NB, np.nan)

    @cached_property
    def repeats(self) -> Array:
        """A in X_left_out = X_kept A, (B, left out): how left-out columns repeat others."""
        kept, X_NC = self.problem.fixed.kept, self.design.X_NB
        gone = np.setdiff1d(np.arange(X_NC.shape[1]), kept)
        repeats = np.linalg.lstsq(X_NC[:, kept], X_NC[:, gone], rcond=None)[0]
        return np.asarray(repeats, dtype=np.float64)


@dataclass(frozen=True, repr=False)
class GlmmFit(MixedFit):
    """A fitted generalised linear mixed model; `fixef` and `random` are on the link's scale.

    `method` is "ML" by Laplace's approximation or by quadrature, `sigma` is NaN, and every df is
    infinite.
    """

    problem: GlmmProblem  # type: ignore[assignment]  # what both kinds are asked for, both have
    minimum: Minimum[GlmmEvaluation]  # type: ignore[assignment]
    link: str = "logit"
    phi: float = float("nan")  # of a beta distribution
    inflation: Mapping[float, float] = field(default_factory=dict)  # shares of exact 0 and 1
    total: int = 0  # rows, those that `inflation` took included
    separated: bool = False

    @property
    def n(self) -> int:
        """The number of rows used."""
        return self.total

    @property
    def parameters(self) -> int:
        """Fixed effects, entries of theta, log phi where there is one, and `inflation`."""
        dispersion = int(self.problem.family.dispersed)
        return len(self.fixef) + len(self.minimum.theta) + dispersion + len(self.inflation)

    @property
    def converged(self) -> bool:
        """Whether the checks at the end of the search passed and no coefficient is infinite."""
        return self.minimum.converged and not self.separated

    def _title(self) -> str:
        kind = "Generalised linear mixed model" if self.random else "Generalised linear model"
        points = self.problem.points
        by = f"quadrature, {points} points" if points > 1 else "Laplace's approximation"
        how = f"ML ({by})" if self.random else "ML"
        return f"{kind} fitted by {how}"

    def _facts(self) -> dict[str, str]:
        family = f"{self.family}, {self.link} link"
        if np.isfinite(self.phi):
            family += f", phi {self.phi:.4g}"
        for end, share in self.inflation.items():
            family += f", share of scores at {end:g}: {share:.3f}"
        return {"Family": family} | super()._facts()

    def _rule(self) -> dict[str, str]:
        return {"Tests": "z, normal distribution"}

    def _fixed(self) -> pd.DataFrame:
        return super()._fixed().drop(columns="df").rename(columns={"t": "z"})

    @cached_property
    def curvature(self) -> Curvature:
        """The covariance of `fixef`; its degrees of freedom are infinite."""
        b = len(self.fixef)
        return Curvature(self.cov.to_numpy(), np.zeros((0, b, b)), np.zeros((0, 0)))

    @property
    def fitted(self) -> pd.Series:
        """The mean score of every row, random effects included.

        Where exact 0 and 1 were modelled apart, it is the mean of the scores between them.
        """
        return pd.Series(expit(self.linear.to_numpy()), index=self.design.rows)

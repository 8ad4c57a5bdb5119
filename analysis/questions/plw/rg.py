"""The best prompt loss weight as a function of Rg, the ratio of completion to prompt length.

Every data set d has a quadratic of its own, b1_d x + b2_d x^2, over x = w_p, and both coefficients
are lines in L = log10 Rg:

    b1_d = a1 + c1 L_d,   b2_d = a2 + c2 L_d,   so that the best weight at Rg is

    x(L) = -(a1 + c1 L) / (2 (a2 + c2 L)),

a ratio of two estimates, with the verdict and the Fieller interval of `curve.best`. It is estimated
twice, for two populations.

    these data sets    score ~ arm + block + (w_p + w_p^2) (1 + L) over runs: the noise of runs
                       alone. It says what holds at these data sets, and nothing of others.
    data sets like     the D pairs (b1_d, b2_d), one per data set, regressed on L with D - 2 degrees
    these              of freedom: the data sets are the units. The slope of the curve at any x is
                       b1_d + 2 x b2_d, one number per data set, so its t test is exact if data sets
                       scatter normally about the line, and Fieller's set inherits that.

Rg belongs to a data set as a whole, as does all else that data sets differ in: with fewer than 7
values of Rg there is no curve.

Letters in names: D data sets, N runs, S columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis.curve.best import best_row, objection
from analysis.curve.monotone import DRAWS
from analysis.curve.shape import Shape, shape
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.optimum import Quadratic, optimum
from analysis.table.adjusted_means import adjusted_columns
from analysis.table.cells import run_means
from analysis.table.frame import study_rows
from analysis.table.run_panels import RunPanel, nuisance, usual_rows, with_arms

NAN = float("nan")
FEWEST = 7  # distinct Rg from which there is a curve
THESE, LIKE = "these data sets", "data sets like these"


@dataclass(frozen=True, slots=True)
class Line:
    """The four coefficients a1, a2, c1, c2 with their covariance."""

    speaks_of: str
    beta_4: Array
    cov_44: Array
    df: float

    def at(self, rg: float) -> Quadratic:
        """Return the curve over the weight at one Rg."""
        if not rg > 0:
            raise AnalysisError(f"rg={rg}: must be above 0")
        step = float(np.log10(rg))
        l_24 = np.array([[1.0, 0, step, 0], [0, 1.0, 0, step]])
        b1, b2 = (float(b) for b in l_24 @ self.beta_4)
        return Quadratic(b1, b2, l_24 @ self.cov_44 @ l_24.T, self.df)


@dataclass(frozen=True, slots=True)
class RgCurve:
    """The best weight against Rg in one task group."""

    labels: dict[str, str]
    datasets: pd.DataFrame  # dataset, rg, runs, b1, b2 and its own optimum
    lines: tuple[Line, ...]  # for these data sets and for data sets like these; () with too few Rg
    p_changes: float  # of c1 = c2 = 0, for these data sets
    doubt: str  # why no optimum inside may be claimed along the curve, "" where it may

    @property
    def ratios(self) -> int:
        """The number of distinct Rg with a curve over the weight."""
        known = self.datasets.dropna(subset=["b1"]) if len(self.datasets) else self.datasets
        return int(known["rg"].nunique()) if len(known) else 0


def rg_curves(frame: pd.DataFrame) -> list[RgCurve]:
    """Return the curve of every masking mode and task group; empty without a column `rg`."""
    rows = usual_rows(study_rows(frame))
    if "rg" not in rows:
        return []
    found = []
    curved = rows[(rows["wp"] > 0) & (rows["curved"] > 0)]
    for (mode, group), _ in curved.groupby(["mode", "task_group"], observed=True):
        own = rows[(rows["wp"] == 0) | (rows["mode"] == mode)]
        own = own[own["task_group"] == group]
        labels = {"mode": str(mode), "task_group": str(group)}
        found.append(rg_curve(RunPanel(labels, with_arms(run_means(own)))))
    return found


def rg_curve(panel: RunPanel, *, draws: int = DRAWS) -> RgCurve:
    """Return the best weight against Rg from runs on several data sets.

    Args:
        panel: runs with a column `rg`, one value per data set.
        draws: of the parametric bootstrap that tests the shape of each data set's curve.
    """
    runs = panel.runs.assign(dataset=panel.runs["dataset"].astype(str))
    runs = runs[runs["rg"].notna() & (runs["rg"] > 0)]
    own = [
        _dataset_row(str(name), part, draws) for name, part in runs.groupby("dataset", sort=True)
    ]
    bare = RgCurve(panel.labels, pd.DataFrame(own), (), NAN, "")
    if bare.ratios < FEWEST:
        return bare
    known = bare.datasets.dropna(subset=["b1"])
    kept = runs[runs["dataset"].isin(known["dataset"])]
    these = _over_runs(kept)
    if these is None:
        return bare
    pooled = _shape(kept, draws)
    doubt = "" if pooled is not None and pooled.fits else objection(pooled)
    lines = (these, _over_datasets(known))
    return replace(bare, lines=lines, p_changes=_p_changes(these), doubt=doubt)


def _shape(runs: pd.DataFrame, draws: int) -> Shape | None:
    try:
        return shape(RunPanel({}, runs), draws=draws)
    except AnalysisError:
        return None


def _dataset_row(name: str, runs: pd.DataFrame, draws: int) -> dict[str, object]:
    """Return one data set's Rg and its own quadratic; without one where it was not determined."""
    row: dict[str, object] = {"dataset": name, "rg": float(runs["rg"].median()), "runs": len(runs)}
    x_N = runs["wp"].to_numpy(dtype=float)
    fit = _coefficients(runs, np.column_stack([x_N, x_N**2]))
    if fit is None:
        return row | {"b1": NAN, "b2": NAN} | best_row(None, "")
    beta_2, cov_22, df = fit
    best = optimum(Quadratic(float(beta_2[0]), float(beta_2[1]), cov_22, df))
    return row | {"b1": beta_2[0], "b2": beta_2[1]} | best_row(best, objection(_shape(runs, draws)))


def _coefficients(runs: pd.DataFrame, x_NS: Array) -> tuple[Array, Array, float] | None:
    """Return coefficients, covariance and df, arm and block adjusted for; None if undetermined."""
    try:
        fit = adjusted_columns(x_NS, nuisance(runs), runs["score"].to_numpy(dtype=float)[:, None])
    except AnalysisError:
        return None
    return fit.mean_SY[:, 0], fit.covariance(), fit.df


def _over_runs(runs: pd.DataFrame) -> Line | None:
    x_N = runs["wp"].to_numpy(dtype=float)
    step_N = np.log10(runs["rg"].to_numpy(dtype=float))
    fit = _coefficients(runs, np.column_stack([x_N, x_N**2, x_N * step_N, x_N**2 * step_N]))
    return None if fit is None else Line(THESE, *fit)


def _over_datasets(known: pd.DataFrame) -> Line:
    """Return the line through the data sets' own coefficients, each data set one observation."""
    step_D = np.log10(known["rg"].to_numpy(dtype=float))
    x_D2 = np.column_stack([np.ones_like(step_D), step_D])
    y_D2 = known[["b1", "b2"]].to_numpy(dtype=float)
    inverse_22 = np.linalg.inv(x_D2.T @ x_D2)
    beta_22 = inverse_22 @ x_D2.T @ y_D2  # rows: constant, slope; columns: b1, b2
    rest_D2 = y_D2 - x_D2 @ beta_22
    df = len(known) - 2
    scatter_22 = rest_D2.T @ rest_D2 / df
    return Line(LIKE, beta_22.ravel(), np.kron(inverse_22, scatter_22), float(df))


def _p_changes(line: Line) -> float:
    """Return the p-value of c1 = c2 = 0."""
    c_2, cov_22 = line.beta_4[2:], line.cov_44[2:, 2:]
    return float(stats.f.sf(c_2 @ np.linalg.solve(cov_22, c_2) / 2, 2, line.df))


def prediction_table(found: RgCurve, rg: Sequence[float] | None = None) -> pd.DataFrame:
    """Return the predicted best weight at some Rg, by default those of the data sets.

    Two rows per Rg, one for these data sets and one for data sets like these: speaks_of, rg, the
    columns of `best_row`, and outside, whether the Rg lies outside the ones that were run. Empty
    where there is no curve.
    """
    run = found.datasets["rg"].to_numpy(dtype=float)
    wanted = sorted(set(run.tolist())) if rg is None else rg
    return pd.DataFrame(
        [
            found.labels
            | {"speaks_of": line.speaks_of, "rg": value}
            | best_row(optimum(line.at(value)), found.doubt)
            | {"outside": not run.min() <= value <= run.max()}
            for line in found.lines
            for value in wanted
        ]
    )

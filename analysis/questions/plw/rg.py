"""The best prompt loss weight as a function of Rg, the ratio of completion to prompt length.

Every data set d has a quadratic of its own, b1_d x + b2_d x^2, over x = w_p, and both coefficients
are lines in L = log10 Rg:

    b1_d = a1 + c1 L_d,   b2_d = a2 + c2 L_d,   so that the best weight at Rg is

    x(L) = -(a1 + c1 L) / (2 (a2 + c2 L)),

a ratio of two estimates, with the verdict and the Fieller interval of `study.optimum`. It is
computed twice, for two questions.

    these data sets    score ~ arm + block + (w_p + w_p^2) (1 + L) over runs: the noise of runs
                       alone. It says what holds at these data sets, and nothing of others.
    data sets like     the D pairs (b1_d, b2_d), one per data set, regressed on L with D - 2 degrees
    these              of freedom: the data sets are the units. The slope of the curve at any x is
                       b1_d + 2 x b2_d, one number per data set, so its t test is exact if data sets
                       scatter normally about the line, and Fieller's set inherits that.

Rg belongs to a data set as a whole, as does all else that data sets differ in: with fewer than 7
of them the line is no more than a description, with fewer than 3 it is not estimable.

Letters in names: D data sets.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.optimum import NOT_IDENTIFIED, Quadratic, optimum
from analysis.questions.plw.optimum_intervals import best_row
from analysis.table.frame import study_rows
from analysis.table.run_panels import RunPanel, nuisance, one_row_per_run, usual_rows, without

FEWEST, FEW = 3, 7  # distinct Rg
THESE, LIKE = "these data sets", "data sets like these"
NOT_ESTIMABLE = "not estimable"
WARNING = (
    "{n} distinct Rg are too few to tell Rg from anything else that the data sets differ in: "
    "read the curve as a description, not as a rule (at least {few} are wanted)."
)


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
    datasets: pd.DataFrame  # dataset, rg, runs, and its own optimum
    these: Line | None
    like: Line | None
    p_moves: float  # of c1 = c2 = 0, for these data sets
    verdict: str  # "estimable" or NOT_ESTIMABLE
    warning: str


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
        found.append(rg_curve(RunPanel(labels, one_row_per_run(own))))
    return found


def rg_curve(panel: RunPanel) -> RgCurve:
    """Return the best weight against Rg from runs on several data sets.

    Args:
        panel: runs with a column `rg`, one value per data set.
    """
    runs = panel.runs.assign(dataset=panel.runs["dataset"].astype(str))
    runs = runs[runs["rg"].notna() & (runs["rg"] > 0)]
    own = [_dataset_row(str(name), part) for name, part in runs.groupby("dataset", sort=True)]
    datasets = pd.DataFrame(own)
    known = datasets[datasets["b1"].notna()] if len(datasets) else datasets
    count = int(known["rg"].nunique()) if len(known) else 0
    if count < FEWEST:
        told = f"the best weight as a function of Rg needs {FEWEST} distinct Rg; there are {count}"
        return RgCurve(panel.labels, datasets, None, None, float("nan"), NOT_ESTIMABLE, told)
    these = _over_runs(runs[runs["dataset"].isin(known["dataset"])])
    warning = WARNING.format(n=count, few=FEW) if count < FEW else ""
    p = _p_moves(these) if these is not None else float("nan")
    return RgCurve(panel.labels, datasets, these, _over_datasets(known), p, "estimable", warning)


def _dataset_row(name: str, runs: pd.DataFrame) -> dict[str, object]:
    """Return one data set's Rg and its own quadratic; without one where it was not determined."""
    row: dict[str, object] = {"dataset": name, "rg": float(runs["rg"].median()), "runs": len(runs)}
    x_N = runs["wp"].to_numpy(dtype=float)
    fit = _least_squares(runs, np.column_stack([x_N, x_N**2]))
    if fit is None:
        return row | {"b1": np.nan, "b2": np.nan, "optimum": NOT_IDENTIFIED}
    beta_2, cov_22, df = fit
    best = optimum(Quadratic(float(beta_2[0]), float(beta_2[1]), cov_22, df))
    return row | {"b1": beta_2[0], "b2": beta_2[1]} | best_row(best)


def _least_squares(runs: pd.DataFrame, x_NS: Array) -> tuple[Array, Array, float] | None:
    """Return coefficients, covariance and df, arm and block adjusted for; None if undetermined."""
    z_NK = nuisance(runs)
    clear_NS = without(z_NK, x_NS)
    left_N1 = without(z_NK, runs["score"].to_numpy(dtype=float)[:, None])
    df = len(runs) - z_NK.shape[1] - x_NS.shape[1]
    if df < 1 or np.linalg.matrix_rank(clear_NS, tol=1e-8) < x_NS.shape[1]:
        return None
    beta_S = np.linalg.lstsq(clear_NS, left_N1, rcond=None)[0][:, 0]
    rss = float(((left_N1[:, 0] - clear_NS @ beta_S) ** 2).sum())
    cov_SS = np.asarray(rss / df * np.linalg.inv(clear_NS.T @ clear_NS), dtype=np.float64)
    return np.asarray(beta_S, dtype=np.float64), cov_SS, float(df)


def _over_runs(runs: pd.DataFrame) -> Line | None:
    x_N = runs["wp"].to_numpy(dtype=float)
    step_N = np.log10(runs["rg"].to_numpy(dtype=float))
    fit = _least_squares(runs, np.column_stack([x_N, x_N**2, x_N * step_N, x_N**2 * step_N]))
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


def _p_moves(line: Line) -> float:
    """Return the p-value of c1 = c2 = 0."""
    c_2, cov_22 = line.beta_4[2:], line.cov_44[2:, 2:]
    return float(stats.f.sf(c_2 @ np.linalg.solve(cov_22, c_2) / 2, 2, line.df))


def prediction_table(found: RgCurve, rg: list[float] | None = None) -> pd.DataFrame:
    """Return the predicted best weight at some Rg, by default those of the data sets.

    Two rows per Rg, one for these data sets and one for data sets like these: speaks_of, rg,
    optimum, best_wp, best_plw, plw_low, plw_high, and beyond, whether the Rg lies outside the ones
    that were run.
    """
    if found.these is None or found.like is None:
        return pd.DataFrame()
    run = found.datasets["rg"].to_numpy(dtype=float)
    wanted = sorted(set(run.tolist())) if rg is None else rg
    rows = []
    for line in (found.these, found.like):
        for value in wanted:
            outside = not run.min() <= value <= run.max()
            head: dict[str, object] = found.labels | {"speaks_of": line.speaks_of, "rg": value}
            rows.append(head | best_row(optimum(line.at(value))) | {"beyond": outside})
    return pd.DataFrame(rows)

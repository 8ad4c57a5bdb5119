"""Cells by what they train on, a direction and a scale of the gradient, and their adjusted means.

A direction is a masking mode at a weight; cells of one direction differ in the normaliser or the
completion weight, which multiply the whole gradient. Cells that train alike have one name: at
weight 0 the normalisers weight, completion and nonzero are one, at weight 1 so are weight and
tokens. Score, log gradient norm and log of the completion's share of the gradient are adjusted for
arm and seed together, so that their joint covariance is known.

Letters in names: C cells, N runs, K columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.inference.estimates import Estimate
from analysis.table.frame import study_rows
from analysis.table.run_panels import dummies, independent, one_row_per_run, usual_rows

OUTCOMES = ("score", "log_norm", "log_share")
SCALED = ("normaliser", "completion_weight")  # settings that the gradient's scale depends on


@dataclass(frozen=True, slots=True)
class Cell:
    """What is trained on: a direction (masking and weight) and a scale of the gradient."""

    masking: str  # "" at weight 0, where all modes are one
    plw: float  # effective
    scale: str  # "weight", "held", or another normaliser with its completion weight


@dataclass(frozen=True, slots=True)
class Means:
    """Adjusted means of the outcomes by cell and what their covariance is made of."""

    cells: list[Cell]
    mean_C3: Array
    shape_CC: Array  # covariance of one outcome's means, over its residual variance
    residual_33: Array
    df: float

    def estimate(self, name: str, value: Callable[[Array], float]) -> Estimate:
        """Return a smooth function of the means with its delta-method error."""
        step = 1e-5
        g_C3 = np.zeros_like(self.mean_C3)
        for i in np.ndindex(*self.mean_C3.shape):
            moved = [self.mean_C3.copy(), self.mean_C3.copy()]
            moved[0][i] += step
            moved[1][i] -= step
            g_C3[i] = (value(moved[0]) - value(moved[1])) / (2 * step)
        variance = float(np.einsum("ia,ij,jb,ab->", g_C3, self.shape_CC, g_C3, self.residual_33))
        return Estimate(name, value(self.mean_C3), float(np.sqrt(max(variance, 0.0))), self.df)


def cell_means(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], Means]]:
    """Yield the adjusted means of the cells of every data set and task group.

    Only arms (base model, adapter, rank) with cells of several scales count where there are any.
    """
    rows = study_rows(frame)
    if "normaliser" not in rows:
        return
    rows = _at_usual(rows)
    records = rows.drop_duplicates("run").to_dict("records")
    named = {r["run"]: _cell({str(k): v for k, v in r.items()}) for r in records}
    rows = rows.assign(cell=rows["run"].map(named))
    for (dataset, group), own in rows.groupby(["dataset", "task_group"], observed=True):
        runs = _runs(own)
        labels = {"dataset": str(dataset), "task_group": str(group)}
        means = adjusted_means(runs)
        if means is not None:
            yield labels, means


def _at_usual(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the usual level of every setting that the scale does not depend on."""
    kept = rows.drop(columns=[n for n in SCALED if n in rows])
    return rows.loc[usual_rows(kept).index]


def _cell(row: dict[str, object]) -> Cell:
    """Return a row's cell under the one name that equal training has."""
    plw = round(float(str(row.get("effective_plw", row["plw"]))), 9)
    weight = float(str(row.get("completion_weight", 1.0)))
    normaliser = str(row["normaliser"])
    alone = plw == 0 and (normaliser in ("weight", "nonzero") or weight == 1)
    if alone and normaliser in ("weight", "nonzero", "completion"):
        return Cell("", 0.0, "weight")
    normaliser = "tokens" if normaliser == "nonzero" else normaliser
    if normaliser == "weight" or (plw == 1 and weight == 1 and normaliser == "tokens"):
        return Cell(str(row["masking"]) if plw else "", plw, "weight")
    scale = "held" if normaliser == "completion" else normaliser
    name = scale if weight == 1 else f"{scale} x {weight:g}"
    return Cell(str(row["masking"]) if plw else "", plw, name)


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run with cell and outcomes, of the arms that vary the scale if any do."""
    runs = one_row_per_run(rows).set_index("run")
    first = rows.groupby("run", observed=True, sort=False).first()
    for name, column in (("log_norm", "grad_norm_mean"), ("log_share", "completion_grad_share")):
        values = pd.to_numeric(first[column]) if column in first else pd.Series(np.nan, first.index)
        runs[name] = np.log(values.where(values > 0))
    runs["cell"] = first["cell"]
    scaled = runs["cell"].map(lambda cell: cell.scale != "weight")
    arms = runs.loc[scaled, "arm"].unique()
    return runs[runs["arm"].isin(arms)] if len(arms) else runs


def adjusted_means(runs: pd.DataFrame) -> Means | None:
    """Return the cells' means adjusted for arm and seed; None where no noise can be estimated.

    Args:
        runs: run as rows; cell, arm, block, score, log_norm, log_share. Norms and shares are all
            NaN or all there.
    """
    cells = sorted(set(runs["cell"]), key=lambda c: (c.plw, c.masking, c.scale))
    places = {cell: i for i, cell in enumerate(cells)}
    which_N = runs["cell"].map(places).to_numpy(dtype=int)
    luck_NK = dummies(runs["arm"] + " " + runs["block"])
    x_NK = np.hstack([np.eye(len(cells))[which_N], luck_NK - luck_NK.mean(axis=0)])
    x_NK = independent(x_NK)
    df = len(runs) - x_NK.shape[1]
    y_N3 = runs[list(OUTCOMES)].to_numpy(dtype=float)
    recorded = bool(np.isfinite(y_N3).all())
    y_N3 = y_N3 if recorded else np.where(np.isfinite(y_N3), y_N3, 0.0) * [1.0, 0.0, 0.0]
    if df < 1:
        return None
    inverse_KK = np.linalg.inv(x_NK.T @ x_NK)
    beta_K3 = inverse_KK @ x_NK.T @ y_N3
    rest_N3 = y_N3 - x_NK @ beta_K3
    mean_C3 = beta_K3[: len(cells)]
    if not recorded:
        mean_C3 = mean_C3 + np.array([0.0, np.nan, np.nan])
    shape_CC = np.asarray(inverse_KK, dtype=np.float64)[: len(cells), : len(cells)]
    return Means(
        cells,
        mean_C3,
        shape_CC,
        np.asarray(rest_N3.T @ rest_N3 / df),
        float(df),
    )

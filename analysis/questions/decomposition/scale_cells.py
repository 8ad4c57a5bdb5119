"""Cells by what they train on, a direction and a scale of the gradient, and their adjusted means.

A direction is a masking mode at a weight; cells of one direction differ in the normaliser or the
completion weight, which multiply the whole gradient. Cells that train alike have one name: at
weight 0 the normalisers weight, completion and nonzero are one, at weight 1 so are weight and
tokens. Score, log gradient norm and log of the completion's share of the gradient are adjusted for
arm and seed together, so that their joint covariance is known.

Letters in names: C cells, N runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.table.adjusted_means import Adjusted, adjusted_means
from analysis.table.cells import run_means
from analysis.table.frame import study_rows
from analysis.table.run_panels import usual_rows, with_arms

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
    """Adjusted means of the outcomes by cell: a row of `fit.mean_SY` for every cell."""

    cells: list[Cell]
    fit: Adjusted
    recorded: bool  # whether norms and shares of the gradient were; where not, they count as 0


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
        means = scale_means(runs)
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
    runs = with_arms(run_means(rows)).set_index("run")
    first = rows.groupby("run", observed=True, sort=False).first()
    for name, column in (("log_norm", "grad_norm_mean"), ("log_share", "completion_grad_share")):
        values = pd.to_numeric(first[column]) if column in first else pd.Series(np.nan, first.index)
        runs[name] = np.log(values.where(values > 0))
    runs["cell"] = first["cell"]
    scaled = runs["cell"].map(lambda cell: cell.scale != "weight")
    arms = runs.loc[scaled, "arm"].unique()
    return runs[runs["arm"].isin(arms)] if len(arms) else runs


def scale_means(runs: pd.DataFrame) -> Means | None:
    """Return the cells' means adjusted for arm and seed; None where no noise can be estimated.

    Args:
        runs: run as rows; cell, arm, block, score, log_norm, log_share. Norms and shares are all
            NaN or all there.
    """
    cells = sorted(set(runs["cell"]), key=lambda c: (c.plw, c.masking, c.scale))
    codes = {cell: i for i, cell in enumerate(cells)}
    level_N = runs["cell"].map(codes).to_numpy(dtype=np.intp)
    y_N3 = runs[list(OUTCOMES)].to_numpy(dtype=float)
    recorded = bool(np.isfinite(y_N3).all())
    if not recorded:
        y_N3[:, 1:] = 0.0
    block = runs["arm"] + " " + runs["block"]
    try:
        fit = adjusted_means(level_N, [block], y_N3, weights="proportional")
    except AnalysisError:
        return None
    return Means(cells, fit, recorded)

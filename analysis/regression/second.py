"""The second analysis of a study's headlines: least squares on means of runs, clustered by cell."""

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate
from analysis.inference.second_opinion import second_opinion
from analysis.regression.propose import quoted
from analysis.regression.study import STRATUM, Study
from analysis.table.cells import run_means

CURVE = 3  # weights that a quadratic needs


def of_study(
    study: Study, rows: pd.DataFrame, column: str, levels: tuple[object, object]
) -> Estimate | None:
    """Return the mean at the first level less that at the second; None where it cannot be had.

    Everything else that the runs differ in is adjusted for as a factor of its own: data set, base
    model, arm, weight of the prompt, settings and seed.

    Args:
        study: whose settings are adjusted for.
        rows: its rows that the effect is about.
        column: "wp" for a prompt loss weight, "arm", or a setting.
        levels: two of its levels.
    """
    if study.weights or not len(rows):
        return None
    runs = labelled(study, run_means(rows))
    if column != "wp":
        runs = runs.assign(**{column: runs[column].astype(str)})
    names = [*STRATUM, "arm", *study.varied, "seed", *(["dose"] if column != "wp" else [])]
    others = [n for n in names if n in runs and n != column and runs[n].nunique() > 1]
    runs = runs.assign(**{n: runs[n].astype(str) for n in others})
    curve = ["I(wp^2)"] if column == "wp" and runs["wp"].nunique() >= CURVE else []
    terms = [quoted(n) for n in (column, *others)]
    formula = f"score ~ {' + '.join([*terms, *curve])}"
    try:
        found = second_opinion(runs, formula, column, levels)
    except (AnalysisError, ValueError, np.linalg.LinAlgError):
        return None
    return found if np.isfinite(found.p) else None


def labelled(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with arm, dose and cell as text; the rank of full fine-tuning is none."""
    rank = rows["rank"] if "rank" in rows else pd.Series("", rows.index)
    adapter = rows["adapter"] if "adapter" in rows else pd.Series("", rows.index)
    full = adapter.astype(str) == "full"
    arm = adapter.astype(str) + (" r" + rank.map("{:g}".format, na_action="ignore").astype(str)
                                 ).mask(full, "")  # fmt: skip
    mode = rows["mode"].astype(str) + " " + rows["wp"].round(6).astype(str)
    dose = mode.mask(rows["wp"] == 0, "0")
    parts = [rows[n].astype(str) for n in (*STRATUM, *study.varied) if n in rows]
    cell = dose + " " + arm
    for part in parts:
        cell = cell + " " + part
    return rows.assign(arm=arm, dose=dose, cell=cell)

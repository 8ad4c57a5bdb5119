"""The arms of instruction modelling, and what one of them gains over another.

An arm is what a run has in its loss: IT (weight on outputs alone), IM (on everything), another
mask, and what regularises either. Two arms are compared by the differences of runs with the same
data, base, seed and every other setting (`table.gaps`), in each group of tasks:

    gap_i = gain + data set on its base + noise

so that the data set is the unit, as it is for the published pairs (`published.gain`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate, contrast
from analysis.mixed import fit_mixed
from analysis.regression.study import OF_THE_DATA, Study
from analysis.table.cell_effect import cell_formula
from analysis.table.cells import run_means
from analysis.table.gaps import gaps

RATIO, ROWS = OF_THE_DATA
EPOCHS, PENALTY = "train.epochs", "regulariser.kl"
IT, IM, BOILERPLATE = "IT", "IM", "boilerplate masked"
MODES = {
    "none": IM, "im_released": "IM as released", "special": "IM as written",
    "boilerplate": BOILERPLATE,
}  # fmt: skip
# What an arm's name holds, so that arms which differ in it are compared.
OF_THE_ARM = ("regulariser", PENALTY, "normaliser", "completion_weight")
DF = "kenward-roger"
NEAR = 1.1  # a factor between ratios that are called one


@dataclass(frozen=True)
class Runs:
    """The runs of one group of tasks: a row each, with `arm`, `scope`, `epochs` and `score`."""

    group: str
    table: pd.DataFrame

    @cached_property
    def usual(self) -> dict[str, object]:
        """The base model, number of epochs and scope of the divisor that most runs have."""
        names = ("model", "epochs", "scope")
        return {name: self.table[name].astype(str).mode().iloc[0] for name in names}

    def at(self, **other: str) -> pd.DataFrame:
        """Return the runs at the usual place, but for what is named."""
        kept = pd.Series(True, self.table.index)
        for name, level in {**self.usual, **other}.items():
            kept &= self.table[name].astype(str) == level
        return self.table[kept]


def runs_of(study: Study) -> list[Runs]:
    """Return the runs by group of tasks; none where IT and IM are not both there."""
    return list(_runs(study.rows)) if "masking" in study.rows else []


def _runs(rows: pd.DataFrame) -> Iterator[Runs]:
    for group, own in rows.groupby("task_group", observed=True, sort=False):
        table = run_means(own)
        table = table.assign(arm=arms(table))
        table["epochs"] = table[EPOCHS].astype(str) if EPOCHS in table else "as given"
        if "scope" not in table:
            table["scope"] = "batch"
        if {IT, IM} <= set(table["arm"]) or {IT, MODES["im_released"]} <= set(table["arm"]):
            yield Runs(str(group), table)


def arms(runs: pd.DataFrame) -> list[str]:
    """Return the name of every run's arm."""
    return [_arm(row) for row in runs.to_dict("records")]


def _arm(row: Mapping[Any, Any]) -> str:
    mode = str(row["masking"])
    name = IT if _number(row, "wp") == 0 else MODES.get(mode, mode)
    if name not in (IT, MODES["im_released"]) and _number(row, "plw", 1.0) != 1:
        name += f" at PLW {_number(row, 'plw'):g}"
    held = str(row.get("regulariser", "none"))
    if held == "neftune":
        name += " + NEFTune"
    elif held == "kl":
        name += f" + KL {_number(row, PENALTY):g}" if PENALTY in row else " + KL"
    elif held != "none":
        name += f" + {held}"
    weight = _number(row, "completion_weight", 1.0)
    return name if weight == 1 else f"{name} + released KL {1 - weight:.3g}"


def near_levels(ratios: "pd.Series[float]") -> "pd.Series[float]":
    """Return ratios with those within a tenth of the next as one, their geometric mean.

    Data sets that are drawn to one ratio do not have it to the last digit.
    """
    known = np.sort(ratios.dropna().unique())
    group = np.cumsum(np.diff(np.log(known), prepend=-np.inf) > np.log(NEAR))
    centre = pd.Series(np.log(known)).groupby(group).mean().map(np.exp)
    return ratios.map(dict(zip(known, centre[group], strict=True)))


def _number(row: Mapping[Any, Any], name: str, usual: float = float("nan")) -> float:
    value = row.get(name, usual)
    return float(str(value)) if value is not None and value is not pd.NA else usual


def pairs(runs: pd.DataFrame, plus: str, minus: str) -> pd.DataFrame:
    """Return a row per pair of an arm and another, with `gap`, in points."""
    bare = runs.drop(columns=[n for n in OF_THE_ARM if n in runs])
    return gaps(bare, bare["arm"] == plus, bare["arm"] == minus)


def mean_gap(found: pd.DataFrame, name: str = "") -> tuple[Estimate, bool] | None:
    """Return the mean gap over data sets and whether they have several pairs; None of fewer than
    two.
    """
    return _coefficient(found, "gap ~ 1", 0, name)


def slope(found: pd.DataFrame, x: "pd.Series[float]", name: str = "") -> Estimate | None:
    """Return the gap's change per unit of x, each data set its own level as a random effect."""
    if x.nunique() < 2:
        return None
    made = _coefficient(found.assign(x=x - x.mean()), "gap ~ x", 1, name)
    return None if made is None else made[0]


def _coefficient(
    found: pd.DataFrame, formula: str, which: int, name: str
) -> tuple[Estimate, bool] | None:
    if len(found) < which + 2:
        return None
    cell = found["dataset"].astype(str) + " " + found["model"].astype(str)
    frame = found.assign(cell=cell)
    whole, replicated = cell_formula(f"{formula} + (1 | cell)", frame)
    try:
        fit = fit_mixed(frame, whole)
    except AnalysisError:
        return None
    l_B = np.zeros(len(fit.fixef))
    l_B[which] = 1.0
    return contrast(fit, l_B, name=name, df=DF), replicated

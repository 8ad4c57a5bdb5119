"""Questions across panels: does the weight act anywhere, is it a line, do panels agree?

One model of all panels, with every term of the default model by panel, a residual standard
deviation of its own for every panel (`engine.dispersion`) and a cell's effect:

    score ~ panel + panel:(terms) + (1 | cell),   log sd of the residual ~ panel

A cell's scores in several panels are its own in each. Scores are counted in standard deviations of
their panel, as its own model has them, so that one standard deviation of cells serves all. Tests
are F tests of that model's contrasts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.formula import parse
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import joint
from analysis.inference.mean_response import response
from analysis.mixed import MixedFit, fit_mixed
from analysis.regression.panels import PanelModel, dose_curves
from analysis.regression.study import Study

ANY, CURVED = "the weight acts in some panel", "the score is no line over w_p in some panel"
AGREE = "PLW 1 − PLW 0 differs between panels"
SAME = 1e-9  # relative difference up to which two contrasts are one


@dataclass(frozen=True, slots=True)
class Across:
    """The model of all panels, and its curves as contrasts."""

    fit: MixedFit
    curves: list[tuple[dict[str, str], float, Array]]  # labels, points a unit, l_2B of w_p, w_p^2

    def points(self, labels: Mapping[str, str]) -> Array:
        """Return the coefficients of w_p and w_p^2 of one curve in points, as contrasts (2, B)."""
        return next(sd * l_2B for own, sd, l_2B in self.curves if own == labels)


def across(study: Study) -> pd.DataFrame:
    """Return the F tests over all panels: question, f, df, df_residual, p; empty without any."""
    found = across_model(study)
    return pd.DataFrame() if found is None else f_tests(found)


def across_model(study: Study) -> Across | None:
    """Return the model of all panels of a study; one of all scores where that was asked for."""
    return study.once("across", lambda: _model(study))


def _model(study: Study) -> Across | None:
    if study.many:
        return None
    if study.joint is None:
        return joint_model(study.panels, study.formula)
    curves = [c for c in study.curves if c.replicated]
    found = [(c.labels, 1.0, c.response().l_3B[1:]) for c in curves] if study.dosed else []
    return Across(study.joint.fit, found) if found else None


def joint_model(panels: Sequence[PanelModel], formula: str) -> Across | None:
    """Return the model of all panels with replicates and a weight; None where there is none.

    Args:
        panels: with their own models.
        formula: of all of them.
    """
    named = {
        f"p{i:03d}": m for i, m in enumerate(panels) if m.replicated and list(dose_curves([m]))
    }
    if not named:
        return None
    sd_P = {name: spread(model) for name, model in named.items()}
    runs = {n: _runs(n, model, sd_P[n]) for n, model in named.items()}
    table = pd.concat(runs.values(), ignore_index=True)
    fixed = parse(formula, table.columns).fixed.replace(" ** ", "^")
    several = len(named) > 1
    terms = f"0 + panel + panel:({fixed})" if several else fixed
    cells = " + (1 | cell)" if any(m.fit.random for m in named.values()) else ""
    try:
        fit = fit_mixed(table, f"score ~ {terms}{cells}", dispersion="~ panel" if several else None)
    except AnalysisError:
        return None
    curves = []
    for name, model in named.items():
        for one in dose_curves([model]):
            rows = _runs(name, model, 1.0).assign(
                mode=one.labels["mode"], curved=one.rows["curved"]
            )
            l_3B = response(fit, rows).l_3B
            curves.append((one.labels, sd_P[name], l_3B[1:]))
    return Across(fit, curves)


def spread(model: PanelModel) -> float:
    """Return the standard deviation of a run's score about its panel's fixed part, in points."""
    cell = model.fit.random.get("cell")
    between = 0.0 if cell is None else float(cell.sd.iloc[0]) ** 2
    return float(np.sqrt(between + model.fit.sigma**2))


def _runs(name: str, model: PanelModel, sd: float) -> pd.DataFrame:
    runs = model.frame
    return runs.assign(panel=name, cell=name + " " + runs["cell"], score=runs["score"] / sd)


def f_tests(found: Across) -> pd.DataFrame:
    """Return the F tests over all panels, those that there is anything to test of."""
    known = [(labels, sd, l_2B) for labels, sd, l_2B in found.curves if np.isfinite(l_2B).all()]
    lines = [l_2B[0] for _, _, l_2B in known]
    bends = [l_2B[1] for _, _, l_2B in known if l_2B[1].any()]
    asked = {ANY: [*lines, *bends], CURVED: bends}
    for mode in dict.fromkeys(labels["mode"] for labels, _, _ in known):
        own = [sd * l_2B.sum(axis=0) for labels, sd, l_2B in known if labels["mode"] == mode]
        gaps = [l_B - own[0] for l_B in own[1:]]
        # A formula of the user's may give every panel one curve: they agree by its form.
        least = SAME * max((np.abs(l_B).max() for l_B in own), default=0.0)
        asked[f"{AGREE}: {mode}"] = [l_B for l_B in gaps if np.abs(l_B).max() > least]
    rows = []
    for question, l_KB in asked.items():
        if l_KB:
            test = joint(found.fit, np.array(l_KB))
            rows.append(
                {"question": question, "f": test.statistic, "df": test.df,
                 "df_residual": test.df_residual, "p": test.p}
            )  # fmt: skip
    return pd.DataFrame(rows)

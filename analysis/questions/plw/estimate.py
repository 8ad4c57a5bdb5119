"""What the prompt loss weight does, read off a fitted default model.

A panel is one masking mode in one task group and data-set type; its curve is the mean response of
its rows to the weight (`analysis.inference.mean_response`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.curve.best import best_row, objection
from analysis.curve.shape import Shape, shapes
from analysis.errors import AnalysisError
from analysis.inference.estimates import (
    DF_RULES,
    Estimate,
    LikelihoodRatio,
    contrast,
    equivalence,
    holm,
    likelihood_ratio,
)
from analysis.inference.mean_response import Response, response
from analysis.inference.optimum import Optimum, optimum
from analysis.mixed import MixedFit, fit_mixed
from analysis.regression.default_model import default_formula
from analysis.regression.model import MARGIN
from analysis.regression.study import ALPHA, UNADJUSTED, Study
from analysis.report.words import group_order
from analysis.table.frame import study_rows
from analysis.table.run_panels import Panel, key_of, panels


def dose(study: Study) -> pd.DataFrame:
    """Return `dose_rows` of a study; empty where its model has no prompt loss weight."""
    return study.once("dose", lambda: _dose(study))


def _dose(study: Study) -> pd.DataFrame:
    if not study.dosed:
        return pd.DataFrame()
    table = dose_rows(study.fit, study.frame, study_shapes(study), margin=study.margin, df=study.df)
    if not len(table):
        return table
    return table.assign(because=table["because"].mask(table["effect"].isna(), _unknown(study)))


def _unknown(study: Study) -> str:
    """Return why an effect of the weight has no estimate: what of the model determines it."""
    used = set(study.fit.design.parsed.columns) - {"seed"}
    for factor in (f for f in study.factors if f.column in used):
        if study.rows.groupby(factor.column, observed=True)["wp"].nunique().max() == 1:
            return f"each level of {factor.column} ran at one effective prompt loss weight"
    return "the other columns of the model determine the prompt loss weight of these runs"


def study_shapes(study: Study) -> list[Shape]:
    """Return the tests of every panel's curve; empty where the model has no weight."""
    return study.once("shapes", lambda: shapes(study.frame) if study.dosed else [])


def dose_rows(
    fit: MixedFit,
    frame: pd.DataFrame,
    tested: Sequence[Shape],
    *,
    margin: float = MARGIN,
    df: str = DF_RULES[0],
) -> pd.DataFrame:
    """Return `dose_table`, curved modes first, its p-values and verdicts adjusted by Holm.

    Empty where the formula is one of the user's own that is not quadratic in the weight.
    """
    try:
        table = dose_table(fit, frame, tested, margin=margin, df=df)
    except AnalysisError:
        return pd.DataFrame()
    if not len(table):
        return table
    table = table.assign(p_any_holm=holm(table["p_any"].tolist()))
    unclear = table["p_holm"] >= ALPHA
    table["verdict"] = table["verdict"].mask(unclear, table["verdict"].replace(UNADJUSTED))
    table = table.assign(curved=table["b2_se"].gt(0), place=table["task_group"].map(group_order))
    order = table.sort_values(
        ["curved", "mode", "dataset_type", "place"], ascending=[False, True, True, True],
        kind="stable",
    )  # fmt: skip
    return order.drop(columns="place").reset_index(drop=True)


def dose_table(
    fit: MixedFit,
    frame: pd.DataFrame,
    tested: Sequence[Shape] = (),
    *,
    margin: float = MARGIN,
    df: str = DF_RULES[0],
) -> pd.DataFrame:
    """Return one row per panel: the effect of weight 1 against 0, its curvature, its optimum.

    `effect` is the score at PLW 1 less that at PLW 0, in points, with interval, Holm-adjusted p,
    the minimum detectable effect, and the verdict of the equivalence test at +- `margin`. `p_any`
    tests the whole curve against a flat one: a curve that comes back down has an effect, though
    none at PLW 1. The columns of the optimum are those of `curve.best.best_row`.

    Args:
        fit: of a formula that is at most quadratic in wp.
        frame: the prepared results table that was fitted.
        tested: the tests of the panels' curves; a panel without one has no optimum inside.
        margin: the smallest effect of interest, in points.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.

    Raises:
        AnalysisError: the formula is not quadratic in wp.
    """
    known = {key_of(shape.labels): shape for shape in tested}
    rows = []
    for panel in panels(study_rows(frame)):
        curve = response(fit, panel.rows, df=df)
        rows.append(
            panel.labels
            | {"scores": panel.n, "runs": panel.runs}
            | _effect(curve.gain(1.0), margin)
            | _curvature(curve)
            | best_row(panel_optimum(curve, panel), objection(known.get(key_of(panel.labels))))
        )
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].tolist())) if len(table) else table


def _effect(gain: Estimate, margin: float) -> dict[str, float | str]:
    same = equivalence(gain, margin)
    return {
        "effect": gain.estimate, "se": gain.se, "df": gain.df, "low": gain.low, "high": gain.high,
        "p": gain.p, "mde": gain.mde, "margin": margin, "p_equivalence": same.p,
        "verdict": same.verdict,
    }  # fmt: skip


def _curvature(curve: Response) -> dict[str, float]:
    b1, b2 = (contrast(curve.fit, l_B, df=curve.df) for l_B in curve.l_3B[1:])
    return {
        "p_any": curve.quadratic.p, "b1": b1.estimate, "b1_se": b1.se,
        "b2": b2.estimate, "b2_se": b2.se, "b2_p": b2.p,
    }  # fmt: skip


def panel_optimum(curve: Response, panel: Panel) -> Optimum | None:
    """Return the optimum of a panel's curve; None where the table determines no curve."""
    known = panel.levels > 1 and bool(np.isfinite(curve.l_3B[1:]).all())
    return optimum(curve.quadratic) if known else None


def linear_against_quadratic(frame: pd.DataFrame) -> dict[str, LikelihoodRatio]:
    """Return the ML tests "any effect" (none against a line) and "curvature" (line, quadratic)."""
    rows = study_rows(frame).dropna(subset=["wp"])
    fits = [
        fit_mixed(rows, default_formula(frame, degree=degree)[0], method="ML")
        for degree in (0, 1, 2)
    ]
    found = {}
    for name, small, large in (("any effect", 0, 1), ("curvature", 1, 2)):
        if fits[large].parameters > fits[small].parameters:
            found[name] = likelihood_ratio(fits[small], fits[large])
    return found

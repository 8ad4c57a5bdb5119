"""What the prompt loss weight does, read off the panels' models.

A curve is one masking mode in one panel (data set, base model, task group): the mean response of
the panel's rows to the weight (`analysis.inference.mean_response`).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from analysis.curve.best import best_row, objection
from analysis.curve.shape import Shape, shapes
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate, contrast, equivalence, holm
from analysis.inference.mean_response import Response
from analysis.inference.optimum import Optimum, optimum
from analysis.regression.model import MARGIN
from analysis.regression.panels import DoseCurve
from analysis.regression.study import ALPHA, UNADJUSTED, Study
from analysis.report.headline import ONE_SEED, shared
from analysis.report.words import group_order
from analysis.table.run_panels import key_of

NO_OPTIMUM = best_row(None, "") | {"because": ONE_SEED}


def dose(study: Study) -> pd.DataFrame:
    """Return `dose_rows` of a study; empty where its model has no prompt loss weight."""
    return study.once("dose", lambda: _dose(study))


def _dose(study: Study) -> pd.DataFrame:
    if not study.dosed:
        return pd.DataFrame()
    table = dose_rows(
        study.curves, study_shapes(study), margin=study.margin, questions=study.questions
    )
    if not len(table):
        return table
    return table.assign(because=table["because"].mask(table["effect"].isna(), _unknown(study)))


def _unknown(study: Study) -> str:
    """Return why an effect of the weight has no estimate: what of the model determines it."""
    used = study.columns - {"seed"}
    for factor in (f for f in study.factors if f.column in used):
        if study.rows.groupby(factor.column, observed=True)["wp"].nunique().max() == 1:
            return f"each level of {factor.column} ran at one effective prompt loss weight"
    return "the other columns of the model determine the prompt loss weight of these runs"


def study_shapes(study: Study) -> list[Shape]:
    """Return the tests of every curve's shape; empty where the model has no weight."""
    return study.once("shapes", lambda: shapes(study.frame, df=study.df) if study.dosed else [])


def dose_rows(
    curves: Iterable[DoseCurve],
    tested: Sequence[Shape],
    *,
    margin: float = MARGIN,
    questions: int = 1,
) -> pd.DataFrame:
    """Return `dose_table`, curved modes first, its p-values and verdicts adjusted by Holm, and for
    the questions that share the level of the tests (`headline.shared`).

    Empty where the formula is one of the user's own that is not quadratic in the weight.
    """
    try:
        table = dose_table(curves, tested, margin=margin)
    except AnalysisError:
        return pd.DataFrame()
    if not len(table):
        return table
    table = table.assign(
        p_holm=shared(table["p"].tolist(), questions),
        p_any_holm=shared(table["p_any"].tolist(), questions),
    )
    unclear = table["p_holm"] >= ALPHA
    table["verdict"] = table["verdict"].mask(unclear, table["verdict"].replace(UNADJUSTED))
    table = table.assign(curved=table["b2_se"].gt(0), place=table["task_group"].map(group_order))
    order = table.sort_values(
        ["curved", "mode", "dataset", "model", "place"],
        ascending=[False, True, True, True, True], kind="stable",
    )  # fmt: skip
    return order.drop(columns="place").reset_index(drop=True)


def dose_table(
    curves: Iterable[DoseCurve], tested: Sequence[Shape] = (), *, margin: float = MARGIN
) -> pd.DataFrame:
    """Return one row per curve: the effect of weight 1 against 0, its curvature, its optimum.

    `effect` is the score at PLW 1 less that at PLW 0, in points, with interval, Holm-adjusted p,
    the minimum detectable effect, and the verdict of the equivalence test at +- `margin`. `p_any`
    tests the whole curve against a flat one: a curve that comes back down has an effect, though
    none at PLW 1. The columns of the optimum are those of `curve.best.best_row`. `replicated` says
    whether cells of the panel ran under several seeds, without which no verdict is given.

    Args:
        curves: of models that are at most quadratic in wp.
        tested: the tests of the curves' shapes; a curve without one has no optimum inside.
        margin: the smallest effect of interest, in points.

    Raises:
        AnalysisError: the formula is not quadratic in wp.
    """
    known = {key_of(shape.labels): shape for shape in tested}
    rows = []
    for one in curves:
        curve, doubt = one.response(), objection(known.get(key_of(one.labels)))
        head = {"runs": one.runs, "replicated": one.replicated, "fit_status": one.reg.status}
        row = one.labels | head | _effect(curve.gain(1.0), margin) | _curvature(curve)
        row |= best_row(curve_optimum(curve, one.levels), doubt)
        rows.append(row if one.replicated else _without_tests(row))
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].tolist())) if len(table) else table


def _without_tests(row: dict[str, object]) -> dict[str, object]:
    """Return a row of cells without replicates: estimates, but no test and no optimum."""
    tests = dict.fromkeys(("p", "p_any", "p_equivalence", "b2_p"), np.nan)
    known = np.isfinite(float(str(row["effect"])))
    return row | tests | {"verdict": "undecided" if known else row["verdict"]} | NO_OPTIMUM


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


def curve_optimum(curve: Response, levels: int) -> Optimum | None:
    """Return the optimum of a curve; None where the table determines no curve."""
    known = levels > 1 and bool(np.isfinite(curve.l_3B[1:]).all())
    return optimum(curve.quadratic) if known else None

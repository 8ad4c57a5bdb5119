"""All that is asked of a fitted quadratic's shape, a panel each, and the verdicts in words.

Against any curve and a spline (`study.lack_of_fit`), against a monotone curve (`study.monotone`),
and refitted to the weights above 0: the level 0 is far from the others on the scale
w_p = PLW^0.3 and may bend the curve alone.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.optimum import INTERIOR, NOT_IDENTIFIED, Optimum, Quadratic, optimum
from analysis.questions.plw.lack_of_fit import FTest, any_curve_test, spline_test
from analysis.questions.plw.level_curve import Curve, reduced
from analysis.questions.plw.monotone import ALPHA, DRAWS, MonotoneTest, monotone_test
from analysis.table.run_panels import RunPanel, run_panels

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Shape:
    """All that is asked of one panel's curve."""

    labels: dict[str, str]
    runs: int
    levels: int
    data: Curve
    curve: Quadratic
    best: Optimum
    any_curve: FTest
    spline: FTest
    monotone: MonotoneTest
    above_zero: Quadratic | None  # refitted to the weights above 0; None with fewer than 3
    best_above_zero: Optimum | None
    survives: str
    verdict: str

    @property
    def inside(self) -> bool:
        """Whether an optimum inside is shown: the quadratic fits and no monotone curve does."""
        misfit = self.any_curve.p < ALPHA or self.spline.p < ALPHA
        return self.best.verdict == INTERIOR and not misfit and self.monotone.p_monotone < ALPHA


def shapes(frame: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> list[Shape]:
    """Return the shape of every panel with two weights above 0 and replicates to judge it by."""
    found = []
    for panel in run_panels(frame):
        try:
            found.append(shape(panel, draws=draws, seed=seed))
        except AnalysisError:
            continue
    return found


def shape(panel: RunPanel, *, draws: int = DRAWS, seed: int = 0) -> Shape:
    """Return every test of one panel's curve.

    Raises:
        AnalysisError: there are fewer than three levels, or no replicate to judge noise by.
    """
    found = reduced(panel.runs)
    curve = found.quadratic
    best = optimum(curve)
    any_curve, spline = any_curve_test(found), spline_test(found)
    monotone = monotone_test(found, draws=draws, seed=seed)
    above = _above_zero(panel.runs)
    best_above = optimum(above, low=_least(panel.runs)) if above is not None else None
    return Shape(
        panel.labels, len(panel.runs), len(found.x_L), found, curve, best, any_curve, spline,
        monotone, above, best_above, _survives(curve, above),
        _verdict(best, any_curve, spline, monotone),
    )  # fmt: skip


def _above_zero(runs: pd.DataFrame) -> Quadratic | None:
    above = runs[runs["wp"] > 0]
    try:
        return reduced(above).quadratic
    except AnalysisError:
        return None


def _least(runs: pd.DataFrame) -> float:
    return float(runs.loc[runs["wp"] > 0, "wp"].min())


def curvature_p(curve: Quadratic) -> float:
    """Return the p-value of b2 = 0."""
    return float(2 * stats.t.sf(abs(curve.b2) / np.sqrt(curve.cov_22[1, 1]), curve.df))


def _survives(curve: Quadratic, above: Quadratic | None) -> str:
    if above is None:
        return "too few weights above 0 to tell"
    if curvature_p(curve) >= ALPHA:
        return "no curvature to begin with"
    if curvature_p(above) < ALPHA:
        same = curve.b2 * above.b2 > 0
        return "curvature survives" if same else "curvature turns its sign"
    return "curvature cannot be shown without PLW 0"


def _verdict(best: Optimum, any_curve: FTest, spline: FTest, monotone: MonotoneTest) -> str:
    if any_curve.p < ALPHA or spline.p < ALPHA:
        return "the quadratic does not fit: its optimum is not to be trusted"
    fits = "the quadratic fits" if any_curve.p >= ALPHA else "too few levels to judge the quadratic"
    if best.verdict == INTERIOR:
        shown = monotone.p_monotone < ALPHA
        return f"{fits}; {'its optimum is inside' if shown else 'a monotone curve does as well'}"
    unknown = best.verdict == NOT_IDENTIFIED
    return f"{fits}; {'where it is best cannot be told' if unknown else 'no interior optimum'}"


def shape_table(found: list[Shape]) -> pd.DataFrame:
    """Return one row per panel with the p-values of all tests and the verdicts in words."""
    return pd.DataFrame([_row(one) for one in found])


def _row(one: Shape) -> dict[str, object]:
    above, best = one.above_zero, one.best_above_zero
    return one.labels | {
        "runs": one.runs, "levels": one.levels, "optimum": one.best.verdict,
        "any_curve_f": one.any_curve.statistic, "any_curve_df": one.any_curve.df,
        "any_curve_p": one.any_curve.p, "spline_p": one.spline.p,
        "monotone_p": one.monotone.p_monotone, "quadratic_p": one.monotone.p_quadratic,
        "b2": one.curve.b2, "b2_p": curvature_p(one.curve),
        "b2_above_zero": NAN if above is None else above.b2,
        "b2_above_zero_p": NAN if above is None else curvature_p(above),
        "optimum_above_zero": NOT_IDENTIFIED if best is None else best.verdict,
        "monotone": one.monotone.verdict, "without_zero": one.survives, "verdict": one.verdict,
    }  # fmt: skip

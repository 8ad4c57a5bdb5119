"""The tests of a curve's shape, a panel each: may a quadratic's maximum be taken for an optimum?

Against any curve and a spline (`curve.lack_of_fit`), against a monotone curve (`curve.monotone`),
and refitted to the weights above 0: the level 0 is far from the others on the scale
w_p = PLW^0.30103 and may bend the curve alone. Where the optimum is and how well that is known is
the model's (`plw.estimate`); here runs are the units, and cells are random where they can be told
from noise.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.curve.lack_of_fit import FTest, any_curve_test, spline_test
from analysis.curve.level_curve import Curve, reduced
from analysis.curve.monotone import ALPHA, DRAWS, MonotoneTest, monotone_test
from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES
from analysis.inference.optimum import Quadratic
from analysis.table.run_panels import RunPanel, run_panels

NAN = float("nan")
MISFIT = "the quadratic does not fit, so its maximum is no evidence of an optimum"
MONOTONE = "a curve that only rises or only falls fits as well"
NOT_MONOTONE = "it rises and comes back down"


@dataclass(frozen=True, slots=True)
class Shape:
    """The tests of one panel's curve."""

    labels: dict[str, str]
    runs: int
    levels: int
    data: Curve
    any_curve: FTest
    spline: FTest
    monotone: MonotoneTest
    above_zero: Quadratic | None  # refitted to the weights above 0; None with fewer than 3

    @property
    def fits(self) -> bool:
        """Whether neither F test rejects the quadratic at the 5 % level."""
        return not (self.any_curve.p < ALPHA or self.spline.p < ALPHA)

    @property
    def bears_maximum(self) -> bool:
        """Whether a maximum inside is borne: the quadratic fits and no monotone curve does."""
        return self.fits and self.monotone.p_monotone < ALPHA

    @property
    def objection(self) -> str:
        """Why a maximum inside is not borne; "" where it is."""
        if not self.fits:
            return MISFIT
        return "" if self.bears_maximum else MONOTONE

    @property
    def verdict(self) -> str:
        """What the tests say of the quadratic, in words."""
        if not self.fits:
            return MISFIT
        judged = np.isfinite(self.any_curve.p)
        fits = "the quadratic fits" if judged else "too few levels to judge the quadratic"
        return f"{fits}; {NOT_MONOTONE if self.bears_maximum else MONOTONE}"


def shapes(
    frame: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0, df: str = DF_RULES[0]
) -> list[Shape]:
    """Return the shape of every panel with two weights above 0 and replicates to judge it by.

    Args:
        frame: a prepared results table of `analysis.table.frame`.
        draws: of the parametric bootstrap of the monotone test.
        seed: of the draws.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.
    """
    found = []
    for panel in run_panels(frame):
        if panel.runs["cell"].duplicated().any():
            with suppress(AnalysisError):
                found.append(shape(panel, draws=draws, seed=seed, df=df))
    return found


def shape(panel: RunPanel, *, draws: int = DRAWS, seed: int = 0, df: str = DF_RULES[0]) -> Shape:
    """Return every test of one panel's curve.

    Raises:
        AnalysisError: there are fewer than three levels, or no noise to judge by.
    """
    found = reduced(panel.runs, df=df)
    return Shape(
        panel.labels, len(panel.runs), len(found.x_L), found, any_curve_test(found),
        spline_test(found), monotone_test(found, draws=draws, seed=seed),
        _above_zero(panel.runs, df),
    )  # fmt: skip


def _above_zero(runs: pd.DataFrame, df: str) -> Quadratic | None:
    above = runs[runs["wp"] > 0]
    try:
        return reduced(above, df=df).quadratic
    except AnalysisError:
        return None


def curvature_p(curve: Quadratic) -> float:
    """Return the p-value of b2 = 0."""
    return float(2 * stats.t.sf(abs(curve.b2) / np.sqrt(curve.cov_22[1, 1]), curve.df))


def without_zero(curve: Quadratic, above: Quadratic | None) -> str:
    """Return in words whether the curvature is there without the runs at weight 0."""
    if above is None:
        return "too few weights above 0 to test"
    if curvature_p(curve) >= ALPHA:
        return "no curvature to begin with"
    if curvature_p(above) < ALPHA:
        same = curve.b2 * above.b2 > 0
        return "curvature survives" if same else "curvature turns its sign"
    return "curvature cannot be shown without PLW 0"


def shape_table(found: list[Shape]) -> pd.DataFrame:
    """Return one row per panel with the p-values of all tests and the verdicts in words."""
    return pd.DataFrame([_row(one) for one in found])


def _row(one: Shape) -> dict[str, object]:
    curve, above = one.data.quadratic, one.above_zero
    return one.labels | {
        "runs": one.runs, "levels": one.levels,
        "any_curve_f": one.any_curve.statistic, "any_curve_df": one.any_curve.df,
        "any_curve_p": one.any_curve.p, "spline_p": one.spline.p,
        "monotone_p": one.monotone.p_monotone, "quadratic_p": one.monotone.p_quadratic,
        "b2": curve.b2, "b2_p": curvature_p(curve),
        "b2_above_zero": NAN if above is None else above.b2,
        "b2_above_zero_p": NAN if above is None else curvature_p(above),
        "verdict": one.verdict, "monotone": one.monotone.verdict,
        "without_zero": without_zero(curve, above),
    }  # fmt: skip

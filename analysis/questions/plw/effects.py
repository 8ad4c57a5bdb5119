"""What the prompt loss weight does, read off a fitted default model.

A panel is one masking mode in one task group and data-set type. Everything here is a contrast
l' beta, where l is a mean of rows of the fixed-effects matrix with the weight set to a value: a
mean over the panel's own mixture of tasks, adapters, ranks and blocks. It therefore works for any
formula that is at most quadratic in the weight, however the quadratic is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.formula import matrix_for
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import (
    Estimate,
    LikelihoodRatio,
    contrast,
    equivalence,
    holm,
    likelihood_ratio,
)
from analysis.inference.optimum import NOT_IDENTIFIED, Optimum, Quadratic, optimum
from analysis.mixed import MixedFit, fit_mixed
from analysis.regression.default_model import default_formula
from analysis.regression.model import MARGIN
from analysis.table.frame import plw_of, study_rows

PANEL = ("mode", "task_group", "dataset_type")
SAME_SHAPE = 1e-8  # how far from a quadratic a response may be, relative to its size


@dataclass(frozen=True, slots=True)
class Response:
    """The mean fitted score over a panel's rows as l0 + l1 x + l2 x^2, each l a contrast."""

    l_3B: Array
    fit: MixedFit

    def at(self, x: float) -> Estimate:
        """Return the mean score at x."""
        return contrast(self.fit, _weighted(self.l_3B, np.array([1.0, x, x * x])))

    def gain(self, x: float) -> Estimate:
        """Return the score at x less the score at 0."""
        return contrast(self.fit, _weighted(self.l_3B, np.array([0.0, x, x * x])))

    @property
    def quadratic(self) -> Quadratic:
        """The curve above its start; df is the smaller of the two coefficients' own."""
        l_2B = self.l_3B[1:]
        b1, b2 = (float(l_B @ self.fit.fixef.to_numpy()) for l_B in l_2B)
        known = [contrast(self.fit, l_B) for l_B in l_2B]
        df = float(np.min([e.df for e in known]))
        return Quadratic(b1, b2, l_2B @ self.fit.cov.to_numpy() @ l_2B.T, df)


def _weighted(l_3B: Array, weights_3: Array) -> Array:
    """Return the weighted sum; a part of weight 0 need not be estimable."""
    used = weights_3 != 0
    return weights_3[used] @ l_3B[used] if used.any() else np.zeros(l_3B.shape[1])


@dataclass(frozen=True, slots=True)
class Panel:
    """One mode in one task group and data-set type, and the rows it is averaged over."""

    labels: dict[str, str]
    rows: pd.DataFrame  # with the mode set, so that the weight alone is left to choose
    levels: int  # distinct weights above 0 that were run
    n: int  # scores
    runs: int


def response(fit: MixedFit, rows: pd.DataFrame, variable: str = "wp") -> Response:
    """Return the mean response of `rows` to `variable`, all else as it is in the rows.

    Raises:
        AnalysisError: the formula is not quadratic (or simpler) in the variable.
    """
    if variable not in rows:
        raise AnalysisError(f"variable={variable}: the table has no such column")
    used = [name for name in fit.design.parsed.columns if name in rows and name != variable]
    counted = rows.groupby(used, observed=True, dropna=False).size() if used else None
    distinct = rows.head(1) if counted is None else counted.index.to_frame(index=False)
    weights_N = np.ones(1) if counted is None else counted.to_numpy() / counted.sum()
    points = np.array([0.0, 0.5, 1.0, 0.25])
    copies = pd.concat([distinct.assign(**{variable: x}) for x in points], ignore_index=True)
    parts = np.split(matrix_for(fit.design, copies), len(points))
    means = [weights_N @ x_NC for x_NC in parts]
    powers = np.vander(points, 3, increasing=True)
    l_3C = np.linalg.solve(powers[:3], np.array(means[:3]))
    if np.abs(powers[3] @ l_3C - means[3]).max() > SAME_SHAPE * (1 + np.abs(means[3]).max()):
        raise AnalysisError(f"variable={variable}: the formula is not quadratic in it")
    l_3C[np.abs(l_3C) < SAME_SHAPE] = 0.0  # rounding of the line above
    return Response(fit.kept(l_3C), fit)


def panels(rows: pd.DataFrame) -> Iterator[Panel]:
    """Yield every panel of study rows that ran at least one weight above 0."""
    curved = rows[rows["wp"] > 0]
    for (mode, group, kind), own in curved.groupby(list(PANEL), observed=True):
        labels = {"mode": str(mode), "task_group": str(group), "dataset_type": str(kind)}
        around = rows[(rows["task_group"] == group) & (rows["dataset_type"] == kind)]
        both = around[(around["wp"] == 0) | (around["mode"] == mode)]
        chosen = around.assign(mode=str(mode), curved=float(own["curved"].iloc[0]))
        yield Panel(labels, chosen, own["wp"].nunique(), len(both), both["run"].nunique())


def curves(fit: MixedFit, frame: pd.DataFrame, *, points: int = 41) -> pd.DataFrame:
    """Return every panel's fitted curve with its 95 % band, `points` values of wp in [0, 1].

    Columns: mode, task_group, dataset_type, wp, plw, estimate, low, high (mean score), effect,
    effect_low, effect_high (above the same panel at weight 0).
    """
    found = []
    for panel in panels(study_rows(frame)):
        curve = response(fit, panel.rows)
        for x in np.linspace(0, 1, points):
            level, gain = curve.at(float(x)), curve.gain(float(x))
            found.append(panel.labels | {"wp": x, "plw": plw_of(float(x))} | _band(level, gain))
    return pd.DataFrame(found)


def _band(level: Estimate, gain: Estimate) -> dict[str, float]:
    return {
        "estimate": level.estimate, "low": level.low, "high": level.high,
        "effect": gain.estimate, "effect_low": gain.low, "effect_high": gain.high,
    }  # fmt: skip


def dose_table(fit: MixedFit, frame: pd.DataFrame, *, margin: float = MARGIN) -> pd.DataFrame:
    """Return one row per panel: the effect of weight 1 against 0, its curvature, its optimum.

    `effect` is the score at PLW 1 less that at PLW 0, in points, with interval, Holm-adjusted p,
    the smallest effect that would have been seen, and the verdict of the equivalence test at
    +- `margin`. `p_any` tests the whole curve against a flat one: a curve that comes back down has
    an effect, though none at PLW 1. The optimum has the verdict of `study.optimum` and is given
    as wp and as PLW.
    """
    rows = []
    for panel in panels(study_rows(frame)):
        curve = response(fit, panel.rows)
        best = _optimum(curve, panel)
        rows.append(
            panel.labels
            | {"scores": panel.n, "runs": panel.runs}
            | _effect(curve.gain(1.0), margin)
            | _curvature(curve)
            | _optimum_row(best)
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
    b1, b2 = (contrast(curve.fit, l_B) for l_B in curve.l_3B[1:])
    return {
        "p_any": curve.quadratic.p, "b1": b1.estimate, "b1_se": b1.se,
        "b2": b2.estimate, "b2_se": b2.se, "b2_p": b2.p,
    }  # fmt: skip


def _optimum(curve: Response, panel: Panel) -> Optimum | None:
    """Return the panel's optimum; None where the table determines no curve to have one."""
    known = panel.levels > 1 and bool(np.isfinite(curve.l_3B[1:]).all())
    return optimum(curve.quadratic) if known else None


def _optimum_row(best: Optimum | None) -> dict[str, float | str]:
    if best is None:
        return {
            "optimum": NOT_IDENTIFIED,
            "optimum_words": "too few weights were run to determine a curve",
        }
    low, high = (min(max(x, 0.0), 1.0) for x in best.fieller)
    return {
        "optimum": best.verdict, "optimum_words": best.words,
        "best_wp": best.at, "best_plw": plw_of(best.at), "vertex_wp": best.vertex,
        "fieller_low_wp": best.fieller[0], "fieller_high_wp": best.fieller[1],
        "plw_low": plw_of(low), "plw_high": plw_of(high),
        "delta_low_wp": best.delta[0], "delta_high_wp": best.delta[1],
        "gain": best.gain, "gain_se": best.gain_se,
    }  # fmt: skip


def linear_against_quadratic(frame: pd.DataFrame) -> dict[str, LikelihoodRatio]:
    """Return the ML tests "any effect" (none against a line) and "curvature" (line, quadratic)."""
    rows = study_rows(frame)
    fits = [
        fit_mixed(rows, default_formula(frame, degree=degree)[0], method="ML")
        for degree in (0, 1, 2)
    ]
    found = {}
    for name, small, large in (("any effect", 0, 1), ("curvature", 1, 2)):
        if fits[large].parameters > fits[small].parameters:
            found[name] = likelihood_ratio(fits[small], fits[large])
    return found

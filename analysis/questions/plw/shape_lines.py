"""What a figure of a curve's shape draws: level means, the quadratic, the spline, the monotone fit.

All heights are above the first level of the weight, arm and seed adjusted for.
"""

import numpy as np
import pandas as pd
from scipy import stats

from analysis.curve.lack_of_fit import TESTABLE, knots_of, natural_spline
from analysis.curve.level_curve import Curve, least_squares, power_columns
from analysis.curve.monotone import monotone_fit
from analysis.engine.linalg import Array
from analysis.inference.estimates import LEVEL

POINTS = 61


def level_points(found: Curve) -> pd.DataFrame:
    """Return wp, estimate, low, high: every level above the first, whose own are 0."""
    inverse_MM = np.tril(np.ones_like(found.r_MM)) @ np.linalg.inv(found.r_MM)
    mean_M = inverse_MM @ found.m_M
    se_M = np.sqrt(found.variance * (inverse_MM**2).sum(axis=1))
    half_M = float(stats.t.ppf((1 + LEVEL) / 2, found.df)) * se_M
    points = {"estimate": mean_M, "low": mean_M - half_M, "high": mean_M + half_M}
    table = pd.DataFrame({name: [0.0, *values] for name, values in points.items()})
    return table.assign(wp=found.x_L)


def fitted_lines(found: Curve) -> pd.DataFrame:
    """Return kind ("quadratic", "spline", "monotone"), wp, estimate; the spline from 4 levels."""
    wp_P = np.linspace(found.x_L[0], found.x_L[-1], POINTS)
    steps_M = monotone_fit(found.r_MM, found.m_M)[0]
    heights_L = np.concatenate([[0.0], np.cumsum(steps_M)])
    lines = {
        "quadratic": _polynomial(found, wp_P),
        "monotone": np.interp(wp_P, found.x_L, heights_L),
    }
    if len(found.x_L) >= TESTABLE:
        lines["spline"] = _spline(found, wp_P)
    parts = [pd.DataFrame({"kind": k, "wp": wp_P, "estimate": v}) for k, v in lines.items()]
    return pd.concat(parts, ignore_index=True)


def _polynomial(found: Curve, wp_P: Array) -> Array:
    b_2, _ = least_squares(power_columns(found, 2), found.m_M)
    heights_P = np.vander(wp_P, 3, increasing=True)[:, 1:] @ b_2
    start = np.vander(found.x_L[:1], 3, increasing=True)[0, 1:] @ b_2
    return np.asarray(heights_P - start)


def _spline(found: Curve, wp_P: Array) -> Array:
    knots_K = knots_of(found.x_L)
    basis_LS = np.column_stack([found.x_L, natural_spline(found.x_L, knots_K)])
    b_S, _ = least_squares(found.r_MM @ np.diff(basis_LS, axis=0), found.m_M)
    columns_PS = np.column_stack([wp_P, natural_spline(wp_P, knots_K)])
    return np.asarray((columns_PS - columns_PS[0]) @ b_S)

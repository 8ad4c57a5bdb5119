"""The best prompt loss weight of an external table, printed only where the curve's shape bears it.

A column `wp` that the table shows to be PLW^0.30103 is told as PLW, over all of [0, 1]; one of the
table's own is told as it is, over the range that it was run at.

The tests of the shape (`analysis.curve`) want rows whose errors are independent, so the table is
first brought to one row per unit: rows that share a level of a random group in which the weight
does not vary (a run, say) count once, as their mean. What else the formula has is adjusted for:
fixed columns and groups with a random slope as the arm, the random group of most levels as the
block.
"""

import re

import numpy as np
import pandas as pd

from analysis.curve.best import NAN, best_row, objection
from analysis.curve.shape import Shape, shape
from analysis.errors import AnalysisError
from analysis.inference.mean_response import Response, response
from analysis.inference.optimum import INTERIOR, optimum
from analysis.regression.model import Regression
from analysis.table.run_panels import RunPanel


def curve_of(reg: Regression) -> Response | None:
    """Return the fitted curve over w_p; None where the formula has none."""
    if "wp" not in reg.fit.design.needed or reg.used["wp"].nunique() < 3:
        return None
    try:
        return response(reg.fit, reg.used, df=reg.df)
    except AnalysisError:  # a formula that is no quadratic in the weight has no optimum to give
        return None


def best_weight(reg: Regression) -> pd.DataFrame:
    """Return the weight with the highest fitted score in one row; none without a curve over it.

    The verdict and its numbers are those of `analysis.curve.best.best_row`: NaN where the tests of
    the curve's shape do not bear an optimum inside, or could not be made.
    """
    curve = curve_of(reg)
    if curve is None:
        return pd.DataFrame()
    ends = span(reg)
    best = optimum(curve.quadratic, low=ends[0], high=ends[1])
    inside = best.verdict == INTERIOR
    doubt = objection(reg.once("shape", lambda: shape_of(reg))) if inside else ""
    found = best_row(best, doubt)
    told = [found[name] for name in ("best_plw", "plw_low", "plw_high")]
    if reg.own_wp:
        shown = inside and not doubt
        told = [found["best_wp"], *(np.clip(x, *ends) if shown else NAN for x in best.fieller)]
    row = {"label": reg.score, "verdict": found["optimum"],
           **dict(zip(("estimate", "low", "high"), told, strict=True)),
           "because": found["because"], "fit_status": reg.status}  # fmt: skip
    return pd.DataFrame([row])


def span(reg: Regression) -> tuple[float, float]:
    """Return the range of wp that a best weight is looked for in."""
    values = reg.used["wp"].to_numpy(dtype=np.float64)
    return (float(values.min()), float(values.max())) if reg.own_wp else (0.0, 1.0)


def shape_of(reg: Regression) -> Shape | None:
    """Return the tests of the curve's shape; None where the table does not allow them."""
    if reg.general or reg.proposal.weights:  # errors without one variance
        return None
    try:
        return shape(RunPanel({}, units(reg)))
    except AnalysisError:
        return None


def units(reg: Regression) -> pd.DataFrame:
    """Return a row per unit with independent errors: wp, score (as modelled), arm, block.

    Raises:
        AnalysisError: the units were not all scored at the same levels of what they are averaged
            over, so that their means cannot be compared.
    """
    design = reg.fit.design
    groups = {bar.group: _label(reg.used, list(bar.group)) for bar in design.parsed.bars}
    sloped = {bar.group for bar in design.parsed.bars if re.search(r"\bwp\b", bar.expression)}
    fixed = [n for n in design.needed if n not in (("wp",) if reg.own_wp else ("wp", "plw"))]
    rows = reg.used[["wp"]].assign(score=design.response_N)
    still = [g for g, level in groups.items() if rows["wp"].groupby(level).nunique().max() == 1]
    unit = min((groups[g] for g in still), key=lambda level: level.nunique(), default=None)
    crossed = sorted(set(groups) - set(still), key=lambda g: groups[g].nunique())
    blocks = [g for g in crossed if g not in sloped][-1:]
    columns = {name: reg.used[name].astype(str) for name in fixed}
    columns |= {":".join(g): groups[g] for g in crossed if g not in blocks}
    block = groups[blocks[0]] if blocks else pd.Series("", index=rows.index)
    parts = pd.DataFrame(columns, index=rows.index).assign(block=block)
    if unit is not None:
        rows, parts = _averaged(rows, parts, unit)
    arm = _label(parts, [str(name) for name in parts if name != "block"])
    return rows.assign(arm=arm, block=parts["block"])


def _label(rows: pd.DataFrame, names: list[str]) -> pd.Series:
    """Return the levels of several columns as one text a row; "" without a column."""
    if not names:
        return pd.Series("", index=rows.index)
    return rows[names].astype(str).agg(":".join, axis=1)


def _averaged(
    rows: pd.DataFrame, parts: pd.DataFrame, unit: pd.Series
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the means of units, and the columns that do not vary within one."""
    varying = [str(n) for n in parts if parts[n].groupby(unit).nunique().max() > 1]
    if varying:
        within = _label(parts, varying)
        held = [tuple(sorted(levels)) for _, levels in within.groupby(unit)]
        if len(set(held)) > 1:
            raise AnalysisError("shape: units were scored at different levels; no means compare")
    kept = parts.drop(columns=varying).groupby(unit).first()
    means = rows.groupby(unit).mean()
    return means, kept if "block" in kept else kept.assign(block="")

"""The figures of any study's report. Each takes a tidy table and returns a Figure.

Tables hold what is drawn; nothing is estimated here. Columns in common: `estimate` with its
interval `low` and `high`, and the levels that it belongs to.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from analysis.report import draw, style, words
from analysis.report.draw import at, levels
from analysis.report.style import MUTED, RULE, styled
from analysis.table.frame import WP_EXPONENT


@styled
def score_curves(
    points: pd.DataFrame,
    curves: pd.DataFrame | None,
    *,
    by: tuple[str, str] = ("stratum", "task_group"),
    base: pd.DataFrame | None = None,
    unit: str = "score (points)",
    last: Callable[[Axes, str], None] | None = None,
    own: str = "",
) -> Figure:
    """Return score against PLW: a column per group of tasks, a row per data set (and base model),
    a colour per masking mode.

    Args:
        points: stratum, task_group, masking, plw, wp, estimate, low, high: the means of the runs.
        curves: stratum, task_group, masking, wp, estimate, low, high: the quadratic, its band.
        by: what tells rows and columns apart, in place of stratum and group of tasks.
        base: stratum, task_group, estimate: the untouched base model's score.
        unit: what the vertical axis counts.
        last: draws one more column, given its axes and the row's level.
        own: the name of a weight on its own scale, which then has no PLW to be marked with.
    """
    rows, columns = (levels(points, name) for name in by)
    wide = len(columns) + (last is not None)
    figure = Figure(figsize=(style.PAGE, 0.6 + 1.45 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), wide, squeeze=False, sharex=True)
    titles = [words.group_text(name).replace(" (", "\n(") for name in columns]
    looks = style.looks(levels(points, "masking"))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            where = dict(zip(by, (row, column), strict=True))
            draw.dose_panel(
                axes[i, j], at(points, where), at(curves, where), by="masking", looks=looks
            )
            draw.reference(axes[i, j], at(base, where)["estimate"])
            axes[i, j].set_title(titles[j] if i == 0 else "")
        axes[i, 0].set_ylabel(row.replace(", ", "\n"), fontweight="bold")
        if last is not None:
            last(axes[i, -1], row)
    figure.supylabel(unit)
    figure.supxlabel(own or draw.PLW)
    if not own:
        draw.plw_axis(axes[-1], points["plw"].unique(), least=0.16 if wide > 3 else 0.085)
    dashed = "untouched base" if base is not None and len(base) else ""
    draw.legend(figure, looks, dashed=dashed)
    return figure


@styled
def forest(
    rows: pd.DataFrame,
    *,
    unit: str = "points",
    margin: float | None = None,
    zero: bool = True,
    narrow: bool = False,
) -> Figure:
    """Return estimates with their intervals, a line each, under the names of their groups.

    Args:
        rows: group, label, estimate, low, high, and optionally verdict: what is not
            "distinguishable" is drawn hollow; second, second_low and second_high of another
            analysis are drawn in grey below.
        unit: what the horizontal axis counts.
        margin: half the width of the range that counts as no effect, drawn as a band.
        zero: whether a line stands at zero, the value of no effect.
        narrow: as wide as one of two columns, or a phone: every label above its line.
    """
    if narrow:
        figure, axis, places = _lines(rows, sizes=(0.5, 0.29, 1.2), width=style.COLUMN)
        draw.labels_above(axis)
    else:
        figure, axis, places = _lines(rows, sizes=(0.5, 0.165, 1.4))
    if margin is not None:
        axis.axvspan(-margin, margin, color=RULE, alpha=0.6, linewidth=0)
    if zero:
        axis.axvline(0, color=MUTED, linewidth=0.7)
    for row, y in places:
        draw.whisker(axis, row, y, look=style.KNOWN_LOOKS["here"])
        draw.second_whisker(axis, row, y - (0.2 if narrow else 0.3))
    axis.set_xlabel(unit)
    return figure


def _lines(
    rows: pd.DataFrame, *, sizes: tuple[float, float, float], width: float = style.PAGE
) -> tuple[Figure, Axes, list[tuple[Any, float]]]:
    """Return a figure, its axes with a label per row under the groups' names, and every row's y.

    Args:
        rows: group, label and what is to be drawn.
        sizes: the figure's own height and that of a line, in inches, and the gap behind a group.
        width: of the figure, in inches.
    """
    groups, (own, line, gap) = levels(rows, "group"), sizes
    height = own + line * (len(rows) + gap * len(groups))
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    ticks: dict[float, str] = {}
    places, y = [], 0.0
    for group in groups:
        ticks[y] = group
        for row in at(rows, {"group": group}).itertuples():
            y -= 1
            ticks[y] = str(row.label)
            places.append((row, y))
        y -= gap
    draw.forest_axis(axis, ticks, groups)
    axis.set_ylim(y + 0.8, 0.7)
    return figure, axis, places


@styled
def optimum(rows: pd.DataFrame, *, own: str = "", ends: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """Return the PLW with the highest fitted score, its interval and verdict, a line each.

    Args:
        rows: group, label, estimate, low, high (PLW; missing where there is none), verdict (text).
        own: the name of a weight on its own scale, in place of a PLW.
        ends: of the axis of such a weight.
    """
    figure, axis, places = _lines(rows, sizes=(0.75, 0.19, 1.3))
    for row, y in places:
        axis.annotate(
            str(row.verdict), (1.0, y), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=6.5, annotation_clip=False,
        )  # fmt: skip
        low, mid, high = (
            float(v) ** (1 if own else WP_EXPONENT) for v in (row.low, row.estimate, row.high)
        )
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [y, y], color=style.BLUE, linewidth=1.2)
        if np.isfinite(mid):
            axis.plot([mid], [y], "o", color=style.BLUE)
    if own:
        axis.set_xlim(*ends)
    else:
        draw.plw_axis([axis], [0.0005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0], least=0.06)
    weight = own or "effective prompt loss weight"
    axis.set_xlabel(f"{weight} with the highest fitted score")
    return figure


@styled
def residuals(fitted: "pd.Series[float]", residual: "pd.Series[float]") -> Figure:
    """Return residuals against fitted scores, and against the quantiles of the normal."""
    figure, axes = style.grid(2, columns=2, height=2.1)
    dots: dict[str, Any] = {"color": style.BLUE, "alpha": 0.5, "markersize": 2}
    dots["markeredgewidth"] = 0
    axes[0].plot(fitted, residual, "o", **dots)
    axes[0].axhline(0, color=MUTED, linewidth=0.7)
    axes[0].set(xlabel="fitted", ylabel="residual")
    ordered = np.sort(residual.to_numpy(dtype=float))
    places = (np.arange(len(ordered)) + 0.5) / len(ordered)
    axes[1].plot(norm.ppf(places), ordered, "o", **dots)
    axes[1].axline(
        (0, float(ordered.mean())), slope=float(ordered.std()), color=MUTED, linewidth=0.7
    )
    axes[1].set(xlabel="normal quantile", ylabel="residual")
    return figure

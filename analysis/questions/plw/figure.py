"""Figures of the prompt loss weight: the shapes of curves, and the best weight against Rg."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import BLUE, GREEN, INK, MUTED, PAPER, VERMILION, styled
from analysis.table.frame import WP_EXPONENT

LINES = {  # kind -> colour, line style
    "quadratic": (BLUE, "-"),
    "spline": (GREEN, (0, (4, 2))),
    "monotone": (VERMILION, (0, (1, 1))),
}


@styled
def shapes(points: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Return level means with three fitted curves: a panel each, heights above PLW 0.

    Args:
        points: panel, plw, wp, estimate, low, high.
        lines: panel, kind (quadratic, spline, monotone), wp, estimate.
    """
    panels = levels(points, "panel")
    figure, axes = style.grid(len(panels), columns=4 if len(panels) > 4 else 2, height=1.75)
    for axis, name in zip(axes, panels, strict=True):
        axis.axhline(0, color=MUTED, linewidth=0.6)
        for kind, (color, dash) in LINES.items():
            line = at(lines, {"panel": name, "kind": kind})
            axis.plot(line["wp"], line["estimate"], color=color, linestyle=dash, linewidth=1.1)
        rows = at(points, {"panel": name})
        draw.markers(axis, rows["wp"], rows, style.Look(INK, "o"), linestyle="none")
        axis.set_title(name, fontsize=7)
    columns = 4 if len(panels) > 4 else 2
    draw.plw_axis(axes, sorted(points["plw"].unique()), least=0.3 if columns == 4 else 0.12)
    figure.supylabel("points above PLW 0")
    figure.supxlabel(draw.PLW)
    handles = [Line2D([], [], color=c, linestyle=d, label=k) for k, (c, d) in LINES.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure


@styled
def rg(points: pd.DataFrame, curve: pd.DataFrame) -> Figure:
    """Return the best weight against Rg: each data set's own, and the line through them.

    Args:
        points: panel, dataset, rg, best_wp, low_wp, high_wp (missing where there is no interval),
            optimum: hollow unless it is "interior optimum".
        curve: panel, rg, best_wp, low_wp, high_wp; no line where low_wp is missing.
    """
    panels = levels(points, "panel")
    figure, axes = style.grid(len(panels), columns=4 if len(panels) > 2 else 2, height=2.0)
    for axis, name in zip(axes, panels, strict=True):
        line, rows = at(curve, {"panel": name}), at(points, {"panel": name})
        axis.fill_between(
            line["rg"].astype(float), line["low_wp"].astype(float), line["high_wp"].astype(float),
            color=BLUE, alpha=0.14, linewidth=0,
        )  # fmt: skip
        inside = line["best_wp"].astype(float).where(line["low_wp"].notna())
        axis.plot(line["rg"], inside, color=BLUE, linewidth=1.1)
        for row in rows.itertuples():
            _best(axis, row)
        draw.log_axis(axis)
        axis.set_ylim(-0.04, 1.04)
        axis.set_title(name, fontsize=7)
        axis.set_xlabel("Rg (completion / prompt)")
    ticks = np.array([0.0, 0.01, 0.1, 0.5, 1.0])
    for axis in axes:
        axis.set_yticks(ticks**WP_EXPONENT, [f"{t:g}" for t in ticks])
    axes[0].set_ylabel("best PLW")
    return figure


def _best(axis: Axes, row: Any) -> None:
    axis.errorbar(
        row.rg, row.best_wp, yerr=draw.arms(row.best_wp, row.low_wp, row.high_wp),
        color=INK, marker="o", linestyle="none", elinewidth=0.8, markersize=3.8,
        markerfacecolor=INK if row.optimum == "interior optimum" else PAPER, zorder=4,
    )  # fmt: skip

"""Figures of what a weight does: curve shapes, best weight against Rg, the learning front."""

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
FRONT = {"on the front": 1.0, "undecided": 0.45, "off the front": 0.0}  # how filled a marker is


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
        axis.set_xscale("log")
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


@styled
def front(points: pd.DataFrame) -> Figure:
    """Return learning against forgetting, a marker per cell, filled as far as it is on the front.

    Args:
        points: place, adapter, label, learning, learning_se, forgetting, forgetting_se, front_now,
            verdict.
    """
    places = levels(points, "place")
    figure, axes = style.grid(len(places), columns=2, height=2.9)
    looks = style.looks(levels(points, "adapter"))
    several = len(looks) <= len(style.PALETTE)
    for axis, place in zip(axes, places, strict=True):
        rows = at(points, {"place": place})
        edge = rows[rows["front_now"].astype(bool)].sort_values("learning", kind="stable")
        axis.step(edge["forgetting"], edge["learning"], where="post", color=MUTED, linewidth=0.7)
        for row in rows.sort_values("chance", kind="stable").itertuples():
            _cell(axis, row, looks[str(row.adapter)] if several else style.Look(BLUE, "o"))
        _names(axis, edge)
        axis.grid(visible=True, axis="both")
        axis.set_title(place)
        axis.set_xlabel("forgetting: source points lost")
        axis.set_ylabel("learning: target points gained")
    if several:
        draw.legend(figure, looks)
    return figure


def _cell(axis: Axes, row: Any, look: style.Look) -> None:
    filled = FRONT[row.verdict]
    off = filled == 0
    axis.errorbar(
        row.forgetting, row.learning, xerr=row.forgetting_se, yerr=row.learning_se,
        color=look.color, elinewidth=0.5, alpha=0.25 if off else 0.8, marker="none",
    )  # fmt: skip
    face = look.color if filled == 1 else PAPER
    axis.plot(
        row.forgetting, row.learning, marker=look.marker, color=look.color, linestyle="none",
        markersize=2.6 if off else look.size + 1, markerfacecolor=look.color if off else face,
        alpha=0.35 if off else 1.0, markeredgewidth=1.0,
    )  # fmt: skip


def _names(axis: Axes, edge: pd.DataFrame) -> None:
    """Write the names of the front to its upper left, where by its nature no cell can be."""
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.3 * (right - left), right)
    low, high = axis.get_ylim()
    heights = style.spread(edge["learning"], 0.045 * (high - low))
    for row, height in zip(edge.itertuples(), heights, strict=True):
        axis.annotate(
            str(row.label), (float(str(row.forgetting)), height), xytext=(-5, 3), ha="right",
            textcoords="offset points", fontsize=5.5, color=INK,
        )  # fmt: skip


@styled
def parts(rows: pd.DataFrame) -> Figure:
    """Return the parts of each weight's effect: a panel each, a line per part, a colour per weight.

    Args:
        rows: panel, part, weight, estimate, low, high, verdict.
    """
    panels, names, weights = levels(rows, "panel"), levels(rows, "part"), levels(rows, "weight")
    columns = 4 if len(panels) > 2 else 2
    figure, axes = style.grid(len(panels), columns=columns, height=1.55)
    looks = style.looks(weights)
    gap = 0.6 / max(len(weights), 1)
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        axis.axvline(0, color=MUTED, linewidth=0.7)
        for k, (weight, look) in enumerate(looks.items()):
            for row in at(rows, {"panel": panel, "weight": weight}).itertuples():
                y = -names.index(str(row.part)) - gap * (k - (len(weights) - 1) / 2)
                draw.whisker(axis, row, y, look=look)
        axis.set_ylim(-len(names) + 0.5, 0.5)
        shown = names if i % columns == 0 else [""] * len(names)
        axis.set_yticks([-float(j) for j in range(len(names))], shown)
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=True, axis="x")
        axis.grid(visible=False, axis="y")
        axis.set_title(panel, fontsize=7)
    figure.supxlabel("points")
    draw.legend(figure, looks)
    return figure

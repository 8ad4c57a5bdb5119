"""The figure of learning against forgetting with its Pareto front."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.questions.tradeoff.estimate import OFF, ON
from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import BLUE, INK, MUTED, PAPER, styled

MOST_NAMES = 14  # along one front; the table has them all
NAMES_WIDTH = (0.15, 0.5)  # of the axis: of names beside their markers, in a column
NEAR = 0.2  # of the axis: names of markers nearer than this would overprint


@styled
def front(points: pd.DataFrame) -> Figure:
    """Return learning over forgetting: a panel per stratum, a marker per level.

    Filled: Pareto optimal; hollow: undecided; small and pale: dominated. The grey line joins the
    levels whose estimates are undominated, by name.

    Args:
        points: stratum, adapter, label, learning, learning_low, learning_high, the same of
            forgetting, undominated, chance, verdict.
    """
    strata = levels(points, "stratum")
    figure, axes = style.grid(len(strata), columns=2, height=2.9)
    looks = style.looks(levels(points, "adapter"))
    several = len(looks) <= len(style.PALETTE)
    for axis, stratum in zip(axes, strata, strict=True):
        rows = at(points, {"stratum": stratum})
        edge = rows[rows["undominated"].astype(bool)].sort_values("learning", kind="stable")
        axis.step(edge["forgetting"], edge["learning"], where="post", color=MUTED, linewidth=0.7)
        for row in rows.sort_values("chance", kind="stable").itertuples():
            _level(axis, row, looks[str(row.adapter)] if several else style.Look(BLUE, "o"))
        _names(axis, edge)
        axis.grid(visible=True, axis="both")
        axis.set_title(stratum)
        axis.set_xlabel("forgetting: source points lost")
        axis.set_ylabel("learning: target points gained")
    if several:
        draw.legend(figure, looks)
    return figure


def _level(axis: Axes, row: Any, look: style.Look) -> None:
    off = row.verdict == OFF
    axis.errorbar(
        row.forgetting, row.learning,
        xerr=draw.arms(row.forgetting, row.forgetting_low, row.forgetting_high),
        yerr=draw.arms(row.learning, row.learning_low, row.learning_high),
        color=look.color, elinewidth=0.5, alpha=0.2 if off else 0.8, marker="none",
    )  # fmt: skip
    filled = off or row.verdict == ON
    axis.plot(
        row.forgetting, row.learning, marker=look.marker, color=look.color, linestyle="none",
        markersize=2.6 if off else look.size + 1, alpha=0.35 if off else 1.0,
        markerfacecolor=look.color if filled else PAPER, markeredgewidth=1.0,
    )  # fmt: skip


def _names(axis: Axes, edge: pd.DataFrame) -> None:
    """Write the names of the front left of it, where by its nature no other level can be.

    They stand beside their markers, or, where they would overprint there, in a column of their own,
    each with a line to its marker.
    """
    named = edge.nlargest(MOST_NAMES, "chance").sort_values("learning", kind="stable")
    low, high = axis.get_ylim()
    gap = 0.047 * (high - low)
    heights = style.spread(named["learning"], gap)
    left, right = axis.get_xlim()
    apart = named[["forgetting", "learning"]].astype(float).diff().abs()
    close = bool(((apart["learning"] < gap) & (apart["forgetting"] < NEAR * (right - left))).any())
    left -= NAMES_WIDTH[close] * (right - left)
    axis.set_xlim(left, right)
    down = max(0.0, max(heights, default=low) - (high - gap / 2))
    for row, height in zip(named.itertuples(), heights, strict=True):
        at_marker = float(str(row.forgetting)), float(str(row.learning))
        if close:
            axis.annotate(
                str(row.label), at_marker, fontsize=5.5, color=INK, xytext=(0.01, height - down),
                textcoords=("axes fraction", "data"), ha="left", va="center",
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkB": 2},
            )  # fmt: skip
        else:
            axis.annotate(
                str(row.label), at_marker, fontsize=5.5, color=INK, xytext=(-4, 3),
                textcoords="offset points", ha="right", va="bottom",
            )  # fmt: skip

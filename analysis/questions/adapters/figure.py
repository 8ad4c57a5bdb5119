"""Figures of a study with many arms: a line each instead of a colour each.

Both take a table of `many_section.arm_tables`: label, budget, trainable_parameters,
gain_mean, gain_low, gain_high, loss_mean, loss_low, loss_high, seconds and peak_mb.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from analysis.report import draw, style
from analysis.report.style import MUTED, PAPER, RULE, styled

LINE = 0.132  # inches that an arm takes
OWN = style.KNOWN_LOOKS["here"]
KEY = ("full", "lora")  # arms that are always named


@styled
def arm_lines(table: pd.DataFrame) -> Figure:
    """Return every arm as a line: learning, forgetting, parameters, time and memory beside it."""
    figure = Figure(figsize=(style.PAGE, 0.7 + LINE * len(table)))
    figure.set_layout_engine("constrained", rect=(0.04, 0, 0.96, 1))  # long names stand outside
    widths = (2.2, 2.2, 1.3, 1, 1)
    axes = figure.subplots(1, 5, sharey=True, width_ratios=widths)
    y = -np.arange(len(table), dtype=float)
    for axis, name, title in zip(
        axes, ("gain", "loss"), ("learnt (points)", "forgotten (points)"), strict=False
    ):
        _intervals(axis, y, table, name)
        axis.set_xlabel(title)
    columns = ("trainable_parameters", "seconds", "peak_mb")
    for axis, name in zip(axes[2:], columns, strict=True):
        _dots(axis, y, table[name])
    _counts(axes[2])
    axes[2].set_xlabel("parameters")
    axes[3].set_xlabel("time")
    axes[4].set_xlabel("memory")
    axes[0].set_yticks(y, list(table["label"]))
    axes[0].set_ylim(y[-1] - 0.8, 0.8)
    for axis in axes:
        axis.tick_params(axis="y", length=0, labelsize=6)
        axis.grid(visible=True, axis="both")
        axis.spines["left"].set_visible(False)
    for row in table[table["label"].isin(KEY)].index:
        for axis in axes:
            axis.axhspan(y[row] - 0.5, y[row] + 0.5, color=RULE, alpha=0.6, linewidth=0)
    return figure


def _intervals(axis: Axes, y: Any, table: pd.DataFrame, name: str) -> None:
    mean = table[f"{name}_mean"]
    arms = draw.arms(mean, table[f"{name}_low"], table[f"{name}_high"])
    axis.axvline(0, color=MUTED, linewidth=0.7)
    axis.errorbar(
        mean, y, xerr=arms, fmt=OWN.marker, color=OWN.color, elinewidth=0.8, markersize=2.8,
        linestyle="none",
    )  # fmt: skip


def _counts(axis: Axes) -> None:
    """Make the axis logarithmic, a label for every power of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(numticks=9))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: draw.count_text(value))


def _dots(axis: Axes, y: Any, values: "pd.Series[float]") -> None:
    axis.plot(values, y, OWN.marker, color=OWN.color, markersize=2.6)


@styled
def arm_planes(table: pd.DataFrame) -> Figure:
    """Return learning over trainable parameters, and learning over forgetting, side by side.

    Arms that no other beats in both are named, and full fine-tuning and LoRA.
    """
    figure = Figure(figsize=(style.PAGE, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _counts(left)
    _plane(left, table, "trainable_parameters")
    _plane(right, table, "loss_mean")
    left.set_xlabel("trainable parameters")
    right.set_xlabel("forgotten: source points lost")
    left.set_ylabel("learnt: target points gained")
    return figure


def _plane(axis: Axes, table: pd.DataFrame, x: str) -> None:
    xerr = None
    if x == "loss_mean":
        xerr = draw.arms(table[x], table["loss_low"], table["loss_high"])
    axis.errorbar(
        table[x], table["gain_mean"], xerr=xerr,
        yerr=draw.arms(table["gain_mean"], table["gain_low"], table["gain_high"]),
        fmt="none", ecolor=MUTED, alpha=0.35, elinewidth=0.6, zorder=1,
    )  # fmt: skip
    front = _front(table, x)
    matched = table["budget"].astype(str) != "unmatched"
    for part, filled in ((matched, True), (~matched, False)):
        own = table[part]
        axis.plot(
            own[x], own["gain_mean"], OWN.marker, color=OWN.color, markersize=3.4, zorder=2,
            markerfacecolor=OWN.color if filled else PAPER, markeredgewidth=0.7,
        )  # fmt: skip
    axis.grid(visible=True, axis="both")
    _name(axis, table[front | table["label"].isin(KEY)], x)


def _front(table: pd.DataFrame, x: str) -> "pd.Series[bool]":
    """Return which arms no other beats: less of x and no less learnt."""
    cost, gain = table[x].to_numpy(dtype=float), table["gain_mean"].to_numpy(dtype=float)
    beaten = (
        (cost[:, None] <= cost)
        & (gain[:, None] >= gain)
        & ((cost[:, None] < cost) | (gain[:, None] > gain))
    )
    return pd.Series(~beaten.any(axis=0), table.index)


def _name(axis: Axes, rows: pd.DataFrame, x: str) -> None:
    """Write names beside points, moved apart vertically where they would overprint."""
    low, high = axis.get_ylim()
    places = style.spread(rows["gain_mean"].tolist(), 0.042 * (high - low))
    for row, y in zip(rows.to_dict("records"), places, strict=True):
        label = str(row["label"])
        color = style.KNOWN_LOOKS[label].color if label in KEY else OWN.color
        axis.annotate(
            label, (row[x], row["gain_mean"]), xytext=(8, y), fontsize=6, va="center",
            textcoords=("offset points", "data"), color=color,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkB": 1.5},
        )  # fmt: skip

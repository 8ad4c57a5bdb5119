"""Figures of adapters and ranks: a colour each, or a line each where there are many.

`arm_lines` and `arm_costs` take a table of `many_section.arm_tables`: label, budget,
trainable_parameters, learning and forgetting with _low and _high, seconds and peak_mb.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.questions.tradeoff.estimate import on_front
from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import MUTED, PAPER, RULE, Look, styled

LINE = 0.132  # inches that an arm takes
OWN = style.KNOWN_LOOKS["here"]
KEY = ("full", "lora")  # arms that are always named
DODGE = 1.012  # factor between adapters at the same capacity


@styled
def arm_lines(table: pd.DataFrame) -> Figure:
    """Return every arm as a line: learning, forgetting, parameters, time and memory beside it."""
    figure = Figure(figsize=(style.PAGE, 0.7 + LINE * len(table)))
    figure.set_layout_engine("constrained", rect=(0.04, 0, 0.96, 1))  # long names stand outside
    widths = (2.2, 2.2, 1.3, 1, 1)
    axes = figure.subplots(1, 5, sharey=True, width_ratios=widths)
    y = -np.arange(len(table), dtype=float)
    for axis, name, title in zip(
        axes, ("learning", "forgetting"), ("learnt (points)", "forgotten (points)"), strict=False
    ):
        _intervals(axis, y, table, name)
        axis.set_xlabel(title)
    columns = ("trainable_parameters", "seconds", "peak_mb")
    for axis, name in zip(axes[2:], columns, strict=True):
        axis.plot(table[name], y, OWN.marker, color=OWN.color, markersize=2.6)
    draw.counts_axis(axes[2])
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
    mean = table[name]
    arms = draw.arms(mean, table[f"{name}_low"], table[f"{name}_high"])
    axis.axvline(0, color=MUTED, linewidth=0.7)
    axis.errorbar(
        mean, y, xerr=arms, fmt=OWN.marker, color=OWN.color, elinewidth=0.8, markersize=2.8,
        linestyle="none",
    )  # fmt: skip


@styled
def arm_costs(table: pd.DataFrame) -> Figure:
    """Return learning over trainable parameters, a marker per arm.

    Arms that no other beats in both are named, and full fine-tuning and LoRA; hollow arms did not
    reach the budget of parameters.
    """
    figure = Figure(figsize=(style.PAGE, 3.3), layout="constrained")
    axis = figure.subplots()
    draw.counts_axis(axis)
    axis.errorbar(
        table["trainable_parameters"], table["learning"],
        yerr=draw.arms(table["learning"], table["learning_low"], table["learning_high"]),
        fmt="none", ecolor=MUTED, alpha=0.35, elinewidth=0.6, zorder=1,
    )  # fmt: skip
    matched = table["budget"].astype(str) != "unmatched"
    for part, filled in ((matched, True), (~matched, False)):
        own = table[part]
        axis.plot(
            own["trainable_parameters"], own["learning"], OWN.marker, color=OWN.color,
            markersize=3.4, zorder=2, markerfacecolor=OWN.color if filled else PAPER,
            markeredgewidth=0.7,
        )  # fmt: skip
    axis.grid(visible=True, axis="both")
    points = table[["learning", "trainable_parameters"]].to_numpy(dtype=float)
    _name(axis, table[on_front(points[None])[0] | table["label"].isin(KEY)])
    axis.set_xlabel("trainable parameters")
    axis.set_ylabel("learning: target points gained")
    return figure


def _name(axis: Axes, rows: pd.DataFrame) -> None:
    """Write names beside points, moved apart vertically where they would overprint."""
    low, high = axis.get_ylim()
    heights = style.spread(rows["learning"].tolist(), 0.042 * (high - low))
    for row, y in zip(rows.to_dict("records"), heights, strict=True):
        label = str(row["label"])
        color = style.KNOWN_LOOKS[label].color if label in KEY else OWN.color
        axis.annotate(
            label, (row["trainable_parameters"], row["learning"]), xytext=(8, y), fontsize=6,
            va="center", textcoords=("offset points", "data"), color=color,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkB": 1.5},
        )  # fmt: skip


@styled
def capacity(points: pd.DataFrame) -> Figure:
    """Return score against trainable parameters: a line per adapter, full fine-tuning as a level.

    Numbers at the markers are ranks. Where parameters were not recorded the rank is the axis.

    Args:
        points: panel, adapter, rank, trainable_parameters, estimate, low, high.
    """
    panels = levels(points, "panel")
    figure, axes = style.grid(len(panels), columns=2 if len(panels) == 4 else 3, height=2.1)
    looks = style.looks(levels(points, "adapter"))
    known = bool(points["trainable_parameters"].notna().all())
    x = "trainable_parameters" if known else "rank"
    for axis, name in zip(axes, panels, strict=True):
        _capacity_panel(axis, at(points, {"panel": name}), looks=looks, x=x)
        axis.set_title(name)
        axis.set_xlabel("trainable parameters; numbers: rank" if known else "rank")
    axes[0].set_ylabel("score (points)")
    return figure


def _capacity_panel(axis: Axes, rows: pd.DataFrame, *, looks: dict[str, Look], x: str) -> None:
    ends: dict[str, float] = {}
    for k, (adapter, look) in enumerate(looks.items()):
        line = at(rows, {"adapter": adapter}).sort_values(x, kind="stable")
        if not len(line):
            continue
        if adapter == "full":
            whole = line.iloc[0]
            axis.axhline(whole["estimate"], color=look.color, linewidth=0.9, linestyle=draw.DASHED)
            axis.axhspan(whole["low"], whole["high"], color=look.color, alpha=0.08, linewidth=0)
        else:
            draw.markers(axis, line[x] * DODGE**k, line, look)
        ends[adapter] = float(line.iloc[-1]["estimate"])
    ranked = rows[rows["adapter"] != "full"]
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.08 * (high - low))  # room for the ranks
    _capacity_axis(axis, sorted(ranked[x].unique()))
    if x != "rank":
        _rank_labels(axis, ranked, x)
    draw.end_labels(axis, list(ends), list(ends.values()), looks=looks)


def _rank_labels(axis: Axes, rows: pd.DataFrame, x: str) -> None:
    """Write every rank once along the upper edge, over the middle of its parameter counts."""
    for rank, own in rows.groupby("rank"):
        middle = float(np.exp(np.log(own[x].astype(float)).mean()))
        axis.annotate(
            f"{float(str(rank)):g}", (middle, 1), xycoords=("data", "axes fraction"),
            xytext=(0, -1), textcoords="offset points", ha="center", va="top", fontsize=6,
            color=MUTED,
        )  # fmt: skip


def _capacity_axis(axis: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic and label the capacities that occur, as far as there is room."""
    axis.set_xscale("log")
    kept: list[float] = []
    for value in values:
        if not kept or np.log(value / kept[-1]) > 0.12 * np.log(max(values) / min(values)):
            kept.append(value)
    axis.xaxis.set_major_locator(FixedLocator(kept))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([draw.count_text(value) for value in kept])

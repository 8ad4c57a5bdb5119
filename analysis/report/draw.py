"""The parts that figures are drawn from: dose panels, whiskers, axes, labels.

`estimate`, `low` and `high` are a number and its interval; a missing end is simply not drawn.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from analysis.report import style
from analysis.report.style import MUTED, PAPER, Look
from analysis.table.frame import WP_EXPONENT

DODGE = 0.014  # of the w_p axis, between levels that share a PLW
PLW = "prompt loss weight"
DASHED = (0, (4, 2))
LONGEST = 64  # characters of a label beside a forest plot, about half of a page's width
LONGEST_ABOVE = 58  # of a label above its line, in a figure one column wide


def levels(frame: pd.DataFrame, column: str) -> list[str]:
    """Return the levels of `column` in the order in which they occur."""
    return [str(v) for v in dict.fromkeys(frame[column].dropna())]


def at(frame: pd.DataFrame | None, where: Mapping[str, Hashable]) -> pd.DataFrame:
    """Return the rows with these levels; a column that the frame lacks does not select."""
    if frame is None or not len(frame):
        return pd.DataFrame(columns=["estimate", "low", "high", "wp", *where], dtype=float)
    keep = np.ones(len(frame), dtype=bool)
    for column, level in where.items():
        if column in frame:
            keep &= (frame[column].astype(str) == str(level)).to_numpy()
    return frame[keep]


def arms(middle: Any, low: Any, high: Any) -> Any:
    """Return an interval as matplotlib wants it, lengths (2, N); a missing end has no arm."""
    middle, low, high = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (middle, low, high))
    return np.nan_to_num(np.vstack([middle - low, high - middle]).clip(min=0))


def markers(axis: Axes, x: Any, rows: pd.DataFrame, look: Look, **options: Any) -> None:
    """Draw estimates with their intervals as markers with whiskers."""
    y = rows["estimate"].to_numpy(dtype=float)
    axis.errorbar(
        np.asarray(x, dtype=float),
        y,
        yerr=arms(y, rows["low"], rows["high"]),
        color=look.color,
        marker=look.marker,
        elinewidth=0.8,
        markersize=look.size,
        markeredgecolor=PAPER,
        markeredgewidth=0.4,
        **options,
    )


def ribbon(axis: Axes, curve: pd.DataFrame, look: Look) -> None:
    """Draw a fitted curve with its band."""
    curve = curve.sort_values("wp", kind="stable")
    axis.fill_between(
        curve["wp"].astype(float), curve["low"].astype(float), curve["high"].astype(float),
        color=look.color, alpha=0.16, linewidth=0,
    )  # fmt: skip
    axis.plot(curve["wp"], curve["estimate"], color=look.color)


def dose_panel(
    axis: Axes,
    points: pd.DataFrame,
    curves: pd.DataFrame,
    *,
    by: str,
    looks: Mapping[str, Look],
) -> None:
    """Draw one panel against w_p: the runs' means and, where there is one, the fitted curve.

    Levels without a fitted curve are joined by a thin line, so that their order can be followed.
    """
    middle = (len(looks) - 1) / 2
    for k, (level, look) in enumerate(looks.items()):
        curve, rows = at(curves, {by: level}), at(points, {by: level})
        rows = rows.sort_values("wp", kind="stable")
        if len(curve):
            ribbon(axis, curve, look)
        if len(rows):
            line = "none" if len(curve) or len(rows) == 1 else "-"
            shifted = rows["wp"] + DODGE * (k - middle)
            markers(axis, shifted, rows, look, linestyle=line, linewidth=0.8, label=level)


def reference(axis: Axes, values: Iterable[float]) -> None:
    """Draw dashed levels across the panel."""
    for value in values:
        axis.axhline(value, color=MUTED, linewidth=0.8, linestyle=DASHED)


def count_text(value: float) -> str:
    """Return a count as short as an axis needs it: 8, 16k, 1.2M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def log_axis(axis: Axes) -> None:
    """Make the horizontal axis logarithmic, powers of ten as plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def counts_axis(axis: Axes) -> None:
    """Make the horizontal axis logarithmic, a label for every power of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(numticks=9))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: count_text(value))


def end_labels(
    axis: Axes, names: Sequence[str], values: Sequence[float], *, looks: Mapping[str, Look]
) -> None:
    """Write each line's name beside its right end, moved apart where two would overprint."""
    low, high = axis.get_ylim()
    for name, value in zip(names, style.spread(values, 0.085 * (high - low)), strict=True):
        axis.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0),
            textcoords="offset points", va="center", color=looks[name].color, fontsize=7,
            annotation_clip=False,
        )  # fmt: skip


def whisker(axis: Axes, row: Any, y: float, *, look: Look) -> None:
    """Draw one horizontal estimate with its interval, hollow if it is not distinguishable."""
    hollow = getattr(row, "verdict", "distinguishable") != "distinguishable"
    axis.errorbar(
        row.estimate, y, xerr=arms(row.estimate, row.low, row.high),
        fmt=look.marker, color=look.color, elinewidth=1.1, markersize=4.2,
        markerfacecolor=PAPER if hollow else look.color,
    )  # fmt: skip


def second_whisker(axis: Axes, row: Any, y: float) -> None:
    """Draw the same effect by another analysis, thin and grey; nothing where there is none."""
    middle = getattr(row, "second", np.nan)
    if np.isfinite(middle):
        axis.errorbar(
            middle, y, xerr=arms(middle, row.second_low, row.second_high), fmt="d", color=MUTED,
            elinewidth=0.7, markersize=2.4,
        )  # fmt: skip


def forest_axis(axis: Axes, ticks: Mapping[float, str], groups: Sequence[str]) -> None:
    """Label the lines of a forest plot; the names of the groups are bold.

    A long label is cut, or no room would be left for the axis: the table beside it has it whole.
    """
    axis.set_yticks(list(ticks), [_cut(label) for label in ticks.values()])
    heads = {_cut(group) for group in groups}
    for text in axis.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in heads else "normal")
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=True, axis="x")
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)


def labels_above(axis: Axes) -> None:
    """Move the labels of a forest plot from beside its lines to above them, at the left edge."""
    for place, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True):
        head = text.get_fontweight() == "bold"
        axis.text(
            0.0, place + (0.1 if head else 0.42), _cut(text.get_text(), LONGEST_ABOVE), ha="left",
            va="center", transform=axis.get_yaxis_transform(), fontsize=7,
            fontweight=text.get_fontweight(),
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},  # no line through it
        )  # fmt: skip
    axis.set_yticks([])


def _cut(label: str, longest: int = LONGEST) -> str:
    if len(label) <= longest:
        return label
    mark = label[-2:] if label[-2] == " " else ""  # of a second analysis that disagrees
    return f"{label[: longest - 1 - len(mark)].rstrip(' ,')}…{mark}"


def corner(axis: Axes, text: str) -> None:
    """Write a muted remark into the upper left corner of a panel."""
    axis.text(0.03, 0.97, text, transform=axis.transAxes, va="top", fontsize=6, color=MUTED)


def plw_axis(axes: Iterable[Axes], plws: Iterable[float], *, least: float = 0.085) -> None:
    """Mark the w_p axis of each of `axes` with PLW, as many levels as have room."""
    ticks: list[tuple[float, float]] = []
    for plw in sorted({float(p) for p in plws} | {0.0, 1.0}, key=_roundness):
        wp = plw**WP_EXPONENT
        if all(abs(wp - other) >= least for other, _ in ticks):
            ticks.append((wp, plw))
    ticks.sort()
    for axis in axes:
        axis.set_xticks([wp for wp, _ in ticks], [plw_text(plw) for _, plw in ticks])
        axis.set_xlim(-0.06, 1.06)


def plw_text(plw: float) -> str:
    """Return a PLW as short as an axis needs it: .0005, .1, 1."""
    return f"{plw:.4g}".lstrip("0") or "0"


def _roundness(plw: float) -> tuple[int, float]:
    """Sort ends first, then round levels: what comes first keeps its label."""
    mantissa = f"{plw:e}".split("e")[0].rstrip("0").rstrip(".")
    return (0 if plw in (0.0, 1.0) else len(mantissa), -plw)


def legend(figure: Figure, looks: Mapping[str, Look], *, dashed: str = "") -> None:
    """Write one legend above the panels; it is left out where there is nothing to tell apart.

    Args:
        figure: where to.
        looks: the levels and how they are drawn.
        dashed: what a dashed level stands for, if there is one.
    """
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, markersize=4, label=name)
        for name, look in looks.items()
    ]
    if dashed:
        handles.append(Line2D([], [], color=MUTED, linestyle=DASHED, linewidth=0.8, label=dashed))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(7, len(handles)))


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the first word that all of them share: micro_facts is facts."""
    heads = {name.partition("_")[0] for name in names}
    if len(names) < 2 or len(heads) > 1 or not all(name.partition("_")[2] for name in names):
        return list(names)
    return [name.partition("_")[2] for name in names]

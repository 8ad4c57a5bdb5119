"""Figures of arms at their own rates: every arm's curve, and the differences with their bands."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.questions.own_rate.curves import Chosen
from analysis.questions.own_rate.estimate import MARGINS, Compared, Difference
from analysis.report import draw, style
from analysis.report.style import BLUE, GREEN, INK, MUTED, PAPER, PLUM, RULE, VERMILION

COLUMNS = 5
POINTS = 41
# Of the places: colour, marker and line, so that they are apart in black and white as well.
LOOKS = (
    (BLUE, "o", "-"), (VERMILION, "s", (0, (4, 1.5))), (GREEN, "D", (0, (1.2, 1.2))),
    (PLUM, "^", (0, (5, 1, 1, 1))),
)  # fmt: skip
LINE = 0.2  # inches of an arm
BANDS = ("#c3cad3", RULE)  # the narrow margin, the wide one


@style.styled
def curves(found: Compared, *, base: float | None = None) -> Figure:
    """Return score against rate, a panel per arm and a line per place, with the chosen rates.

    Args:
        found: the comparison.
        base: the untouched base's score, over which points are gained.
    """
    arms = list(dict.fromkeys(c.arm for c in found.curves))
    figure, axes = style.grid(len(arms), columns=COLUMNS, height=1.3, sharey=True)
    for axis, arm in zip(axes, arms, strict=True):
        for place, look in zip(found.places, _looks(len(found.places)), strict=True):
            if (arm, place) in found.main:
                curve(axis, found.main[arm, place], look, base or 0.0)
        axis.set_title(arm, fontsize=7)
        rate_axis(axis)
    axes[0].set_ylim(*_limits(found, base or 0.0))
    handles = [
        Line2D([], [], color=color, linestyle=line, marker=marker, markersize=3.2,
               markerfacecolor=PAPER, label=place)
        for place, (color, marker, line) in zip(
            found.places, _looks(len(found.places)), strict=True)
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color=INK, marker="o", linestyle="none", markersize=5, label="chosen rate")
    )
    figure.legend(handles=handles, loc="outside upper left", ncols=5)
    figure.supxlabel("learning rate")
    figure.supylabel("points gained" if base is not None else "score (points)")
    return figure


def _looks(count: int) -> list[tuple[str, str, object]]:
    return [LOOKS[i % len(LOOKS)] for i in range(count)]


def curve(axis: Axes, one: Chosen, look: tuple[str, str, object], base: float) -> None:
    """Draw the mean score at every rate, the curve through them and the chosen rate on it."""
    color, marker, line = look
    own = one.curve
    x = np.linspace(own.x_K[0], own.x_K[-1], POINTS)
    fitted = np.array([own.score(float(v)) for v in x]) - base
    axis.plot(2.0 ** (x + own.middle), fitted, color=color, linestyle=line, linewidth=1.0)
    axis.plot(own.rate_K, own.score_SK.mean(axis=0) - base, marker, color=color, markersize=2.4,
              markerfacecolor=PAPER, markeredgewidth=0.7)  # fmt: skip
    face, edge = (PAPER, color) if one.end else (color, PAPER)
    axis.plot([one.rate], [own.score(one.x) - base], marker, markersize=5, markerfacecolor=face,
              markeredgecolor=edge, markeredgewidth=1.1 if one.end else 0.5)  # fmt: skip


def rate_axis(axis: Axes) -> None:
    """Mark a few rates on a scale of log2; labels are plain numbers."""
    axis.set_xscale("log", base=2)
    low, high = axis.get_xlim()
    middle = float(np.sqrt(low * high))
    ticks = [middle / 2, middle, middle * 2]
    axis.xaxis.set_major_locator(FixedLocator([float(f"{t:.1g}") for t in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}".removeprefix("0"))
    axis.tick_params(axis="both", labelsize=6)


def _limits(found: Compared, base: float) -> tuple[float, float]:
    """Return the scores from the 2nd percentile up: one run that failed to learn hides no other."""
    values = np.concatenate([c.score_SK.mean(axis=0) for c in found.curves]) - base
    low, high = float(np.quantile(values, 0.02)), float(values.max())
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room


@style.styled
def differences(found: list[Difference], table: pd.DataFrame, side: str) -> Figure:
    """Return every arm less LoRA over places, and at every place, with bands of both margins.

    Args:
        found: the differences.
        table: of `difference_table`, for the verdicts.
        side: the tasks, in words.
    """
    order = table.sort_values("estimate", ascending=False, kind="stable")
    by_arm = {d.arm: d for d in found}
    figure = Figure(figsize=(style.PAGE, 0.75 + LINE * len(order)), layout="constrained")
    axis = figure.subplots()
    for margin, color in zip(reversed(MARGINS), reversed(BANDS), strict=True):
        axis.axvspan(-margin, margin, color=color, linewidth=0, alpha=0.7)
    axis.axvline(0, color=MUTED, linewidth=0.7)
    places = list(dict.fromkeys(p for d in found for p in d.by_place))
    ticks = {}
    for number, row in enumerate(order.itertuples()):
        y = -float(number)
        arm = str(row.arm)
        ticks[y] = arm
        own = by_arm[arm].by_place
        for i, (place, look) in enumerate(zip(places, _looks(len(places)), strict=True)):
            if place in own and len(places) > 1:
                axis.plot([own[place].estimate], [y - 0.22 - 0.13 * i], look[1], color=look[0],
                          markersize=2.2, markerfacecolor=PAPER, markeredgewidth=0.6)  # fmt: skip
        draw.whisker(axis, row, y, look=style.Look(INK, "o"))
    draw.forest_axis(axis, ticks, [])
    axis.set_ylim(-len(order) + 0.3, 0.7)
    _room(axis, order, [e.estimate for d in found for e in d.by_place.values()])
    axis.set_xlabel(f"points less {order['against'].iloc[0]}, {side}")
    if len(places) > 1:
        handles = [
            Line2D([], [], color=look[0], marker=look[1], linestyle="none", markersize=3,
                   markerfacecolor=PAPER, label=place)
            for place, look in zip(places, _looks(len(places)), strict=True)
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=4)
    return figure


def _room(axis: Axes, table: pd.DataFrame, places: list[float]) -> None:
    """Let intervals and places fill the axis, and both bands be seen."""
    ends = [*table["low"].dropna(), *table["high"].dropna(), *table["estimate"], *places]
    low, high = min(*ends, -MARGINS[-1] * 1.2), max(*ends, MARGINS[-1] * 1.2)
    room = 0.03 * (high - low)
    axis.set_xlim(low - room, high + room)

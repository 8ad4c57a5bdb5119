"""Figures of masking at its own rate: the difference by place, and the curves behind it."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.questions.own_rate.curves import Chosen
from analysis.questions.own_rate.estimate import Compared
from analysis.questions.own_rate.figure import LOOKS, curve, rate_axis
from analysis.questions.step_size.estimate import AT_ARM, AT_REFERENCE, OWN
from analysis.report import draw, style
from analysis.report.style import BLUE, INK, MUTED, PAPER, VERMILION

COLUMNS = 4
LINE = 0.34  # inches of a place with its three intervals
# The difference at own rates is the one that counts: dark and filled.
MARKS = {OWN: (INK, "o", INK), AT_REFERENCE: (BLUE, "s", PAPER), AT_ARM: (VERMILION, "^", PAPER)}
ALL = "mean over settings"


@style.styled
def by_place(table: pd.DataFrame, names: dict[str, str], side: str) -> Figure:
    """Return the difference of a dose from the reference at every place, at own and common rates.

    Args:
        table: place, gap, estimate, low, high; the mean over places has the place "".
        names: what every gap is called.
        side: the tasks, in words.
    """
    places = list(dict.fromkeys(table["place"]))
    figure = Figure(figsize=(style.PAGE, 0.8 + LINE * len(places)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=MUTED, linewidth=0.7)
    ticks = {}
    for number, place in enumerate(places):
        own = table[table["place"] == place].set_index("gap")
        ticks[-float(number)] = place or ALL
        for shift, (gap, (color, marker, face)) in enumerate(MARKS.items()):
            if gap in own.index:
                row = own.loc[gap]
                axis.errorbar(
                    row["estimate"], -number + 0.26 * (1 - shift),
                    xerr=draw.arms(row["estimate"], row["low"], row["high"]), fmt=marker,
                    color=color, markersize=4.2 if gap == OWN else 3.4, markerfacecolor=face,
                    elinewidth=1.1 if gap == OWN else 0.8,
                )  # fmt: skip
    draw.forest_axis(axis, ticks, [ALL])
    axis.set_ylim(-len(places) + 0.45, 0.6)
    axis.set_xlabel(f"points, {side}")
    handles = [
        Line2D([], [], color=color, marker=marker, markerfacecolor=face, markersize=4,
               label=names[gap])
        for gap, (color, marker, face) in MARKS.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


@style.styled
def curves(found: Compared, places: Sequence[str]) -> Figure:
    """Return score against rate, a panel per place and a line per dose, with the chosen rates."""
    arms = list(dict.fromkeys(c.arm for c in found.curves))
    figure, axes = style.grid(len(places), columns=COLUMNS, height=1.5, sharey=True)
    looks = [LOOKS[i % len(LOOKS)] for i in range(len(arms))]
    for axis, place in zip(axes, places, strict=True):
        for arm, look in zip(arms, looks, strict=True):
            one: Chosen | None = found.main.get((arm, place))
            if one is not None:
                curve(axis, one, look, 0.0)
        axis.set_title(place.replace(", ", "\n"), fontsize=6)
        rate_axis(axis)
    handles = [
        Line2D([], [], color=color, linestyle=line, marker=marker, markersize=3.2,
               markerfacecolor=PAPER, label=arm)
        for arm, (color, marker, line) in zip(arms, looks, strict=True)
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color=INK, marker="o", linestyle="none", markersize=5, label="best rate")
    )
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    figure.supxlabel("learning rate")
    figure.supylabel("score (points)")
    return figure

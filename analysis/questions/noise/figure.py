"""The figure of what more seeds or items would buy."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.engine.linalg import Array
from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import styled

NO_ERROR = 1e-6  # share of the largest standard error that is rounding


@styled
def plan(table: pd.DataFrame) -> Figure:
    """Return the standard error of a difference against items: a panel per task, a line per seeds.

    Args:
        table: task, seeds, items, se, and `here`, true at the design that was run.
    """
    tasks = levels(table, "task")
    figure, axes = style.grid(len(tasks), columns=3, height=1.9)
    looks = style.looks(levels(table[~table["here"]], "seeds"))
    titles = draw.short_names(tasks)
    for axis, task, title in zip(axes, tasks, titles, strict=True):
        rows = at(table, {"task": task})
        lines, here = rows[~rows["here"]], rows[rows["here"]]
        for seeds, look in looks.items():
            line = at(lines, {"seeds": seeds})
            axis.plot(line["items"], line["se"], color=look.color, linewidth=1.1)
        axis.plot(here["items"], here["se"], "X", color=style.INK, markersize=6, zorder=5)
        axis.set(title=title, xlabel="items")
        draw.counts_axis(axis)
        if (rows["se"] > 0).any():
            ticks = _ticks(table["se"])
            axis.set_yscale("log")
            axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
            axis.set_yticks([], minor=True)
    axes[0].set_ylabel("s.e. of a difference (points)")
    named = {f"{seeds} seeds": style.Look(look.color, "") for seeds, look in looks.items()}
    draw.legend(figure, named)
    return figure


def _ticks(se: "pd.Series[float]") -> Array:
    """Return powers of two around the standard errors that are more than rounding."""
    known = np.log2(se[se > NO_ERROR * se.max()])
    low, high = np.floor(known.min()), np.ceil(known.max())
    return np.asarray(2.0 ** np.arange(low, high + 1))

"""The figure of what more seeds or items would buy."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import styled


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
        axis.set(xscale="log", yscale="log", title=title, xlabel="items")
        low, high = np.floor(np.log2(table["se"].min())), np.ceil(np.log2(table["se"].max()))
        ticks = 2.0 ** np.arange(low, high + 1)
        axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_yticks([], minor=True)
    axes[0].set_ylabel("s.e. of a difference (points)")
    named = {f"{seeds} seeds": style.Look(look.color, "") for seeds, look in looks.items()}
    draw.legend(figure, named)
    return figure

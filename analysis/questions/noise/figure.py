"""Figures of noise and budgets. Each takes a tidy table and returns a Figure."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


@styled
def budget(table: pd.DataFrame) -> Figure:
    """Return the expected best score against settings tried: a panel per data set, a line per arm.

    Args:
        table: dataset, label, budget, expected, low, high.
    """
    datasets = levels(table, "dataset")
    figure, axes = style.grid(len(datasets), columns=3, height=2.1)
    looks = style.looks(levels(table, "label"))
    for axis, dataset in zip(axes, datasets, strict=True):
        for label, look in looks.items():
            line = at(table, {"dataset": dataset, "label": label})
            axis.fill_between(
                line["budget"], line["low"], line["high"], color=look.color, alpha=0.1, linewidth=0
            )
            axis.plot(line["budget"], line["expected"], color=look.color, marker=look.marker)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=dataset, xlabel="settings tried")
        top = at(table, {"dataset": dataset})["expected"]
        # An interval at one setting reaches as far as the worst one, which is not the question.
        axis.set_ylim(*_room(top.min(), top.max()))
    axes[0].set_ylabel("expected best validation loss")
    draw.legend(figure, looks)
    return figure


def _room(low: float, high: float) -> tuple[float, float]:
    space = 0.08 * (high - low) or 0.1
    return low - space, high + space

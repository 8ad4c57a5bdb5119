"""Figures of tuning: the loss by learning rate, and what a budget of settings buys."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import styled

ROW = 0.125  # inches of an arm's row
FAR = 0.5  # nats above the lowest loss from which differences in shade say nothing


@styled
def rates(table: pd.DataFrame) -> Figure:
    """Return validation loss against learning rate: a panel per data set, a line per adapter.

    Args:
        table: dataset, label (adapter and rank), lr, loss, chosen (bool).
    """
    datasets = levels(table, "dataset")
    figure, axes = style.grid(len(datasets), columns=3, height=2.0)
    looks = style.looks(levels(table, "label"))
    for axis, dataset in zip(axes, datasets, strict=True):
        for label, look in looks.items():
            line = at(table, {"dataset": dataset, "label": label}).sort_values("lr", kind="stable")
            axis.plot(line["lr"], line["loss"], color=look.color, linewidth=1)
            best = line[line["chosen"].astype(bool)] if len(line) else line
            axis.plot(best["lr"], best["loss"], look.marker, color=look.color)
        draw.log_axis(axis)
        axis.set_title(dataset)
        axis.set_xlabel("learning rate")
    axes[0].set_ylabel("validation loss (nats/token)")
    draw.legend(figure, looks)
    return figure


@styled
def rates_of_many(table: pd.DataFrame) -> Figure:
    """Return the rates tried by so many arms that each has a row of its own, the best arm on top.

    A square is a rate, the darker the nearer its loss is to the arm's lowest; a dot is the chosen.

    Args:
        table: dataset, label (adapter and rank), lr, loss, chosen (bool).
    """
    datasets = levels(table, "dataset")
    lowest = table.groupby("label", observed=True)["loss"].min().sort_values(kind="stable")
    arms = lowest.index.astype(str)
    row = {label: len(arms) - 1 - i for i, label in enumerate(arms)}
    figure, axes = style.grid(
        len(datasets), columns=3, height=0.6 + ROW * len(arms), width=style.PAGE, sharey=True
    )
    for axis, dataset in zip(axes, datasets, strict=True):
        own = at(table, {"dataset": dataset})
        best = own.groupby("label", observed=True)["loss"].transform("min")
        y = own["label"].astype(str).map(row)
        above = (own["loss"] - best).clip(upper=FAR)
        shades = axis.scatter(own["lr"], y, s=16, c=above, marker="s", linewidth=0)
        shades.set(cmap="Blues_r", clim=(0, FAR * 1.15))
        chosen = own["chosen"].astype(bool)
        axis.plot(own.loc[chosen, "lr"], y[chosen], "o", color="white", markersize=2.2)
        draw.log_axis(axis)
        axis.set(title=dataset, xlabel="learning rate", ylim=(-0.8, len(arms) - 0.2))
        axis.set_yticks(list(row.values()), list(row), fontsize=6)
        axis.grid(visible=False)
        figure.colorbar(shades, ax=axis, aspect=60).set_label(
            f"validation loss above the arm's lowest (nats/token; {FAR:g} and more are one shade)"
        )
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

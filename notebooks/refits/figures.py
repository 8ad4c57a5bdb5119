"""Figures of the published tables fitted again; the tables are those of the modules beside this one."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from analysis.report import draw, style
from analysis.report.style import INK, MUTED, PAPER, RULE, styled
from .tradeoffs import ARMS, ITEMS, SETTINGS

Z = 1.96
MODELS = ("Llama-3-1B", "Gemma-2-2B", "Llama-3-3B", "Mistral-7B", "Llama-3-8B")
OWN = style.KNOWN_LOOKS["here"]
NAMED = {
    "lora rank64-rslora": "LoRA r = 64, rsLoRA",
    "lora rank32": "LoRA r = 32",
    "full-finetuning lr_0.00001": "full tuning",
}
PLACES = dict(zip(NAMED, (54.0, 50.0, 46.0), strict=True))
SHORT = {"Alpagasus": "", "Less": "", "ICL": "", "Chat": ""}


@styled
def shares(cells: pd.DataFrame, noise: float) -> Figure:
    """Return score over the prompt's share of the weight, less the panel's mean at share 0.

    Dots are runs, lines the panels' own quadratics; the grey band is what two near-replicates
    differ by in 95 of 100 cases.

    Args:
        cells: as `wit.on_responses` gives them.
        noise: the standard deviation of near-replicates.
    """
    datasets = list(dict.fromkeys(cells["dataset"]))
    looks = style.looks(MODELS)
    figure, axes = style.grid(len(datasets), columns=3, height=2.4, sharey=True)
    for axis, dataset in zip(axes, datasets, strict=True):
        axis.axhspan(-Z * 2**0.5 * noise, Z * 2**0.5 * noise, color=RULE, alpha=0.6, linewidth=0)
        axis.axhline(0, color=MUTED, linewidth=0.7)
        for model in MODELS:
            own = cells[(cells["dataset"] == dataset) & (cells["model"] == model)]
            _share_curve(axis, own, looks[model])
        axis.set_title(dataset)
        axis.set_xlabel("prompt's share of the weight")
    axes[0].set_ylabel("points above masking")
    draw.legend(figure, looks)
    return figure


def _share_curve(axis: Axes, own: pd.DataFrame, look: style.Look) -> None:
    gain = own["score"] - own.loc[own["share"] == 0, "score"].mean()
    axis.plot(own["share"], gain, look.marker, color=look.color, markersize=2.4, alpha=0.55)
    x = np.linspace(0, own["share"].max(), 80)
    axis.plot(x, np.polyval(np.polyfit(own["share"], gain, 2), x), color=look.color)


@styled
def tradeoffs(points: pd.DataFrame) -> Figure:
    """Return learning over the budget, and the source score over learning, a column per setting.

    Bars are 95 % of the benchmark's own items; there is no other noise to draw. `points` is as
    `tradeoffs.points` gives them.
    """
    looks = style.looks(ARMS)
    figure, axes = style.grid(2 * len(SETTINGS), columns=len(SETTINGS), height=2.0)
    for column, setting in enumerate(SETTINGS):
        own = points[points["setting"] == setting].sort_values("log2_x", kind="stable")
        upper, lower = axes[column], axes[column + len(SETTINGS)]
        for arm in ARMS:
            _budget_line(upper, own[own["arm"] == arm], looks[arm])
            _traded_line(lower, own[own["arm"] == arm], looks[arm])
        unit = "epochs" if setting.endswith("IFT") else "billion tokens"
        _doublings(upper, own, unit)
        upper.set_title(setting)
        lower.set_xlabel("target score")
    axes[0].set_ylabel("target score")
    axes[len(SETTINGS)].set_ylabel("source score")
    draw.legend(figure, looks)
    return figure


def _budget_line(axis: Axes, rows: pd.DataFrame, look: style.Look) -> None:
    share = rows["target"] / 100
    bars = 100 * Z * np.sqrt(share * (1 - share) / ITEMS[str(rows["domain"].iloc[0])])
    axis.errorbar(
        rows["log2_x"], rows["target"], yerr=bars, color=look.color, marker=look.marker,
        markersize=2.8, elinewidth=0.5, linewidth=1,
    )  # fmt: skip


def _traded_line(axis: Axes, rows: pd.DataFrame, look: style.Look) -> None:
    axis.plot(
        rows["target"], rows["source"], color=look.color, marker=look.marker, markersize=2.8,
        linewidth=1,
    )  # fmt: skip


def _powers(axis: Axes) -> None:
    """Make the axis logarithmic, with plain labels at powers of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(numticks=12))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(
        lambda value, _: draw.count_text(value) if value >= 1 else f"{value:g}"
    )


def _doublings(axis: Axes, own: pd.DataFrame, unit: str) -> None:
    ticks = [float(v) for v in sorted(own["log2_x"].unique()) if float(v).is_integer()][::2]
    axis.set_xticks(ticks, [f"{2**v:g}" for v in ticks])
    axis.set_xlabel(unit)


@styled
def configurations(table: pd.DataFrame, possible: Any) -> Figure:
    """Return accuracy over trainable parameters and over forgetting.

    Filled: in the 95 % confidence set for the best. Bars are 95 % of the 1,319 items.

    Args:
        table: as `peft_comparison.configurations` gives it.
        possible: a mask of its rows.
    """
    figure, axes = style.grid(2, columns=2, height=2.9, sharey=True)
    for axis, x in zip(axes, ("trainable_params", "forgetting"), strict=True):
        axis.errorbar(
            table[x], table["points"], yerr=Z * table["se"], fmt="none", ecolor=MUTED, alpha=0.5,
            elinewidth=0.6,
        )  # fmt: skip
        for mask, filled in ((possible, True), (~possible, False)):
            axis.plot(
                table.loc[mask, x], table.loc[mask, "points"], "o", color=OWN.color, markersize=3.2,
                markerfacecolor=OWN.color if filled else PAPER, markeredgewidth=0.7,
            )  # fmt: skip
        axis.grid(visible=True, axis="both")
    for axis in axes:
        _powers(axis)
    axes[0].set_xlabel("trainable parameters")
    axes[1].set_xlabel("forgetting: rise of the loss on Wikipedia")
    axes[0].set_ylabel("GSM8K, percent right")
    rows = table.set_index("config").to_dict("index")
    for name, label in NAMED.items():
        place = (rows[name]["forgetting"], rows[name]["points"])
        axes[1].plot(*place, "o", color=INK, markersize=4.5, fillstyle="none")
        axes[1].annotate(
            label, place, xytext=(0.0007, PLACES[name]), va="center", fontsize=6.5, color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkB": 2},
        )  # fmt: skip
    return figure


@styled
def pairs(differences: pd.DataFrame, items: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Return IM less IT over the ratio of lengths: NLP mean, AlpacaEval in points and in percent.

    Args:
        differences: of `instruction_modelling.differences`.
        items: of its `alpacaeval_items`; the middle panel's bars are theirs.
        points: of its `figure2("ratio")`; lines are fits to all points and to either side.
    """
    figure, axes = style.grid(3, columns=3, height=2.4)
    x = np.exp(differences["log_ratio"])
    axes[0].plot(x, differences["nlp_mean"], "o", color=OWN.color)
    axes[1].errorbar(
        x, differences["alpacaeval1"], yerr=Z * items.loc[differences.index, "se"], fmt="o",
        color=OWN.color, elinewidth=0.7,
    )  # fmt: skip
    for axis, column in zip(axes[:2], ("nlp_mean", "alpacaeval1"), strict=True):
        mean = float(differences[column].mean())
        axis.axhline(mean, color=OWN.color, linewidth=0.8, linestyle="--")
        for name, ratio, value in zip(differences.index, x, differences[column], strict=True):
            axis.annotate(
                _short(str(name)), (ratio, value), xytext=(3, 3), textcoords="offset points",
                fontsize=5.5, color=MUTED,
            )  # fmt: skip
    axes[2].plot(points["x"], points["gain"], "o", color=OWN.color, markersize=3.4)
    _line(axes[2], points, color=MUTED, dashed=True)
    for _, part in points.groupby("long"):
        _line(axes[2], part, color=INK, dashed=False)
    for axis, label in zip(
        axes,
        ("NLP mean, points", "AlpacaEval 1, points", "AlpacaEval 1, percent of IT"),
        strict=True,
    ):
        axis.axhline(0, color=MUTED, linewidth=0.7)
        _powers(axis)
        axis.set_xlim(0.06, 60)
        axis.set_xlabel("instruction / output length")
        axis.set_title(label)
    axes[0].set_ylabel("IM less IT")
    return figure


def _short(name: str) -> str:
    return " ".join(w for w in (SHORT.get(w, w) for w in name.split()) if w)


def _line(axis: Axes, part: pd.DataFrame, *, color: str, dashed: bool) -> None:
    ends = np.array([part["log_x"].min(), part["log_x"].max()])
    line = np.polyval(np.polyfit(part["log_x"], part["gain"], 1), ends)
    axis.plot(np.exp(ends), line, "--" if dashed else "-", color=color, linewidth=1)

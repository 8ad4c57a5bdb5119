"""The figures of the PLW paper, measured here, beside what was published.

Huerta-Enochian and Ko, "Instruction Fine-Tuning: Does Prompt Loss Matter?", arXiv 2401.13586.
Everything published is grey and says so; it comes from `analysis/published`. Levels of score,
BLEU, length and distance are those of other models and other data: shapes can be compared, numbers
cannot, and each figure says what was not published at all.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report import draw, plots, style
from analysis.report.draw import at, levels
from analysis.report.style import MUTED, RULE, styled
from analysis.table.frame import WP_EXPONENT
from analysis.table.published import read

# The paper's data set that each of ours stands in for.
COUNTERPARTS: Mapping[str, str] = {
    "micro": "AlpacaData",
    "micro_cleaned": "AlpacaDataCleaned",
    "micro_short": "AlpacaDataShort",
    "alpaca": "AlpacaData",
    "alpaca_cleaned": "AlpacaDataCleaned",
    "alpaca_short": "AlpacaDataShort",
}


# Of every measure: its axis, and what was published of it.
MEASURES: Mapping[str, tuple[str, str]] = {
    "train_loss_rsd": (
        "relative standard deviation\nof training loss",
        "rises sharply at small PLW > 0, lowest at PLW 1 (values and window not found)",
    ),
    "weight_distance": (
        "distance to the base model",
        "closest for PLW 0.0005 to 0.1 (shaded), much farther outside it (norm and values not "
        "found)",
    ),
    "prompt_bleu": (
        "BLEU on training prompts",
        "near 80 from PLW 0 to about 0.1 (dashed), lower above it (values not found)",
    ),
    "generation_length": (
        "generated tokens", "a larger PLW gives longer generations (values not found)"
    ),
}  # fmt: skip


@cache
def published() -> Mapping[str, str]:
    """Return the numbers that the paper reports, as text, by item."""
    table = read("plw_reported_numbers").astype(str)
    return dict(zip(table["item"], table["value"], strict=True))


def published_curve(wp: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> pd.DataFrame:
    """Return the paper's fitted curve for AlpacaDataShort: wp, estimate on its unstated scale."""
    facts = published()
    bend = float(facts["curve_quadratic_coef_short"])
    vertex, top = float(facts["curve_vertex_wp_short"]), float(facts["curve_vertex_value_short"])
    return pd.DataFrame({"wp": wp, "estimate": bend * (wp - vertex) ** 2 + top})


@styled
def score(points: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Return score against w_p per data set and task group, beside the published curve.

    Args:
        points: as `analysis.report.plots.score_curves` takes them.
        curves: the same, the fitted quadratic.
    """
    figure = plots.score_curves(points, curves, last=_published_score)
    *ours, theirs = figure.axes[: len(levels(points, "task_group")) + 1]
    for axis in ours:
        axis.set_title("here:\n" + axis.get_title(loc="left"))
    theirs.set_title("published:\nall tasks", color=MUTED)
    return figure


def _published_score(axis: Axes, stratum: str) -> None:
    """Draw what the paper has for a data set: a curve, or a p-value without one."""
    dataset = COUNTERPARTS.get(stratum.partition(",")[0])
    if dataset == "AlpacaDataShort":
        curve = published_curve(np.linspace(0, 1, 101))
        axis.plot(curve["wp"], curve["estimate"], color=MUTED)
        axis.set_ylabel("fitted value\n(scale not stated)", color=MUTED)
        axis.set_ylim(top=1.35)
        draw.corner(axis, f"{dataset}:\nvertex at PLW {published()['critical_PLW_lambda_short']}")
        return
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    if dataset is None:
        style.note(axis, "no counterpart")
        return
    p_value = published()[f"glmm_p_{dataset}"]
    style.note(axis, f"{dataset}:\nno curve published\np = {p_value}, the fit\ndid not converge")


@styled
def optimum(rows: pd.DataFrame) -> Figure:
    """Return the PLW with the highest fitted score, a line each, beside the published optimum.

    Args:
        rows: as `analysis.report.plots.optimum` takes them.
    """
    figure = plots.optimum(rows)
    axis = figure.axes[0]
    axis.set_ylim(top=1.6)
    plw = float(published()["critical_PLW_lambda_short"])
    axis.axvline(plw**WP_EXPONENT, color=MUTED, linewidth=1, linestyle=draw.DASHED)
    axis.annotate(
        f"published: {plw:g} for AlpacaDataShort, no interval given",
        (plw**WP_EXPONENT, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2),
        textcoords="offset points", va="top", fontsize=6.5, color=MUTED,
    )  # fmt: skip
    return figure


@styled
def measure(points: pd.DataFrame, name: str) -> Figure:
    """Return one measure against PLW: a panel per data set, a colour per base model.

    Args:
        points: dataset, model, plw, wp, estimate, low, high.
        name: of `MEASURES`; what was published of it stands below.
    """
    ylabel, said = MEASURES[name]
    datasets = levels(points, "dataset")
    figure, axes = style.grid(len(datasets), columns=3, height=1.9, sharey=True)
    looks = style.looks(levels(points, "model"))
    for axis, dataset in zip(axes, datasets, strict=True):
        rows = at(points, {"dataset": dataset})
        draw.dose_panel(axis, rows, points.iloc[:0], by="model", looks=looks)
        axis.set_title(f"here: {dataset}")
    draw.plw_axis(axes, points["plw"].unique(), least=0.13)
    for axis in axes:
        axis.set_xlabel(draw.PLW)
    axes[0].set_ylabel(ylabel)
    figure.supxlabel(f"published: {said}", x=0.01, ha="left", fontsize=6.5, color=MUTED)
    draw.legend(figure, looks)
    for axis in axes:
        if name == "weight_distance":
            ends = 0.0005**WP_EXPONENT, 0.1**WP_EXPONENT
            axis.axvspan(*ends, color=RULE, alpha=0.7, linewidth=0)
        elif name == "prompt_bleu":
            axis.plot([0, 0.1**WP_EXPONENT], [80, 80], color=MUTED, linestyle=draw.DASHED)
    return figure

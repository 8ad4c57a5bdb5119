"""The figures of instruction modelling, measured here, beside what was published.

Everything published is grey and says so; it comes from `analysis/published`. Models, data and
benchmarks differ: directions can be compared, levels cannot.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.papers.instruction_modelling import published
from analysis.papers.instruction_modelling.arms import (
    IT,
    RATIO,
    ROWS,
    Runs,
    near_levels,
    pairs,
)
from analysis.papers.instruction_modelling.claims import main_mode
from analysis.report import draw, style, words
from analysis.report.style import INK, MUTED, Look, styled
from analysis.table.level_means import level_means
from analysis.table.published import read

PERCENT = "gain of IM over IT (% of IT)"
LEAST = 2.0  # points of IT, below which no percentage of them is drawn
BLUE, VERMILION = style.PALETTE[:2]
OURS = {IT: Look(VERMILION, "s"), "IM": Look(BLUE, "o")}


@styled
def scores(found: Sequence[Runs]) -> Figure:
    """Return figures 1 and 6: scores of IT and IM over the ratio, and over rows."""
    figure, axes = style.grid(2 * len(found), columns=len(found), height=1.9)
    for runs, upper, lower in zip(found, axes[: len(found)], axes[len(found) :], strict=True):
        for axis, x in ((upper, RATIO), (lower, ROWS)):
            _levels(axis, runs, x)
        upper.set_title(words.group_text(runs.group).replace(" (", "\n("))
        upper.set_xlabel("Rg: output / instruction")
        lower.set_xlabel("training rows")
    for axis in axes[:: len(found)]:
        axis.set_ylabel("score, points")
    draw.legend(figure, OURS)
    return figure


def _levels(axis: Axes, runs: Runs, x: str) -> None:
    """Draw the means of IT and IM over a number of the data, with their intervals."""
    other = ROWS if x == RATIO else RATIO
    table = _near(runs.at(), main_mode(runs))
    means = level_means(table, ["arm", x], block=["seed", other]).table
    _lines(axis, means, x)
    axis.set_xscale("log")
    _ticks(axis, sorted(means[x].astype(float).unique()))


def _near(table: pd.DataFrame, im: str) -> pd.DataFrame:
    """Return the runs of IT and IM, ratios that are nearly equal as one."""
    own = table[table["arm"].isin([IT, im])].assign(arm=lambda d: d["arm"].replace(im, "IM"))
    return own.assign(**{RATIO: near_levels(own[RATIO].astype(float))}) if RATIO in own else own


def _lines(axis: Axes, means: pd.DataFrame, x: str) -> None:
    """Draw a line of means with their intervals for IT and IM."""
    for name, look in OURS.items():
        line = means[means["arm"] == name].sort_values(x, kind="stable")
        axis.plot(line[x], line["estimate"], color=look.color, linewidth=0.9)
        draw.markers(axis, line[x], line, look)


def _ticks(axis: Axes, places: Sequence[float]) -> None:
    """Mark the values that were run, the first, the middle and the last of them."""
    some = sorted({places[0], places[len(places) // 2], places[-1]})
    axis.set_xticks(some, [f"{v:.2g}" if v < 100 else draw.count_text(v) for v in some])
    axis.minorticks_off()


@styled
def published_scores() -> Figure:
    """Return figure 1 as published: IT and IM on seven data sets, two of its four measures."""
    table = published.table1()
    figure, axes = style.grid(2, columns=2, height=2.1)
    for axis, measure, name in zip(
        axes, ("nlp_mean", "alpacaeval1"), ("NLP mean", "AlpacaEval 1"), strict=True
    ):
        wide = table[table["measure"] == measure].pivot(
            index="dataset", columns="method", values="value"
        )
        wide = wide.sort_values("IM", kind="stable")
        for place, row in enumerate(wide.to_dict("records")):
            axis.plot([row["IT"], row["IM"]], [place, place], color=MUTED, linewidth=0.8)
            axis.plot(row["IT"], place, "s", color=MUTED, markersize=4, mfc="white")
            axis.plot(row["IM"], place, "o", color=MUTED, markersize=4)
        axis.set_yticks(range(len(wide)), wide.index.astype(str), fontsize=6)
        axis.set_ylim(-0.6, len(wide) - 0.4)
        axis.set_title(f"published: {name}", color=MUTED)
        axis.set_xlabel("open square: IT; disc: IM")
    return figure


@styled
def gains(found: Sequence[Runs]) -> Figure:
    """Return figure 2: the gain in percent of IT over ratio and rows, here and as published."""
    figure, axes = style.grid(4, columns=2, height=2.1)
    looks = style.looks(words.group_text(r.group) for r in found)
    for axis, x in zip(axes[:2], (RATIO, ROWS), strict=True):
        for runs in found:
            own, look = relative(runs, x), looks[words.group_text(runs.group)]
            at = 1 / own[x] if x == RATIO else own[x]
            axis.plot(at, own["percent"], look.marker, color=look.color, markersize=4)
    for axis, panel in zip(axes[2:], ("ratio", "examples"), strict=True):
        own = published.figure2(panel)
        axis.plot(own["x"], own["gain"], "o", color=MUTED, markersize=4)
    for axis, title in zip(axes, ("here", "here", "published", "published"), strict=True):
        axis.axhline(0, color=INK, linewidth=0.6)
        draw.log_axis(axis)
        axis.set_title(title, color=MUTED if title == "published" else INK)
    for axis, label in zip(axes, 2 * ["instruction / output", "training rows"], strict=True):
        axis.set_xlabel(label)
    for axis in axes[::2]:
        axis.set_ylabel(PERCENT)
    _ticks(axes[1], sorted({float(v) for runs in found for v in runs.at()[ROWS].unique()}))
    draw.legend(figure, looks)
    return figure


def relative(runs: Runs, x: str) -> pd.DataFrame:
    """Return x and percent: the mean gain of IM at every value of a number, in percent of IT's
    mean score; where that is below `LEAST` there is none, for a percentage of nothing is noise.
    """
    gain = pairs(runs.at(), main_mode(runs), IT)
    theirs = gain["score"] - gain["gap"]
    by = near_levels(gain[x].astype(float)) if x == RATIO else gain[x].astype(float)
    gap, level = gain["gap"].groupby(by).mean(), theirs.groupby(by).mean()
    percent = 100 * gap[level >= LEAST] / level[level >= LEAST]
    return percent.rename("percent").rename_axis(x).reset_index()


@styled
def over_epochs(found: Sequence[Runs]) -> Figure:
    """Return figure 4: scores over the number of epochs; published without numbers."""
    figure, axes = style.grid(len(found), columns=len(found), height=2.0)
    for axis, runs in zip(axes, found, strict=True):
        im, place = main_mode(runs), runs.usual
        table = runs.table[runs.table["arm"].isin([IT, im])]
        for name in ("model", "scope"):
            table = table[table[name].astype(str) == place[name]]
        sets = table.groupby("dataset", observed=True)["epochs"].nunique()
        table = table[table["dataset"].isin(sets[sets > 1].index)]
        table = table.assign(
            arm=table["arm"].replace(im, "IM"), epochs=table["epochs"].astype(float)
        )
        means = level_means(table, ["arm", "epochs"], block=["seed", "dataset"]).table
        _lines(axis, means, "epochs")
        axis.set_xticks(sorted(means["epochs"].unique()))
        axis.set_title(words.group_text(runs.group).replace(" (", "\n("))
        axis.set_xlabel("epochs")
    axes[0].set_ylabel("score, points")
    draw.legend(figure, OURS)
    return figure


@styled
def losses(here: pd.DataFrame) -> Figure:
    """Return figures 3, 8 and 9: losses of single held-out rows on their outputs; published means.

    Args:
        here: arm and loss, a row per example and run.
    """
    figure, (left, right) = style.grid(2, columns=2, height=2.1)
    ends = np.linspace(0, float(here["loss"].quantile(0.99)), 31)
    for arm, look in OURS.items():
        own = here.loc[here["arm"] == arm, "loss"]
        left.hist(own.clip(upper=ends[-1]), bins=list(ends), density=True, histtype="step",
                  color=look.color)  # fmt: skip
        left.axvline(float(own.mean()), color=look.color, linestyle=draw.DASHED, linewidth=0.8)
    left.set_xlabel("loss on a held-out row's output (nats a token)")
    left.set_ylabel("density")
    left.set_title("here")
    told = read("im_scores")
    told = told[told["measure"].isin(["train_loss", "test_loss"])]
    wide = told.pivot(index=["dataset", "measure"], columns="method", values="value").sort_index()
    for place, (it, im) in enumerate(wide[["IT", "IM"]].to_numpy(dtype=float)):
        right.plot([it, im], [place, place], color=MUTED, linewidth=0.8)
        right.plot(it, place, "s", color=MUTED, markersize=4, mfc="white")
        right.plot(im, place, "o", color=MUTED, markersize=4)
    labels = [f"{d}, {m.removesuffix('_loss')}" for d, m in wide.index]
    right.set_yticks(range(len(labels)), labels)
    right.set_xlabel("mean loss; open square: IT, disc: IM")
    right.set_title("published means", color=MUTED)
    draw.legend(figure, OURS)
    return figure

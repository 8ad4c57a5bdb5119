"""The figures of MoRA measured here, beside what was published.

Jiang et al., arXiv 2405.12130, figures 4 and 5; the differences of tables 1, 3, 6 and 7 as figures.
Everything published is grey and says so. Models, data and tasks differ: the order of the arms can
be compared, levels cannot.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.papers.mora import published
from analysis.papers.mora.measures import COUNTS, KINDS, PERPLEXITY, SCORE
from analysis.papers.mora.runs import LORA, PRETRAINING, in_order
from analysis.questions.own_rate.estimate import MARGINS
from analysis.questions.own_rate.figure import BANDS
from analysis.report import draw, style
from analysis.report.style import INK, MUTED, PAPER, Look, styled

Dash = tuple[float, tuple[float, ...]]
DASHES: Sequence[Dash | str] = (  # lines are apart in black and white as well
    "-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1, 1, 1)), (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
FULL_LINE = (0, (1, 0.6))
HEADS = {SCORE: "benchmarks\n(points)", PERPLEXITY: "test rows\n(% of perplexity)"}
COUNT_TITLES = dict(
    zip(COUNTS, ("above 0.1, as the paper counts", "above a tenth of the largest"), strict=True)
)
LINE = 0.155  # inches of an arm
FAR = 4.0  # times as far as all smaller differences: told at the edge
MARKS = ("o", "s", "D", "^")
LEAST = 0.08  # share of the steps at which the linear panel's losses begin to be shown


def looks(arms: Mapping[str, object] | Sequence[str]) -> dict[str, Look]:
    """Return how every arm is drawn, in the order of figures."""
    return style.looks(in_order(dict.fromkeys(arms)))


@styled
def pretraining(curves: pd.DataFrame) -> Figure:
    """Return figure 4: training loss over steps, on both axes, and what was published of its end.

    Args:
        curves: arm, step, estimate, low, high (nats a token).
    """
    figure = Figure(figsize=(style.PAGE, 2.7), layout="constrained")
    linear, logarithmic, theirs = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    drawn = looks(draw.levels(curves, "arm"))
    for axis in (linear, logarithmic):
        for arm, look in drawn.items():
            _line(axis, draw.at(curves, {"arm": arm}), look, _dash(arm, drawn))
        axis.set_xlabel("training steps")
    draw.counts_axis(logarithmic)
    linear.set_ylabel("training loss (nats a token)")
    linear.set_title("here")
    logarithmic.set_title("here, steps on a log scale")
    late = curves[curves["step"] >= LEAST * curves["step"].max()]
    low, high = float(late["estimate"].min()), float(late["estimate"].max())
    room = 0.08 * (high - low)
    linear.set_ylim(low - room, high + room)
    _published_ends(theirs, drawn)
    handles = [
        Line2D([], [], color=look.color, linestyle=_dash(arm, drawn), marker=look.marker,
               markersize=3.2, label=arm)
        for arm, look in drawn.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=6, handlelength=4.2)
    return figure


def _dash(arm: str, drawn: Mapping[str, Look]) -> Any:
    return FULL_LINE if arm == "full" else DASHES[list(drawn).index(arm) % len(DASHES)]


def _line(axis: Axes, rows: pd.DataFrame, look: Look, dash: Any) -> None:
    rows = rows.sort_values("step", kind="stable")
    x, y = rows["step"].to_numpy(float), rows["estimate"].to_numpy(float)
    low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
    axis.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
    axis.plot(x, y, color=look.color, linestyle=dash, linewidth=1.1)
    marked = np.unique(np.searchsorted(x, x[-1] * np.array([0.01, 0.04, 0.15, 0.45, 1.0])))
    marked = marked[marked < len(x)]
    axis.plot(x[marked], y[marked], look.marker, color=look.color, markersize=3.2,
              markeredgecolor=PAPER, markeredgewidth=0.4)  # fmt: skip


def _published_ends(axis: Axes, drawn: Mapping[str, Look]) -> None:
    """Draw table 3: the validation loss at the end of the published curves, in grey."""
    ends = list(published.perplexities(list(drawn)))
    sizes = list(dict.fromkeys(size for _, size, _ in ends))
    for arm, size, loss in ends:
        axis.plot(sizes.index(size), loss, drawn[arm].marker, color=MUTED, markersize=4.5)
    last = [(arm, loss) for arm, size, loss in ends if size == sizes[-1]] if sizes else []
    for (arm, loss), y in zip(last, style.spread([loss for _, loss in last], 0.028), strict=True):
        axis.annotate(arm, (len(sizes) - 1, loss), xytext=(len(sizes) - 0.82, y), va="center",
                      fontsize=6.5, color=MUTED)  # fmt: skip
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set_xlim(-0.4, len(sizes) + 0.55)
    axis.margins(y=0.15)
    axis.set_title("published: the end", color=MUTED)
    axis.set_xlabel("model (table 3)")


@styled
def spectrum(points: pd.DataFrame) -> Figure:
    """Return figure 5: how many singular values of the change are large, by kind of matrix.

    Args:
        points: measure, kind, arm, estimate, low, high (mean over layers).
    """
    figure, axes = style.grid(len(COUNTS), columns=1, height=1.75)
    drawn = looks(draw.levels(points, "arm"))
    kinds = [k for k in KINDS if k in set(points["kind"])]
    step = 0.8 / max(len(drawn), 1)
    for axis, measure in zip(axes, COUNTS, strict=True):
        for place, (arm, look) in enumerate(drawn.items()):
            rows = draw.at(points, {"measure": measure, "arm": arm}).set_index("kind")
            rows = rows.reindex([k for k in kinds if k in rows.index])
            x = np.array([kinds.index(str(k)) for k in rows.index]) - 0.4 + step * (place + 0.5)
            axis.vlines(x, 0, rows["estimate"], color=look.color, linewidth=2.2, alpha=0.35)
            draw.markers(axis, x, rows.reset_index(), look, linestyle="none")
        for edge in range(1, len(kinds)):
            axis.axvline(edge - 0.5, color=style.RULE, linewidth=0.5)
        axis.set_xticks(range(len(kinds)), [k.removesuffix("_proj") for k in kinds])
        axis.set_xlim(-0.5, len(kinds) - 0.5)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("singular values")
        axis.set_title(COUNT_TITLES[measure])
    draw.legend(figure, drawn)
    return figure


@styled
def differences(table: pd.DataFrame, theirs: pd.DataFrame, setting: str) -> Figure:
    """Return every arm less LoRA of one part of the paper: ours, and the published ones in grey.

    An arm far beyond all others is an arrow at the edge, with its number.

    Args:
        table: of `tables.setting_table`.
        theirs: where, arm, measure, rank, gap, as `published.differences` has them.
        setting: which part of the paper.
    """
    rows = table[table["arm"] != LORA]
    lines = _places(rows)
    measures = [m for m in HEADS if m in set(rows["measure"])]
    panels = len(measures) + 1
    figure = Figure(
        figsize=(style.PAGE, 0.9 + LINE * (max(lines.values()) + 1)), layout="constrained"
    )
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axis, measure in zip(axes, measures, strict=False):
        _bands(axis)
        own = rows[rows["measure"] == measure]
        reach = within(own)
        for row in own.to_dict("records"):
            y = lines[str(row["where"]), str(row["arm"])]
            if abs(row["estimate"]) > reach:
                _beyond(axis, float(row["estimate"]), y, reach)
                continue
            named = SimpleNamespace(**{str(name): value for name, value in row.items()})
            draw.whisker(axis, named, y, look=Look(INK, "o"))
        axis.set_xlabel(f"here, {HEADS[measure]}")
    _published(axes[-1], theirs, lines, setting)
    heads = [where for where, arm in lines if not arm]
    ticks = {y: arm or where for (where, arm), y in lines.items()}
    for axis in axes:
        draw.forest_axis(axis, ticks, heads)
        axis.axvline(0, color=MUTED, linewidth=0.7)
    axes[0].set_ylim(max(lines.values()) + 0.6, -0.6)
    return figure


def within(rows: pd.DataFrame) -> float:
    """Return the difference beyond which rows are told by a number at the edge, not drawn.

    It lies where a row reaches `FAR` times as far as all smaller ones, else beyond all: an arm that
    is another order of magnitude away would leave nothing to be read of the others.

    Args:
        rows: estimate, low, high; of one measure.
    """
    ends = rows[["estimate", "low", "high"]].abs().max(axis=1).dropna()
    for smaller, larger in itertools.pairwise(sorted(ends)):
        if larger > FAR * max(smaller, *MARGINS):
            return float(smaller)
    return math.inf


def _beyond(axis: Axes, estimate: float, y: float, reach: float) -> None:
    """Draw an arrow at the edge, with the estimate beside it."""
    side = math.copysign(1, estimate)
    edge = 1.12 * side * reach
    axis.plot(edge, y, "<" if side < 0 else ">", color=INK, markersize=4)
    axis.annotate(
        f"{estimate:+.0f}".replace("-", "\N{MINUS SIGN}"), (edge, y),
        xytext=(-side * 5, 0), textcoords="offset points", va="center",
        ha="left" if side < 0 else "right", fontsize=6.5,
    )  # fmt: skip


def _places(rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return the height of every group's head (its arm is "") and of its arms."""
    found: dict[tuple[str, str], float] = {}
    for where, own in rows.groupby("where", sort=False):
        for arm in ["", *in_order(dict.fromkeys(own["arm"]))]:
            found[str(where), arm] = float(len(found))
    return found


def _bands(axis: Axes) -> None:
    for margin, color in zip(reversed(MARGINS), reversed(BANDS), strict=True):
        axis.axvspan(-margin, margin, color=color, alpha=0.55, linewidth=0)


def _published(
    axis: Axes, theirs: pd.DataFrame, lines: Mapping[tuple[str, str], float], setting: str
) -> None:
    """Draw the published differences: a marker per benchmark, hollow at the higher rank."""
    _bands(axis)
    unit = "% of perplexity" if setting == PRETRAINING else "points"
    axis.set_xlabel(f"published, one run each\n({unit})")
    axis.xaxis.label.set_color(MUTED)
    if not len(theirs):
        style.note(axis, "nothing published")
        return
    marks = dict(zip(draw.levels(theirs, "measure"), MARKS, strict=False))
    ranks = sorted({str(r) for r in theirs["rank"]}, key=float)
    for row in theirs.to_dict("records"):
        hollow = len(ranks) > 1 and str(row["rank"]) == ranks[-1]
        y = lines[str(row["where"]), str(row["arm"])]
        axis.plot(row["gap"], y, marks[str(row["measure"])], color=MUTED, markersize=4,
                  markerfacecolor=PAPER if hollow else MUTED)  # fmt: skip
    handles = [
        Line2D([], [], color=MUTED, marker=mark, linestyle="none", markersize=4, label=name)
        for name, mark in marks.items()
    ]
    if len(ranks) > 1:
        handles += [
            Line2D([], [], color=MUTED, marker="o", linestyle="none", markersize=4,
                   label=f"r = {rank}", markerfacecolor=PAPER if rank == ranks[-1] else MUTED)
            for rank in ranks
        ]  # fmt: skip
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2,
                fontsize=6, handletextpad=0.1, columnspacing=0.8)  # fmt: skip

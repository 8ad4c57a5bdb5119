"""Pairs of weights: the score over the prompt's share, and what scaling both weights changes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.inference.estimates import Estimate
from analysis.questions.weight_pairs.estimate import Pairs, terms
from analysis.report import style, words
from analysis.report.style import BLUE, INK, MARKERS, MUTED, PALETTE

STEPS = 61


@style.styled
def shares(found: Sequence[Pairs]) -> Figure:
    """Return a panel per group of tasks (column) and data set (row): scores over the share.

    Every point is the mean score of a pair over the prompt's share of its weights. Colour and
    marker: the larger of the two weights. Line: the quadratic in the share, fitted to the pairs
    with a weight on the answer.
    """
    groups = list(dict.fromkeys(one.labels["task_group"] for one in found))
    rows = list(dict.fromkeys(_row(one) for one in found))
    told = [i for i in range(3) if i == 0 or len({row[i] for row in rows}) > 1]
    size = style.PAGE, 0.7 + 1.6 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(groups), squeeze=False, sharex=True)
    drawn = set()
    for one in found:
        place = rows.index(_row(one)), groups.index(one.labels["task_group"])
        drawn.add(place)
        _panel(axes[place], one)
    for place in np.ndindex(axes.shape):
        axes[place].set_visible(place in drawn)
    for axis, group in zip(axes[0], groups, strict=True):
        axis.set_title(words.group_text(group).replace(" (", "\n("))
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel("\n".join([*(row[i] for i in told), "score, points"]))
    figure.supxlabel("prompt's share of the weights, p / (p + a)", fontsize="medium")
    handles, labels = axes[min(drawn)].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels),
                  title="larger weight")  # fmt: skip
    return figure


def _row(one: Pairs) -> tuple[str, str, str]:
    return one.labels["dataset"], one.labels["model"], one.labels["mode"]


def _panel(axis: Axes, one: Pairs) -> None:
    cells = one.cells[one.cells["answer"] > 0]
    for number, scale in enumerate(sorted(one.cells["scale"].unique())):
        own = cells[cells["scale"] == scale]
        axis.plot(own["share"], own["score"], linestyle="", markersize=3.5,
                  marker=MARKERS[number % len(MARKERS)], color=PALETTE[number % len(PALETTE)],
                  label=f"{2.0**scale:.2g}")  # fmt: skip
    x_CK = terms(cells, "ratio")
    b_K = np.linalg.lstsq(x_CK, cells["score"].to_numpy(dtype=float), rcond=None)[0]
    q = np.linspace(cells["share"].min(), cells["share"].max(), STEPS)
    axis.plot(q, np.column_stack([np.ones(STEPS), q, q**2]) @ b_K, color=INK, linewidth=0.9)


@style.styled
def changes(
    here: Sequence[tuple[str, Estimate]], published: tuple[str, Estimate], margin: float
) -> Figure:
    """Return the change with both weights from smallest to largest: ours, and the published.

    Band: the margin of equivalence. Bars: 95 % intervals.
    """
    lines = [*here, published]
    figure = Figure(figsize=(style.PAGE, 0.7 + 0.2 * len(lines)), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-margin, margin, color=style.RULE, alpha=0.6, linewidth=0)
    axis.axvline(0.0, color=INK, linewidth=0.7)
    for place, (_, one) in enumerate(lines):
        ours = place < len(here)
        axis.errorbar(one.estimate, place, xerr=one.half_width, capsize=2, markersize=3.5,
                      fmt="o" if ours else "s", color=BLUE if ours else MUTED)  # fmt: skip
    axis.set_yticks(range(len(lines)), [name for name, _ in lines])
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xlabel("change with both weights from smallest to largest at one ratio, points")
    axis.grid(visible=False, axis="y")
    return figure

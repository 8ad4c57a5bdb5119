"""Pairs of weights: the score over the prompt's share, and what scaling both weights changes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.inference.estimates import Estimate
from analysis.questions.weight_pairs.estimate import Pairs, terms
from analysis.report import style, words
from analysis.report.style import BLUE, INK, MARKERS, MUTED, PALETTE

COLUMNS = 3
STEPS = 61


@style.styled
def shares(found: Sequence[Pairs]) -> Figure:
    """Return a panel per group of tasks: the mean score of every pair over the prompt's share.

    Colour and marker: the larger of the two weights. Line: the quadratic in the share, fitted to
    the pairs with a weight on the answer.
    """
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(style.PAGE, 0.6 + 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axis, one in zip(axes.flat, found, strict=False):
        _panel(axis, one)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("prompt's share of the weights, p / (p + a)")
    for axis in axes[:, 0]:
        axis.set_ylabel("score, points")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels),
                  title="larger weight")  # fmt: skip
    return figure


def _panel(axis: Axes, one: Pairs) -> None:
    cells = one.cells[one.cells["answer"] > 0]
    scales = sorted(one.cells["scale"].unique())
    for number, scale in enumerate(scales):
        own = cells[cells["scale"] == scale]
        axis.plot(own["share"], own["score"], linestyle="", markersize=3.5,
                  marker=MARKERS[number % len(MARKERS)], color=PALETTE[number % len(PALETTE)],
                  label=f"{2.0**scale:.2g}")  # fmt: skip
    x_CK = terms(cells, "ratio")
    b_K = np.linalg.lstsq(x_CK, cells["score"].to_numpy(dtype=float), rcond=None)[0]
    q = np.linspace(cells["share"].min(), cells["share"].max(), STEPS)
    axis.plot(q, np.column_stack([np.ones(STEPS), q, q**2]) @ b_K, color=INK, linewidth=0.9)
    axis.set_title(", ".join(_title(one)))


def _title(one: Pairs) -> list[str]:
    return [one.labels["dataset"], words.group_text(one.labels["task_group"])]


@style.styled
def changes(here: Sequence[tuple[str, Estimate]], published: Estimate, margin: float) -> Figure:
    """Return the change with both weights from smallest to largest: ours, and the published mean.

    Band: the margin of equivalence. Bars: 95 % intervals.
    """
    lines = [*here, ("published: 15 panels, five benchmarks", published)]
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

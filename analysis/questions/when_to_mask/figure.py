"""The gain of training on the prompt over Rg and rows: a map per group of tasks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis.questions.when_to_mask.estimate import RATIO, ROWS, Mask
from analysis.report import draw, style, words
from analysis.report.style import BLUE, INK, PAPER, VERMILION

STEPS = 41
COLUMNS = 3
MARGIN = 0.1  # of the logarithmic range, around what was run
APART = 0.06  # of it, between two labels at least
GAIN = LinearSegmentedColormap.from_list("gain", [VERMILION, PAPER, BLUE])


@style.styled
def maps(found: Sequence[Mask]) -> Figure:
    """Return the fitted gain over both numbers, a panel per group of tasks, one weight.

    At every place that was run stands the fitted gain in points: bold with its sign where the
    interval for all places at once excludes zero, in brackets where it does not.
    """
    columns = 2 if len(found) == 4 else min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(style.PAGE, 0.5 + 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    most = max(abs(mask.effects["estimate"]).max() for mask in found)
    norm = TwoSlopeNorm(0.0, -max(most, 0.1), max(most, 0.1))
    for axis, mask in zip(axes.flat, found, strict=False):
        _map(axis, mask, norm)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("Rg: completion / prompt tokens")
    for axis in axes[:, 0]:
        axis.set_ylabel("training rows")
    return figure


def _map(axis: Axes, mask: Mask, norm: TwoSlopeNorm) -> None:
    places = np.log2(np.array(mask.places))
    low, high = places.min(axis=0), places.max(axis=0)
    x = np.linspace(low[0], high[0], STEPS)
    y = np.linspace(low[1], high[1], STEPS)
    grid = [(2.0**a, 2.0**b) for b in y for a in x]
    gain = (mask.found.l_PB(grid) @ mask.found.fit.fixef.to_numpy()).reshape(STEPS, STEPS)
    axis.pcolormesh(2.0**x, 2.0**y, gain, cmap=GAIN, norm=norm, shading="gouraud", rasterized=True)
    if gain.min() < 0 < gain.max():
        axis.contour(2.0**x, 2.0**y, gain, levels=[0.0], colors=[INK], linewidths=0.9)
    for row in mask.effects.to_dict("records"):
        clear = row["verdict"] in ("pays", "costs")
        number = f"{row['estimate']:+.1f}" if clear else f"({row['estimate']:.1f})"
        text = number.replace("-", "−")
        weight = "bold" if clear else "normal"
        axis.text(row[RATIO], row[ROWS], text, ha="center", va="center", fontsize=6,
                  fontweight=weight, color=INK,
                  path_effects=[withStroke(linewidth=1.5, foreground=PAPER)])  # fmt: skip
    for scale, ends, ticks in (
        (axis.set_xscale, axis.set_xlim, sorted({p[0] for p in mask.places})),
        (axis.set_yscale, axis.set_ylim, sorted({p[1] for p in mask.places})),
    ):
        scale("log", base=2)
        pad = (ticks[-1] / ticks[0]) ** MARGIN
        ends(ticks[0] / pad, ticks[-1] * pad)
    axis.set_xticks(*_ticks({p[0] for p in mask.places}))
    axis.set_yticks(*_ticks({p[1] for p in mask.places}))
    axis.minorticks_off()
    axis.grid(visible=False)
    axis.set_title(words.group_text(mask.labels["task_group"]))


def _ticks(values: set[float]) -> tuple[list[float], list[str]]:
    """Return the places of ticks and their labels; those close to the one before have none."""
    places, labels, last = sorted(values), [], 0.0
    span = places[-1] / places[0]
    for value in places:
        far = not last or value / last > span**APART
        labels.append(f"{value:.2g}" if value < 100 else draw.count_text(value))
        if far:
            last = value
        else:
            labels[-1] = ""
    return places, labels

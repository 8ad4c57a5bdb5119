"""The memorisation figure of the MoRA paper, measured here, beside what was published.

Jiang et al., "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning", arXiv 2405.12130,
figures 2 and 3 and table 2. Models, pairs and steps differ: the order of the lines can be compared,
their numbers cannot.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import MUTED, Look, styled
from analysis.table.published import FOLDER

CHANCE = 10.0  # percent: one of ten to sixteen characters, table 2's own floor


def published() -> pd.DataFrame:
    """Return the paper's table 2: adapter, rank (missing for full), steps, estimate in percent."""
    return pd.read_csv(FOLDER / "mora_uuid.csv").rename(columns={"characters": "estimate"})


@styled
def memorisation(points: pd.DataFrame) -> Figure:
    """Return the share of characters right over steps: a column per budget, published ones below.

    Args:
        points: adapter, rank, steps, estimate, low, high (percent); full tuning has no rank and
            stands in every panel.
    """
    ranks, theirs = _ranks(points), published()
    figure = Figure(figsize=(style.PAGE, 4.2), layout="constrained")
    axes = figure.subplots(2, max(len(ranks), 2), sharey=True, squeeze=False)
    looks = style.looks(levels(points, "adapter"))
    for axis, rank in zip(axes[0], ranks, strict=False):
        _panel(axis, _budget(points, rank), looks)
        axis.set_title(f"here: r = {rank:g}")
    for axis, rank in zip(axes[1], _ranks(theirs), strict=False):
        _panel(axis, _budget(theirs, rank), looks)
        axis.set_title(f"published: r = {rank:g}, one run", color=MUTED)
        axis.set_xlabel("training steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("characters right (%)")
    draw.legend(figure, looks)
    return figure


def _ranks(points: pd.DataFrame) -> list[float]:
    return sorted(points["rank"].dropna().astype(float).unique())


def _budget(points: pd.DataFrame, rank: float) -> pd.DataFrame:
    return points[points["rank"].isna() | (points["rank"].astype(float) == rank)]


def _panel(axis: Axes, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    axis.axhline(CHANCE, color=MUTED, linewidth=0.6, linestyle=(0, (2, 2)))
    for adapter, look in looks.items():
        line = at(rows, {"adapter": adapter}).sort_values("steps", kind="stable")
        if not len(line):
            continue
        axis.plot(line["steps"], line["estimate"], color=look.color, linewidth=1.0)
        if "low" in line:
            draw.markers(axis, line["steps"], line, look)
        else:
            axis.plot(line["steps"], line["estimate"], look.marker, color=look.color, markersize=4)
    axis.set_ylim(0, 104)

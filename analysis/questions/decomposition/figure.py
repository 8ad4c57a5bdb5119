"""The figure of a weight's effect in its parts."""

import pandas as pd
from matplotlib.figure import Figure

from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.style import MUTED, styled


@styled
def parts(rows: pd.DataFrame) -> Figure:
    """Return the parts of each weight's effect: a panel each, a line per part, a colour per weight.

    Args:
        rows: panel, part, weight, estimate, low, high, verdict.
    """
    panels, names, weights = levels(rows, "panel"), levels(rows, "part"), levels(rows, "weight")
    columns = 4 if len(panels) > 2 else 2
    figure, axes = style.grid(len(panels), columns=columns, height=1.55)
    looks = style.looks(weights)
    gap = 0.6 / max(len(weights), 1)
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        axis.axvline(0, color=MUTED, linewidth=0.7)
        for k, (weight, look) in enumerate(looks.items()):
            for row in at(rows, {"panel": panel, "weight": weight}).itertuples():
                y = -names.index(str(row.part)) - gap * (k - (len(weights) - 1) / 2)
                draw.whisker(axis, row, y, look=look)
        axis.set_ylim(-len(names) + 0.5, 0.5)
        shown = names if i % columns == 0 else [""] * len(names)
        axis.set_yticks([-float(j) for j in range(len(names))], shown)
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=True, axis="x")
        axis.grid(visible=False, axis="y")
        axis.set_title(panel, fontsize=7)
    figure.supxlabel("points")
    draw.legend(figure, looks)
    return figure

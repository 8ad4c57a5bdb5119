"""The figure of held-out loss per role of the token."""

import pandas as pd
from matplotlib.figure import Figure

from analysis.report import draw, style
from analysis.report.draw import at, levels
from analysis.report.plots import lattice
from analysis.report.style import styled


@styled
def heldout_loss(points: pd.DataFrame) -> Figure:
    """Return held-out loss against PLW: a column per role, a row per data set.

    Args:
        points: dataset, role, masking, plw, wp, estimate, low, high; loss in nats a token.
    """
    datasets, roles = levels(points, "dataset"), levels(points, "role")
    figure, axes = lattice(len(datasets), len(roles), sharey=False)
    looks = style.looks(levels(points, "masking"))
    none = points.iloc[:0]
    for i, dataset in enumerate(datasets):
        for j, role in enumerate(roles):
            rows = at(points, {"dataset": dataset, "role": role})
            draw.dose_panel(axes[i, j], rows, none, by="masking", looks=looks)
            axes[i, j].set_title(role if i == 0 else "")
        axes[i, 0].set_ylabel(dataset, fontweight="bold")
    figure.supylabel("loss (nats/token)")
    figure.supxlabel(draw.PLW)
    draw.plw_axis(axes[-1], points["plw"].unique(), least=0.16 if len(roles) > 3 else 0.085)
    draw.legend(figure, looks)
    return figure

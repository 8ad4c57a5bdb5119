"""The figures of the paper, measured here, beside what was published.

Biderman et al., arXiv 2405.09673. What is published is grey and says so; models, data and
benchmarks differ: orders and directions can be compared, levels cannot. Arms have their marker and
line beside their colour, ranks in rising order, so that they are apart in black and white.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from analysis.papers.lora_tradeoffs import published
from analysis.papers.lora_tradeoffs.contrasts import KEPT, LEARNT
from analysis.papers.lora_tradeoffs.runs import SETTINGS, TEXT
from analysis.papers.lora_tradeoffs.spectrum import LAYER, MATRIX, NOISE
from analysis.questions.tradeoff.estimate import on_front
from analysis.report import draw, style
from analysis.report.style import (
    BLUE,
    GOLD,
    GREEN,
    INK,
    MUTED,
    PAPER,
    PLUM,
    RULE,
    SKY,
    VERMILION,
    styled,
)  # fmt: skip
from analysis.table.factors import FULL

Line = tuple[str, str, Any]  # colour, marker, line
WHOLE: Line = (INK, "X", "-")
RANKS: tuple[Line, ...] = (
    (SKY, "o", (0, (1.2, 1.2))), (BLUE, "s", (0, (4, 1.5))), (PLUM, "^", (0, (5, 1, 1, 1))),
    (GOLD, "D", (0, (2, 1))),
)  # fmt: skip
OTHERS = (*RANKS, (GREEN, "v", (0, (3, 1))), (VERMILION, "P", (0, (1, 2))))
UNITS = {LEARNT: "learnt ({unit})", KEPT: "source tasks (points)"}
SMALLEST, LARGEST = 2.5, 6.5  # markers, by budget


def looks(arms: Sequence[str]) -> dict[str, Line]:
    """Return colour, marker and line of the plain arms, LoRA's in the order of the ranks."""
    low = [a for a in arms if a != FULL]
    ranked = sorted(low, key=lambda a: float(a.rpartition("r")[2]))
    found = {a: RANKS[i % len(RANKS)] for i, a in enumerate(ranked)}
    return ({FULL: WHOLE} if FULL in arms else {}) | found


@styled
def over_budgets(here: pd.DataFrame, outcome: str, unit: str, base: float | None = None) -> Figure:
    """Return figure 1 (learning) or 2 (forgetting): over the budget, published ones below.

    Args:
        here: setting, arm, budget, estimate, low, high.
        outcome: LEARNT or KEPT.
        unit: of what was learnt.
        base: the untouched base's score on the source tasks, drawn where these are.
    """
    figure, axes = style.grid(2 * len(SETTINGS), columns=len(SETTINGS), height=1.9)
    theirs = published.points()
    for i, setting in enumerate(SETTINGS):
        top, bottom = axes[i], axes[i + len(SETTINGS)]
        _over(top, here[here["setting"] == setting], None)
        if outcome == KEPT and base is not None:
            _base(top, base)
        top.set_title(f"here: {setting}")
        own = theirs[theirs["setting"] == setting].rename(columns={outcome: "estimate"})
        _over(bottom, own.assign(low=np.nan, high=np.nan), MUTED)
        _base(bottom, published.base(setting, outcome))
        bottom.set_title(f"published: {setting}", color=MUTED)
        text = setting.endswith(TEXT)
        top.set_xlabel("steps" if text else "epochs")
        bottom.set_xlabel("billions of tokens" if text else "epochs")
    axes[0].set_ylabel(UNITS[outcome].format(unit=unit))
    axes[4].set_ylabel("HumanEval, GSM8K (points)" if outcome == LEARNT else UNITS[KEPT])
    dashed = [Line2D([], [], color=MUTED, linestyle=draw.DASHED, linewidth=0.8,
                     label="untouched base")]  # fmt: skip
    _legend(figure, here, theirs, dashed)
    return figure


def _base(axis: Axes, value: float) -> None:
    """Draw the untouched base's level, with room around it."""
    draw.reference(axis, [value])
    low, high = axis.get_ylim()
    room = 0.03 * (high - low)
    axis.set_ylim(min(low, value - room), max(high, value + room))


def _over(axis: Axes, rows: pd.DataFrame, color: str | None) -> None:
    """Draw the arms over their budgets; a note where there are none."""
    if not len(rows):
        style.note(axis, "not run")
        axis.set_xticks([])
        axis.set_yticks([])
        return
    axis.set_xscale("log", base=2)
    for arm, look in looks(draw.levels(rows, "arm")).items():
        own = rows[rows["arm"] == arm].sort_values("budget", kind="stable")
        axis.errorbar(
            own["budget"], own["estimate"], yerr=draw.arms(own["estimate"], own["low"],
            own["high"]), color=color or look[0], linestyle=look[2], marker=look[1],
            markersize=3.4, linewidth=1.0, elinewidth=0.7, markeredgecolor=PAPER,
            markeredgewidth=0.3,
        )  # fmt: skip
    _budgets(axis, sorted(rows["budget"].unique()))


def _budgets(axis: Axes, budgets: Sequence[float]) -> None:
    """Mark the budgets, at most four of them."""
    some = budgets if len(budgets) <= 5 else budgets[::2]
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(list(some), [f"{b:g}".removeprefix("0") for b in some])


def _legend(
    figure: Figure, here: pd.DataFrame, theirs: pd.DataFrame | None, more: Sequence[Line2D] = ()
) -> None:
    """Name the arms here, and below them the published ones."""
    handles = [
        Line2D([], [], color=look[0], linestyle=look[2], marker=look[1], markersize=4, label=arm)
        for arm, look in looks(draw.levels(here, "arm")).items()
    ]
    if theirs is not None:
        handles += [
            Line2D([], [], color=MUTED, linestyle=look[2], marker=look[1], markersize=4,
                   label=f"published {arm.removeprefix('LoRA ')}")
            for arm, look in looks(draw.levels(theirs, "arm")).items()
        ]  # fmt: skip
    handles += more
    figure.legend(handles=handles, loc="outside upper left", ncols=5, handlelength=2.4)


@styled
def traded(here: pd.DataFrame, unit: str) -> Figure:
    """Return figure 3: what was learnt over what was kept, the Pareto front of the means in grey.

    Args:
        here: setting, arm, budget, learnt and kept with _low and _high.
        unit: of what was learnt.
    """
    figure, axes = style.grid(2 * len(SETTINGS), columns=len(SETTINGS), height=2.0)
    theirs = published.points()
    for i, setting in enumerate(SETTINGS):
        for axis, table, color in (
            (axes[i], here, None), (axes[i + len(SETTINGS)], theirs, MUTED),
        ):  # fmt: skip
            _trade(axis, table[table["setting"] == setting], color)
        axes[i].set_title(f"here: {setting}")
        axes[i + len(SETTINGS)].set_title(f"published: {setting}", color=MUTED)
        axes[i + len(SETTINGS)].set_xlabel("source tasks (points)")
    axes[0].set_ylabel(UNITS[LEARNT].format(unit=unit))
    axes[4].set_ylabel("HumanEval, GSM8K (points)")
    front = [Line2D([], [], color=RULE, linewidth=3, label="Pareto front")]
    _legend(figure, here, theirs, front)
    return figure


def _trade(axis: Axes, rows: pd.DataFrame, color: str | None) -> None:
    if not len(rows):
        style.note(axis, "not run")
        axis.set_xticks([])
        axis.set_yticks([])
        return
    pair = rows[[LEARNT, KEPT]].to_numpy(float)
    edge = rows[on_front(np.column_stack([pair[:, 0], -pair[:, 1]])[None])[0]]
    edge = edge.sort_values(KEPT, kind="stable")
    axis.step(edge[KEPT], edge[LEARNT], where="pre", color=RULE, linewidth=3, zorder=0)
    order = {b: k for k, b in enumerate(sorted(rows["budget"].unique()))}
    for arm, look in looks(draw.levels(rows, "arm")).items():
        own = rows[rows["arm"] == arm].sort_values("budget", kind="stable")
        axis.plot(own[KEPT], own[LEARNT], color=color or look[0], linestyle=look[2], linewidth=0.8)
        for row in own.to_dict("records"):
            _mark(axis, row, look, color or look[0], order[row["budget"]] / max(len(order) - 1, 1))


def _mark(axis: Axes, row: Mapping[Any, Any], look: Line, color: str, share: float) -> None:
    """Draw one budget of an arm, larger where the budget is, with its intervals if it has some."""
    size = SMALLEST + share * (LARGEST - SMALLEST)
    if f"{KEPT}_low" in row:
        axis.errorbar(
            row[KEPT], row[LEARNT],
            xerr=draw.arms(row[KEPT], row[f"{KEPT}_low"], row[f"{KEPT}_high"]),
            yerr=draw.arms(row[LEARNT], row[f"{LEARNT}_low"], row[f"{LEARNT}_high"]),
            color=color, elinewidth=0.5, alpha=0.6, marker="none",
        )  # fmt: skip
    axis.plot(row[KEPT], row[LEARNT], look[1], color=color, markersize=size,
              markeredgecolor=PAPER, markeredgewidth=0.3)  # fmt: skip


@styled
def beside(table: pd.DataFrame, unit: str) -> Figure:
    """Return figure 4 or 7: arms with something changed beside the plain ones, learning left.

    Args:
        table: arm, outcome, estimate, low, high, in the order in which they are to stand.
        unit: of what was learnt.
    """
    arms = draw.levels(table, "arm")
    figure = Figure(figsize=(style.PAGE, 0.7 + 0.2 * len(arms)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, outcome in zip(axes, (LEARNT, KEPT), strict=True):
        own = table[table["outcome"] == outcome].set_index("arm")
        for place, arm in enumerate(arms):
            if arm in own.index:
                row = own.loc[arm]
                plain = "," not in arm
                axis.errorbar(
                    row["estimate"], -place, xerr=draw.arms(*row[["estimate", "low", "high"]]),
                    fmt="o" if plain else "s", color=INK if plain else BLUE, markersize=4,
                    markerfacecolor=INK if plain else PAPER, elinewidth=0.9,
                )  # fmt: skip
        draw.forest_axis(axis, {-float(i): a for i, a in enumerate(arms)}, [])
        axis.set_xlabel(UNITS[outcome].format(unit=unit))
    return figure


@styled
def spectra(table: pd.DataFrame) -> Figure:
    """Return figure 6: the rank of full tuning's change by kind of matrix and by layer.

    Args:
        table: setting, budget, kind, share: means over seeds.
    """
    settings = draw.levels(table, "setting")
    figure, axes = style.grid(2 * len(settings), columns=len(settings), height=1.9, sharey=True)
    shades = (SKY, BLUE, PLUM, INK, GOLD)
    budgets = sorted(table["budget"].unique())
    for i, setting in enumerate(settings):
        own = table[table["setting"] == setting]
        for axis, matrices in ((axes[i], True), (axes[i + len(settings)], False)):
            kind = own["kind"].str
            rows = own[kind.endswith(MATRIX) if matrices else kind.startswith(LAYER)]
            kinds = draw.levels(rows, "kind")
            axis.axhspan(*NOISE, color=RULE, alpha=0.6, linewidth=0)
            for k, budget in enumerate(budgets):
                mean = rows[rows["budget"] == budget].set_index("kind")["share"]
                mean = mean.reindex(kinds)
                axis.plot(range(len(kinds)), mean, color=shades[k % 5], linewidth=0.8,
                          marker=style.MARKERS[k % 6], markersize=3.5)  # fmt: skip
            short = [n.removesuffix(MATRIX).removeprefix(LAYER) for n in kinds]
            axis.set_xticks(range(len(kinds)), short)
            axis.set_xlabel("matrix" if matrices else "layer")
        axes[i].set_title(setting)
    figure.supylabel("share of components with 90 % of the energy")
    handles = [
        Line2D([], [], color=shades[k % 5], marker=style.MARKERS[k % 6], markersize=4,
               label=f"{b:g} steps")
        for k, b in enumerate(budgets)
    ]  # fmt: skip
    handles.append(Line2D([], [], color=RULE, linewidth=5, label="Gaussian noise"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6)
    return figure


@styled
def over_rates(table: pd.DataFrame, unit: str) -> Figure:
    """Return figures S1, S2 or S3: what was learnt over the learning rate, the chosen one filled.

    Args:
        table: panel, arm, rate, estimate, low, high, chosen.
        unit: of what was learnt.
    """
    panels, named = draw.levels(table, "panel"), _named(draw.levels(table, "arm"))
    figure, axes = style.grid(len(panels), columns=4, height=2.0)
    for axis, panel in zip(axes, panels, strict=True):
        own = table[table["panel"] == panel]
        for arm in draw.levels(own, "arm"):
            color, marker, line = named[arm]
            rows = own[own["arm"] == arm].sort_values("rate", kind="stable")
            axis.errorbar(
                rows["rate"], rows["estimate"],
                yerr=draw.arms(rows["estimate"], rows["low"], rows["high"]), color=color,
                linestyle=line, marker=marker, markersize=3.4, markerfacecolor=PAPER,
                linewidth=0.9, elinewidth=0.7,
            )  # fmt: skip
            best = rows[rows["chosen"]]
            axis.plot(best["rate"], best["estimate"], marker, color=color, markersize=5, zorder=4)
        draw.log_axis(axis)
        axis.set_title(panel)
        axis.set_xlabel("learning rate")
    axes[0].set_ylabel(UNITS[LEARNT].format(unit=unit))
    handles = [
        Line2D([], [], color=look[0], marker=look[1], linestyle=look[2], markersize=4,
               markerfacecolor=PAPER, label=arm)
        for arm, look in named.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=2.4)
    return figure


def _named(arms: Sequence[str]) -> dict[str, Line]:
    """Return the looks of arms, those with something changed among them."""
    others = [a for a in arms if a != FULL]
    found = {a: OTHERS[i % len(OTHERS)] for i, a in enumerate(others)}
    return ({FULL: WHOLE} if FULL in arms else {}) | found

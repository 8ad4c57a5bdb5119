"""The tests of the curve's shape, and the best weight against Rg: section of the report."""

import numpy as np
import pandas as pd

from analysis.curve.best import BEST_FORMATS, BEST_HEADS
from analysis.curve.shape import Shape, shape_table
from analysis.questions.plw import figure as figures
from analysis.questions.plw.estimate import dose, study_shapes
from analysis.questions.plw.rg import FEWEST, THESE, RgCurve, prediction_table, rg_curves
from analysis.questions.plw.shape_lines import fitted_lines, level_points
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Head, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.frame import WP_EXPONENT, plw_of
from analysis.table.run_panels import CURVE

KEY = "shape"
SHAPE_COLUMNS = (
    *CURVE, "levels", "any_curve_p", "spline_p", "monotone_p", "quadratic_p", "b2_p",
    "b2_above_zero_p", "optimum", "verdict", "monotone", "without_zero",
)  # fmt: skip
SHAPE_HEADS = {
    "any_curve_p": "any curve, p", "spline_p": "spline, p", "monotone_p": "monotone, p",
    "quadratic_p": "quadratic against monotone, p", "b2_p": "curvature, p",
    "b2_above_zero_p": "curvature above PLW 0, p", "without_zero": "without PLW 0",
    "monotone": "monotone alternative", "optimum": "optimum", "mode": "masking",
}  # fmt: skip
RG_POINTS = 41


def section(study: Study) -> Section | None:
    """Return the section, or None where no mode has the weights for a curve."""
    found = [] if study.many else study_shapes(study)
    if not found:
        return None
    blocks: list[Block] = [
        Text(_lead(found)),
        _plate(study, found),
        Sheet(_shape_sheet(study, found, dose(study)), open=True),
        *_rg(study),
    ]
    return Section(KEY, "Is it a curve with an optimum?", tuple(blocks))


def _lead(found: list[Shape]) -> str:
    bad = sum(not one.fits for one in found)
    inside = sum(one.bears_maximum for one in found)
    return (
        f"A quadratic can have a maximum where the truth has none. Of "
        f"{words.count(len(found), 'curve')}, {bad} {'is' if bad == 1 else 'are'} not described by "
        "a quadratic (5 % level, not adjusted, as usual for tests of a model's assumptions), and "
        f"for {inside} a curve that only rises or only falls is rejected in favour of one with a "
        "maximum inside. An optimum is claimed only there."
    )


def _plate(study: Study, found: list[Shape]) -> Plate:
    points, lines = [], []
    several = len({one.labels["mode"] for one in found}) > 1
    for one in found:
        name = f"{words.group_text(one.labels['task_group'])},\n{study.stratum(one.labels)}"
        panel = f"{one.labels['mode']}: {name}" if several else name
        points.append(level_points(one.data).assign(panel=panel))
        lines.append(fitted_lines(one.data).assign(panel=panel))
    dots = pd.concat(points, ignore_index=True)
    dots["plw"] = [float(f"{plw_of(x):.4g}") for x in dots["wp"]]
    caption = (
        "Score above PLW 0 against effective prompt loss weight, spaced as w_p = PLW^0.30103. "
        "Markers: means of the levels, adjusted for arm and seed, with 95 % intervals. Lines: the "
        "quadratic, a natural cubic spline, and the best curve that only rises or only falls."
    )
    drawn = figures.shapes(dots, pd.concat(lines, ignore_index=True))
    return Plate("curve_shapes", drawn, caption)


def _shape_sheet(study: Study, found: list[Shape], panels: pd.DataFrame) -> Table:
    table = shape_table(found)
    if len(panels):
        table = table.merge(panels[[*CURVE, "optimum"]], on=list(CURVE), how="left")
    frame = study.shown(words.panel_words(table[[n for n in SHAPE_COLUMNS if n in table]]))
    note = (
        "The panel's model with the weight's levels as categories. Any curve, spline: F tests of "
        "the quadratic against the levels as a factor and against a spline added to it; a small p "
        "says that the quadratic does not fit. Monotone: a small p says that a curve which only "
        "rises or falls does not do (parametric bootstrap); quadratic against monotone: the "
        "reverse. Curvature above PLW 0: the quadratic refitted without the level 0, which lies "
        "far from the others."
    )
    formats = {name: P_VALUE for name in SHAPE_COLUMNS if name.endswith("_p")}
    return Table(
        "curve_shape", "Shape of the curve", frame, note, words.HEADS | SHAPE_HEADS, formats
    )


def _rg(study: Study) -> list[Block]:
    found = rg_curves(study.frame)
    if not found:
        return []
    head = Head("Best weight as a function of Rg")
    known = [one for one in found if one.lines]
    if not known:
        count = max(one.ratios for one in found)
        return [
            head,
            Text(f"A curve over Rg needs {FEWEST} distinct values of Rg; there are {count}."),
        ]
    caption = (
        "Best effective prompt loss weight against Rg, the ratio of completion to prompt length. "
        "Dots: each data set's own quadratic, filled with its 95 % Fieller interval where the "
        "maximum is inside, hollow where the curve rises or falls throughout. Line and band: the "
        "interaction model's prediction for these data sets, where it has a maximum inside."
    )
    plate = Plate("best_plw_by_rg", figures.rg(*_rg_rows(known)), caption)
    return [head, plate, Sheet(_rg_table(known))]


def _rg_rows(found: list[RgCurve]) -> tuple[pd.DataFrame, pd.DataFrame]:
    points, curves = [], []
    for one in found:
        panel = words.group_text(one.labels["task_group"])
        points.append(one.datasets.assign(panel=panel))
        low, high = one.datasets["rg"].min(), one.datasets["rg"].max()
        grid = [float(v) for v in np.logspace(np.log10(low), np.log10(high), RG_POINTS)]
        table = prediction_table(one, grid)
        curves.append(table[table["speaks_of"] == THESE].assign(panel=panel))
    both = (pd.concat(part, ignore_index=True) for part in (points, curves))
    dots, line = (
        t.assign(low_wp=t["plw_low"] ** WP_EXPONENT, high_wp=t["plw_high"] ** WP_EXPONENT)
        for t in both
    )
    return dots, line


def _rg_table(found: list[RgCurve]) -> Table:
    parts = [prediction_table(one).assign(p_changes=one.p_changes) for one in found]
    frame = words.panel_words(pd.concat(parts, ignore_index=True))
    note = (
        "The best weight at the Rg of the data sets, from coefficients that are lines in log Rg. "
        "These data sets: the noise of runs alone. Data sets like these: one observation per data "
        "set, so that what they differ in beside Rg is in the interval. The last column tests "
        "whether the curve changes with Rg at all, for these data sets."
    )
    heads = words.HEADS | BEST_HEADS | {
        "rg": "Rg", "speaks_of": "population", "p_changes": "curve changes with Rg, p",
    }  # fmt: skip
    formats = BEST_FORMATS | {"p_changes": P_VALUE}
    frame = frame.drop(columns=["best_wp", "outside"])
    return Table("best_plw_by_rg", "Best weight by Rg", frame, note, heads, formats)

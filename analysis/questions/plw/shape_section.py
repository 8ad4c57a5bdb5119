"""Is the curve over the weight what the model says? Lack of fit, intervals of the optimum, Rg."""

import numpy as np
import pandas as pd

from analysis.questions.plw import figure as figures
from analysis.questions.plw.optimum_intervals import interval_table
from analysis.questions.plw.rg import NOT_ESTIMABLE, THESE, RgCurve, prediction_table, rg_curves
from analysis.questions.plw.shape import Shape, shape_table
from analysis.questions.plw.shape_lines import fitted_lines, level_points
from analysis.regression.study import GIVEN, Study
from analysis.report import words
from analysis.report.page import Block, Head, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.frame import WP_EXPONENT, plw_of

PANEL = ("mode", "task_group", "dataset_type")
SHAPE_COLUMNS = (
    *PANEL, "levels", "any_curve_p", "spline_p", "monotone_p", "quadratic_p", "b2_p",
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
    found = study.shapes
    if not found:
        return None
    blocks: list[Block] = [Text(_lead(found)), _plate(found), Sheet(_shape_sheet(found), open=True)]
    blocks += [*_intervals(study), *_rg(study)]
    return Section("shape", "Is it a curve with an optimum?", tuple(blocks))


def _lead(found: list[Shape]) -> str:
    count = len(found)
    bad = sum("does not fit" in one.verdict for one in found)
    inside = sum("its optimum is inside" in one.verdict for one in found)
    return (
        f"A quadratic can put an optimum where there is none. Of {words.count(count, 'curve')}, "
        f"{bad} {'is' if bad == 1 else 'are'} not described by a quadratic (5 % level, not "
        f"adjusted: a test of a model's fault should not be made harder to fail), and for {inside} "
        "is an optimum inside shown against a curve that only rises or only falls."
    )


def _panel_name(labels: dict[str, str]) -> str:
    return f"{words.group_text(labels['task_group'])},\n{words.data_text(labels['dataset_type'])}"


def _plate(found: list[Shape]) -> Plate:
    points, lines = [], []
    several = len({one.labels["mode"] for one in found}) > 1
    for one in found:
        name = _panel_name(one.labels)
        panel = f"{one.labels['mode']}: {name}" if several else name
        points.append(level_points(one.data).assign(panel=panel))
        lines.append(fitted_lines(one.data).assign(panel=panel))
    dots = pd.concat(points, ignore_index=True)
    dots["plw"] = [float(f"{plw_of(x):.4g}") for x in dots["wp"]]
    caption = (
        "Score above PLW 0, spaced as w_p = PLW^0.30103. Markers: means of the levels, arm and "
        "seed adjusted for, with 95 % intervals of pure error. Lines: the quadratic, a natural "
        "cubic spline, and the best curve that only rises or only falls."
    )
    drawn = figures.shapes(dots, pd.concat(lines, ignore_index=True))
    return Plate("curve_shapes", drawn, caption)


def _shape_sheet(found: list[Shape]) -> Table:
    frame = told(shape_table(found)[list(SHAPE_COLUMNS)])
    note = (
        "Runs as units, arm and seed adjusted for. Any curve, spline: F tests of the quadratic "
        "against the levels as a factor and against a spline added to it; a small p says that the "
        "quadratic does not fit. Monotone: a small p says that a curve which only rises or falls "
        "does not do (parametric bootstrap); quadratic against monotone: the reverse. Curvature "
        "above PLW 0: the quadratic refitted without the level 0, which lies far from the others."
    )
    formats = {name: P_VALUE for name in SHAPE_COLUMNS if name.endswith("_p")}
    return Table(
        "curve_shape", "Shape of the curve", frame, note, words.HEADS | SHAPE_HEADS, formats
    )


def told(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with task groups and data-set types in words."""
    maps = {"task_group": words.group_text, "dataset_type": words.data_text}
    texts = {name: frame[name].map(text) for name, text in maps.items() if name in frame}
    return frame.assign(**texts)


def _intervals(study: Study) -> list[Block]:
    """Return the three intervals of every optimum inside; of the default model alone."""
    if study.reasons == (GIVEN,) or study.fit.family != "gaussian" or study.variable != "wp":
        return []
    table = interval_table(study.fit, study.frame)
    if not len(table):
        return []
    names = [*PANEL, "optimum", "best_plw", "method", "low_plw", "high_plw"]
    note = (
        "95 % intervals of the weight at which the fitted curve is highest, where that is inside. "
        "Fieller's is exact for normal coefficients; the delta method pretends that the ratio is "
        "normal; the bootstrap refits the model to scores drawn from it. 0 and 1 are where an "
        "interval was cut, or is open."
    )
    heads = words.HEADS | {"best_plw": "best PLW", "low_plw": "95 % low", "high_plw": "95 % high"}
    formats = dict.fromkeys(("best_plw", "low_plw", "high_plw"), ".2g")
    title = "Three intervals of the optimum"
    return [Sheet(Table("optimum_intervals", title, told(table[names]), note, heads, formats))]


def _rg(study: Study) -> list[Block]:
    found = rg_curves(study.frame)
    if not found:
        return []
    head: list[Block] = [Head("Best weight as a function of Rg")]
    known = [one for one in found if one.verdict != NOT_ESTIMABLE]
    if not known:
        return [*head, Text(f"Not estimable: {found[0].warning}.")]
    warnings = [Text(known[0].warning)] if known[0].warning else []
    caption = (
        "Best prompt loss weight against Rg, the ratio of completion to prompt length. Dots: each "
        "data set's own quadratic, with the 95 % Fieller interval where its maximum is inside; "
        "filled where that is beyond doubt. Line and band: the interaction model's prediction for "
        "these data sets, where the predicted curve has a maximum inside."
    )
    plate = Plate("best_plw_by_rg", figures.rg(*_rg_rows(known)), caption)
    return [*head, *warnings, plate, Sheet(_rg_table(known))]


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
    frame = pd.concat([prediction_table(one) for one in found], ignore_index=True)
    moves = {(o.labels["mode"], o.labels["task_group"]): o.p_moves for o in found}
    p = [moves[m, g] for m, g in zip(frame["mode"], frame["task_group"], strict=True)]
    frame = told(frame.assign(p_moves=p).drop(columns=["best_wp", "beyond"]))
    note = (
        "The best weight at the Rg of the data sets, from coefficients that are lines in log Rg. "
        "These data sets: the noise of runs alone. Data sets like these: one observation per data "
        "set, so that what they differ in beside Rg is in the interval. The last column tests "
        "whether the curve changes with Rg at all, for these data sets."
    )
    heads = words.HEADS | {
        "rg": "Rg", "best_plw": "best PLW", "plw_low": "95 % low", "plw_high": "95 % high",
        "speaks_of": "speaks of", "p_moves": "curve changes with Rg, p",
    }  # fmt: skip
    formats = dict.fromkeys(("best_plw", "plw_low", "plw_high"), ".2g") | {"p_moves": P_VALUE}
    return Table("best_plw_by_rg", "Best weight by Rg", frame, note, heads, formats)

"""Score against PLW: means of the runs, fitted curves, the optimum, what could be seen."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.curve.best import BEST_FORMATS, BEST_HEADS
from analysis.questions.plw.across import across
from analysis.questions.plw.estimate import dose
from analysis.regression.study import MANY, Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.frame import SCORED, plw_of
from analysis.table.level_means import level_means
from analysis.table.run_panels import task_panels

KEY = "plw"
CURVE_POINTS = 41
EFFECT_COLUMNS = (
    "mode", "dataset", "model", "task_group", "effect", "low", "high", "verdict", "mde", "p_holm",
    "p_any_holm", "fit_status",
)  # fmt: skip
OPTIMUM_COLUMNS = (
    "mode", "dataset", "model", "task_group", "optimum", "best_plw", "plw_low", "plw_high", "gain",
    "gain_se", "b1", "b1_se", "b2", "b2_se", "because",
)  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the section, or None where the prompt loss weight does not vary."""
    if not len(dose(study)):
        return None
    title = "Score against prompt loss weight"
    if study.many:
        told = (
            f"{len(study.panels)} panels are too many to look at one by one: their curves, optima "
            f"and common model are left out. Above {MANY} panels this is so."
        )
        alone: list[Block] = [Text(_lead(study)), Text(told), Sheet(effect_table(study))]
        return Section(KEY, title, tuple(alone))
    points, curves = dose_points(study), dose_curves(study)
    arms = {"adapter": "adapter", "rank": "rank"}
    adjusted = words.varying(study.main, arms | {"seed": "seed"})
    averaged = words.varying(study.main, {n: f"{word}s" for n, word in arms.items()})
    caption = (
        "Score against prompt loss weight, spaced as w_p = PLW^0.30103, by data set and group of "
        f"tasks. Markers: means of the runs{adjusted and f' adjusted for {adjusted}'}, with 95 % "
        "intervals. Lines and bands: the panel's model and its 95 % band"
        f"{averaged and f', averaged over {averaged}'}; modes share the start, for at PLW 0 they "
        f"are one run. Dashed: the untouched base model."
    )
    blocks: list[Block] = [
        Plate("score_against_plw", plots.score_curves(points, curves, base=base(study)), caption),
        Text(_lead(study)),
        Sheet(effect_table(study), open=True),
        Sheet(_points_table(points)),
        *_optima(study),
        *_across(study),
    ]
    return Section(KEY, title, tuple(blocks))


def dose_points(study: Study) -> pd.DataFrame:
    """Return the adjusted mean of every masking and PLW: stratum, task_group, masking, plw, wp, n,
    estimate, low, high.
    """
    parts = []
    for panel in task_panels(study.main):
        found = level_means(panel.runs, ["masking", "plw", "wp"], df=study.df).table
        parts.append(found.assign(**_labels(study, panel.labels)))
    return pd.concat(parts, ignore_index=True)


def _labels(study: Study, labels: dict[str, str]) -> dict[str, str]:
    return {"stratum": study.stratum(labels), "task_group": labels["task_group"]}


def dose_curves(study: Study) -> pd.DataFrame:
    """Return the fitted curve with its band of every mode with two weights above 0: stratum,
    task_group, masking, wp, estimate, low, high.
    """
    found = []
    for one in study.curves:
        if one.levels < 2:
            continue
        curve = one.response(variable=study.variable)
        for wp in np.linspace(0, 1, CURVE_POINTS):
            level = curve.at(float(wp if study.variable == "wp" else plw_of(float(wp))))
            band = {"estimate": level.estimate, "low": level.low, "high": level.high}
            head = {"masking": one.labels["mode"], "wp": float(wp)}
            found.append(_labels(study, one.labels) | head | band)
    columns = ["stratum", "task_group", "masking", "wp", "estimate", "low", "high"]
    return pd.DataFrame(found, columns=columns)


def base(study: Study) -> pd.DataFrame:
    """Return the untouched base models' mean score: stratum, task_group, estimate."""
    rows = study.frame[study.frame["is_base"] & study.frame["task_type"].isin(SCORED)]
    known = rows.groupby(["model", "task_group"], observed=True)["score"].mean()
    found = [
        _labels(study, one.labels) | {"estimate": known[key]}
        for one in task_panels(study.main)
        if (key := (one.labels["model"], one.labels["task_group"])) in known.index
    ]
    return pd.DataFrame(found, columns=["stratum", "task_group", "estimate"])


def effect_table(study: Study) -> Table:
    """Return PLW 1 against PLW 0 in every panel, with its minimum detectable effect."""
    frame = panel_columns(study, EFFECT_COLUMNS)
    margin = float(dose(study)["margin"].iloc[0])
    note = (
        "Points at PLW 1 less points at PLW 0. MDE: minimum detectable effect, the true effect "
        "that this design finds with 80 % power at the 5 % level, so a null says no more than "
        "that. Verdict: of the test against zero together "
        f"with the equivalence test at ±{margin:g} points. Whole curve: "
        f"the test of the curve against a flat one. p is adjusted {study.adjusted}."
    )
    heads = words.HEADS | {
        "effect": "PLW 1 − PLW 0", "p_any_holm": "whole curve, p (Holm)",
    }  # fmt: skip
    formats = dict.fromkeys(("effect", "low", "high", "mde"), ".2f")
    formats |= {"p_holm": P_VALUE, "p_any_holm": P_VALUE}
    return Table(
        "plw_effect",
        "Effect of PLW 1 against PLW 0",
        words.panel_words(frame),
        note,
        heads,
        formats,
    )


def panel_columns(study: Study, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of `dose`, the base model only where there are several."""
    return study.shown(dose(study)[[c for c in columns if c in dose(study)]])


def _points_table(points: pd.DataFrame) -> Table:
    formats = {"estimate": ".2f", "low": ".2f", "high": ".2f", "wp": ".4f", "plw": ".4g"}
    note = "Adjusted means of the runs, in points, with 95 % intervals: the markers of the figure."
    heads = words.HEADS | {"n": "runs"}
    return Table("plw_means", "Score by masking and PLW", points, note, heads, formats)


def _lead(study: Study) -> str:
    seen = dose(study)[dose(study)["p_any_holm"] < 0.05]
    return (
        f"Of {len(dose(study))} curves (masking mode, data set, group of tasks), "
        f"{len(seen)} show a score that changes with the weight at all (5 % level, adjusted "
        f"{study.adjusted}). {_smallest(study)}"
    )


def _smallest(study: Study) -> str:
    low, high = dose(study)["mde"].min(), dose(study)["mde"].max()
    if dose(study)["mde"].isna().all():
        return "None of them can be estimated from these runs."
    return (
        f"The smallest difference between PLW 1 and 0 that this design would have shown with 80 % "
        f"power is {words.span(low, high)} points, depending on the curve."
    )


def optimum_rows(study: Study) -> pd.DataFrame:
    """Return the figure's rows: group, label, estimate, low, high in PLW, verdict.

    Optima are missing where none may be printed.
    """
    curved = dose(study)[dose(study)["curved"]]
    label = curved["task_group"].map(words.group_text)
    several = curved["mode"].nunique() > 1
    rows = {
        "group": curved.apply(study.stratum, axis=1),
        "label": curved["mode"] + ", " + label if several else label,
        "estimate": curved["best_plw"], "low": curved["plw_low"], "high": curved["plw_high"],
        "verdict": curved["optimum"],
    }  # fmt: skip
    return pd.DataFrame(rows).sort_values("group", kind="stable")


def _optima(study: Study) -> list[Block]:
    table = dose(study)
    curved = table[table["curved"]]
    if not len(curved):
        return []
    rows = optimum_rows(study)
    caption = (
        "The effective prompt loss weight at which the fitted score is highest. A dot with a line: "
        "the curve rises at PLW 0 and falls at PLW 1, each at the 5 % level, and the tests of its "
        "shape bear it; the line is the 95 % Fieller interval. A dot alone: the curve rises or "
        "falls throughout. No dot: the best weight is not determined."
    )
    frame = words.panel_words(panel_columns(study, OPTIMUM_COLUMNS).loc[curved.index])
    note = "best PLW: of the fitted curve on [0, 1]; gain: its score above PLW 0, in points."
    heads = words.HEADS | BEST_HEADS | {
        "b1": "w_p", "b1_se": "s.e.", "b2": "w_p²", "b2_se": "s.e.",
    }  # fmt: skip
    formats = BEST_FORMATS | dict.fromkeys(("b1", "b1_se", "b2", "b2_se"), ".2f")
    sheet = Table("optimum", "Optimum prompt loss weight", frame, note, heads, formats)
    if rows["estimate"].isna().all():
        drawn: Block = Text("On no curve is the weight with the highest score determined.")
    else:
        drawn = Plate("optimum", plots.optimum(rows), caption)
    return [drawn, Sheet(sheet)]


def _across(study: Study) -> list[Block]:
    """Say whether the weight acts at all, whether a line is enough, and whether panels agree."""
    table = across(study)
    if not len(table):
        return []
    note = (
        "F tests in one model of all panels, every term by panel, with a residual variance of its "
        "own for every panel, in units of which scores are counted."
    )
    formats = {"f": ".2f", "df_residual": ".0f", "p": P_VALUE}
    heads = {"f": "F", "df_residual": "residual df"}
    return [Sheet(Table("across_panels", "All panels at once", table, note, heads, formats))]

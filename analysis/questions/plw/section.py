"""Score against PLW: means of the runs, fitted curves, the optimum, what could be seen."""

import numpy as np
import pandas as pd

from analysis.curve.best import BEST_FORMATS, BEST_HEADS
from analysis.inference.estimates import DF_RULES, LikelihoodRatio
from analysis.inference.mean_response import response
from analysis.questions.plw.estimate import dose, linear_against_quadratic
from analysis.regression.study import GIVEN, Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.frame import SCORED, plw_of
from analysis.table.level_means import by_panel, level_means

CURVE_POINTS = 41
EFFECT_COLUMNS = (
    "mode", "task_group", "dataset_type", "effect", "low", "high", "verdict", "mde", "p_holm",
    "p_any_holm",
)  # fmt: skip
OPTIMUM_COLUMNS = (
    "mode", "task_group", "dataset_type", "optimum", "best_plw", "plw_low", "plw_high", "gain",
    "gain_se", "b1", "b1_se", "b2", "b2_se", "because",
)  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the section, or None where the prompt loss weight does not vary."""
    if not len(dose(study)):
        return None
    points, curves = dose_points(study.main, df=study.df), dose_curves(study)
    caption = (
        "Score against prompt loss weight, spaced as w_p = PLW^0.30103. Markers: means of the runs "
        "adjusted for adapter, rank, base model and seed, with 95 % intervals. Lines and bands: "
        "the fitted model and its 95 % band, averaged over adapters and ranks; modes share the "
        "start, for at PLW 0 they are one run. Dashed: the untouched base model."
    )
    blocks: list[Block] = [
        Plate("score_against_plw", plots.score_curves(points, curves, base=base(study)), caption),
        Text(_lead(study)),
        Sheet(effect_table(study), open=True),
        Sheet(_points_table(points)),
        *_optima(study),
    ]
    return Section("plw", "Score against prompt loss weight", tuple(blocks))


def dose_points(
    rows: pd.DataFrame,
    *,
    panel: tuple[str, ...] = ("dataset", "task"),
    df: str = DF_RULES[0],
) -> pd.DataFrame:
    """Return the adjusted mean of every masking and PLW: a panel's rows are one score per run."""
    by = ["masking", "plw", "wp"]
    panel_rows = rows
    if "task" not in panel:  # one score per run: the mean over the panel's tasks
        factors = [n for n in (*panel, *by, "adapter", "rank", "model", "seed", "run") if n in rows]
        panel_rows = (
            rows.groupby(factors, observed=True, dropna=False)["score"].mean().reset_index()
        )
    return by_panel(panel_rows, panel, lambda own: level_means(own, by, df=df))


def dose_curves(study: Study, *, panel: tuple[str, ...] = ("dataset", "task")) -> pd.DataFrame:
    """Return the fitted curve with its band for every panel and mode with two weights above 0."""
    found = []
    for key, own in study.main.groupby(list(panel), observed=True, sort=False):
        labels = dict(zip(panel, map(str, key), strict=True))
        for mode in sorted(own.loc[(own["curved"] > 0) & (own["wp"] > 0), "mode"].unique()):
            rows = own.assign(mode=mode, curved=1.0)
            curve = response(study.fit, rows, study.variable, df=study.df)
            for wp in np.linspace(0, 1, CURVE_POINTS):
                x = wp if study.variable == "wp" else plw_of(float(wp))
                level = curve.at(float(x))
                band = {"estimate": level.estimate, "low": level.low, "high": level.high}
                found.append(labels | {"masking": str(mode), "wp": float(wp)} | band)
    columns = [*panel, "masking", "wp", "estimate", "low", "high"]
    return pd.DataFrame(found, columns=columns)


def base(study: Study) -> pd.DataFrame:
    """Return the untouched base models' score per task: task, estimate.

    A base counts as often as the runs on it do in the adjusted means, so that the two compare.
    """
    rows = study.frame[study.frame["is_base"] & study.frame["task_type"].isin(SCORED)]
    if "model" not in study.rows:
        means = rows.groupby("task", observed=True)["score"].mean()
        return means.rename("estimate").reset_index()
    over = study.factors.columns("arm", "setting", "replicate")  # what the means are means over
    blocks = study.main[list(dict.fromkeys(["model", *over]))].drop_duplicates()
    share = blocks["model"].astype(str).value_counts(normalize=True)
    weight = rows["model"].astype(str).map(share).astype(float)
    rows = rows[weight.notna()].assign(weight=weight)
    rows = rows.assign(part=rows["score"] * rows["weight"])
    sums = rows.groupby("task", observed=True)[["part", "weight"]].sum()
    return (sums["part"] / sums["weight"]).rename("estimate").reset_index()


def effect_table(study: Study) -> Table:
    """Return PLW 1 against PLW 0 in every panel, with its minimum detectable effect."""
    frame = dose(study)[[c for c in EFFECT_COLUMNS if c in dose(study)]]
    margin = float(dose(study)["margin"].iloc[0])
    note = (
        "Points at PLW 1 less points at PLW 0. MDE: minimum detectable effect, the true effect "
        "that this design finds with 80 % power at the 5 % level, so a null says no more than "
        "that. Verdict: of the test against zero together "
        f"with the equivalence test at ±{margin:g} points. Whole curve: "
        "the test of the curve against a flat one, adjusted by Holm like the other."
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


def _points_table(points: pd.DataFrame) -> Table:
    formats = {"estimate": ".2f", "low": ".2f", "high": ".2f", "wp": ".4f", "plw": ".4g"}
    note = "Adjusted means of the runs, in points, with 95 % intervals: the markers of the figure."
    heads = words.HEADS | {"n": "runs"}
    return Table("plw_means", "Score by masking and PLW", points, note, heads, formats)


def _lead(study: Study) -> str:
    seen = dose(study)[dose(study)["p_any_holm"] < 0.05]
    return (
        f"Of {len(dose(study))} combinations of masking mode, task group and kind of data, "
        f"{len(seen)} show a score that changes with the weight at all (5 % level, adjusted by "
        f"Holm). {_smallest(study)}"
    )


def _smallest(study: Study) -> str:
    low, high = dose(study)["mde"].min(), dose(study)["mde"].max()
    return (
        f"The smallest difference between PLW 1 and 0 that this design would have shown with 80 % "
        f"power is {words.span(low, high)} points, depending on the combination."
    )


def optimum_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the figure's rows: group, label, estimate, low, high in PLW, verdict.

    Args:
        table: of `plw.estimate.dose`, whose optima are missing where none may be printed.
    """
    curved = table[table["curved"]]
    label = curved["task_group"].map(words.group_text)
    several = curved["mode"].nunique() > 1
    rows = {
        "group": curved["dataset_type"].map(words.data_text),
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
    rows = optimum_rows(table)
    caption = (
        "The effective prompt loss weight at which the fitted score is highest. A dot with a line: "
        "the curve rises at PLW 0 and falls at PLW 1, each at the 5 % level, and the tests of its "
        "shape bear it; the line is the 95 % Fieller interval. A dot alone: the curve rises or "
        "falls throughout. No dot: the best weight is not determined."
    )
    frame = words.panel_words(curved[[c for c in OPTIMUM_COLUMNS if c in curved]])
    note = "best PLW: of the fitted curve on [0, 1]; gain: its score above PLW 0, in points."
    heads = words.HEADS | BEST_HEADS | {
        "b1": "w_p", "b1_se": "s.e.", "b2": "w_p²", "b2_se": "s.e.",
    }  # fmt: skip
    formats = BEST_FORMATS | dict.fromkeys(("b1", "b1_se", "b2", "b2_se"), ".2f")
    sheet = Table("optimum", "Optimum prompt loss weight", frame, note, heads, formats)
    if rows["estimate"].isna().all():
        drawn: Block = Text("In no combination is the weight with the highest score determined.")
    else:
        drawn = Plate("optimum", plots.optimum(rows), caption)
    return [drawn, Sheet(sheet), *_shape(study)]


def _shape(study: Study) -> list[Block]:
    """Say whether the weight acts at all and whether a line is enough, by likelihood ratios."""
    if study.reasons == (GIVEN,):
        return []
    tests = linear_against_quadratic(study.frame)
    if not tests:
        return []
    frame = pd.DataFrame([_ratio_row(name, test) for name, test in tests.items()])
    note = "Likelihood ratios of nested models fitted by ML, over all panels at once."
    formats = {"chi_squared": ".1f", "p": P_VALUE, "aic_gain": ".1f"}
    heads = {"chi_squared": "χ²", "aic_gain": "AIC, smaller − larger model"}
    return [Sheet(Table("shape", "No effect, a line or a curve?", frame, note, heads, formats))]


def _ratio_row(name: str, test: LikelihoodRatio) -> dict[str, object]:
    names = {"any effect": "a line against no effect", "curvature": "a quadratic against a line"}
    return {
        "test": names.get(name, name), "chi_squared": test.statistic, "df": test.df, "p": test.p,
        "aic_gain": test.aic_small - test.aic_large,
    }  # fmt: skip

"""Controls and measured false-positive rates; the optimum with and without PLW 0."""

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.mixed import fit_mixed
from analysis.questions.controls.estimate import NOT_RUN, control_table
from analysis.regression.default_model import default_formula
from analysis.regression.study import Study, dose_rows
from analysis.report import plots, words
from analysis.report.page import Block, Head, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.frame import study_rows

CONTROL_NAMES = {
    "sham": "A/A: a label that changes nothing",
    "placebo": "placebo: the weights on random tokens",
    "shuffled": "prompts shuffled among rows",
}

RATE_NAMES = CONTROL_NAMES | {"relabelled": "no control: the study's own cells"}


def controls(study: Study) -> Section | None:
    """Return the section on controls, or None where none was run."""
    table = control_table(study.frame)
    table = table[table["verdict"] != NOT_RUN]
    rates = study.false_positives
    if not len(table):
        return Section("controls", "Controls", _rates(rates)) if len(rates) else None
    known = table.dropna(subset=["estimate"]) if "estimate" in table else table.iloc[:0]
    blocks: list[Block] = []
    if len(known):
        rows = known.assign(
            group=known["control"].map(CONTROL_NAMES),
            label=known["tasks"].map(words.group_text) + known["pairs"].map(", {} pairs".format),
            verdict=np.where(known["p"] < 0.05, "distinguishable", "not distinguishable"),
        )
        caption = (
            "Controls: each control run less the run that differs from it in that one thing, mean "
            "over tasks, in points with 95 % intervals. The A/A label must show no effect; one "
            "line in twenty will look like one all the same."
        )
        blocks.append(Plate("controls", plots.forest(rows), caption))
    names = [c for c in table.columns if c not in ("se", "df", "t")]
    table = table.assign(
        control=table["control"].map(CONTROL_NAMES), tasks=table["tasks"].map(words.group_text)
    )
    note = (
        "Paired t intervals over runs. MDE: minimum detectable effect, the true effect found with "
        "80 % power."
    )
    formats = dict.fromkeys(("estimate", "low", "high", "mde"), ".2f") | {"p": P_VALUE}
    sheet = Sheet(Table("controls", "Controls", table[names], note, words.HEADS, formats))
    return Section("controls", "Controls", (*blocks, sheet, *_rates(rates)))


def _rates(rates: pd.DataFrame) -> tuple[Block, ...]:
    """Return the measured false-positive rates of the study's tests at 5 %, if there are any."""
    if not len(rates):
        return ()
    table = rates.assign(control=rates["control"].map(RATE_NAMES))
    note = (
        "Tests at the 5 % level of comparisons that have no difference by construction. A/A: "
        "score ~ cell, task by task. Swapped: placebo or shuffled runs and their partners, their "
        "mean difference taken out and the two labels swapped seed by seed in every way; score ~ "
        "cell + seed. At random: the study's own model with a label drawn by cell. Intervals are "
        "Clopper and Pearson's, as if all comparisons were independent."
    )
    heads = words.HEADS | {"way": "labels", "hits": "called different"}
    formats = {"hits": ".1f"} | dict.fromkeys(("rate", "low", "high"), ".1%")
    title = "False-positive rate, measured"
    return (Sheet(Table("false_positives", title, table, note, heads, formats), open=True),)


def without_zero(study: Study) -> tuple[Block, ...]:
    """Return what the section on sensitivity says of PLW 0; nothing without a curve."""
    table = _without_zero(study)
    if table is None:
        return ()
    return Head("The optimum without PLW 0"), Text(_leverage_words(table.frame)), Sheet(table)


def _without_zero(study: Study) -> Table | None:
    """Return curvature and optimum with and without PLW 0, which lies far out on the w_p scale."""
    curved = study.dose[study.dose["curved"]] if len(study.dose) else study.dose
    if not len(curved):
        return None
    kept = study.frame[(study.frame["wp"] > 0) | study.frame["is_base"]]
    kept = kept[kept["masking"].astype(str).isin(curved["mode"]) | kept["is_base"]]
    try:
        kept.attrs = dict(study.frame.attrs)
        fit = fit_mixed(study_rows(kept), default_formula(kept)[0])
        again = dose_rows(fit, kept)
    except AnalysisError:
        return None
    keys = [k for k in ("mode", "task_group", "dataset_type") if k in again]
    names = [*keys, "b2", "b2_se", "optimum", "best_plw"]
    if not set(names) <= set(again.columns):
        return None
    pair = curved[names].merge(again[names], on=keys, suffixes=("", "_without"))
    return _leverage_table(pair) if len(pair) else None


def _leverage_table(pair: pd.DataFrame) -> Table:
    told = pair.assign(
        task_group=pair["task_group"].map(words.group_text),
        dataset_type=pair["dataset_type"].map(words.data_text),
    )
    heads = words.HEADS | {
        "b2": "w_p²", "b2_se": "s.e.", "best_plw": "best PLW", "b2_without": "w_p² without PLW 0",
        "b2_se_without": "s.e.", "optimum_without": "optimum without PLW 0",
        "best_plw_without": "best PLW without PLW 0",
    }  # fmt: skip
    formats = dict.fromkeys(("b2", "b2_se", "b2_without", "b2_se_without"), ".2f")
    formats |= dict.fromkeys(("best_plw", "best_plw_without"), ".2g")
    note = "The model fitted again without the runs at PLW 0, which have high leverage on a curve."
    return Table("optimum_without_zero", "With and without PLW 0", told, note, heads, formats)


def _leverage_words(pair: pd.DataFrame) -> str:
    changed = int((pair["optimum"] != pair["optimum_without"]).sum())
    said = "the same" if not changed else f"another one in {changed} of {len(pair)} combinations"
    return (
        "PLW 0 lies far from the other weights on the w_p scale and so decides much of a fitted "
        f"curve. Without it the verdict on the optimum is {said}."
    )

"""Controls and measured false-positive rates; the optimum with and without PLW 0."""

import numpy as np

from analysis.questions.controls.estimate import NOT_RUN, control_table
from analysis.questions.controls.false_positives import measured_rates, panel_rates
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table

KEY = "controls"
CONTROL_NAMES = {
    "sham": "A/A: a label that changes nothing",
    "placebo": "placebo: the weights on random tokens",
    "shuffled": "prompts shuffled among rows",
}

NO_VERDICT = "no verdict: one seed a cell"
SUMMARY = "Comparisons whose answer is known, and the false-positive rate measured on them."
RATE_NAMES = CONTROL_NAMES | {"relabelled": "no control: the study's own cells"}


def controls(study: Study) -> Section | None:
    """Return the section on controls, or None where none was run."""
    table = control_table(study.frame)
    table = table[table["verdict"] != NOT_RUN]
    if not study.replicated and "p" in table:
        said = table["verdict"].mask(table["estimate"].notna(), NO_VERDICT)
        table = table.assign(p=np.nan, verdict=said)
    rates = measured_rates(study)
    if not len(table):
        return Section(KEY, "Controls", _rates(study), SUMMARY) if len(rates) else None
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
    return Section(KEY, "Controls", (*blocks, sheet, *_rates(study)), SUMMARY)


def _rates(study: Study) -> tuple[Block, ...]:
    """Return the measured false-positive rates of the study's tests at 5 %, if there are any."""
    rates, panels = measured_rates(study), panel_rates(study)
    if not len(rates):
        return ()
    table = rates.assign(control=rates["control"].map(RATE_NAMES))
    note = (
        "Tests at the 5 % level of comparisons that have no difference by construction. A/A: "
        "score ~ cell, task by task. Swapped: placebo or shuffled runs and their partners, their "
        "mean difference taken out and the two labels swapped seed by seed in every way; score ~ "
        "cell + seed. At random: every panel's model with a label drawn by cell. Intervals are "
        "Clopper and Pearson's; of random labels clustered by labelling (Korn and Graubard 1998), "
        "else as if all comparisons were independent."
    )
    heads = words.HEADS | {"way": "labels", "hits": "called different"}
    formats = {"hits": ".1f"} | dict.fromkeys(("rate", "low", "high"), ".1%")
    title = "False-positive rate, measured"
    sheet = Sheet(Table("false_positives", title, table, note, heads, formats), open=True)
    if not len(panels):
        return (sheet,)
    note = "A test a labelling in every panel; Clopper and Pearson's intervals."
    title = "Labels drawn at random, by panel"
    by_panel = study.shown(words.panel_words(panels))
    return (sheet, Sheet(Table("false_positives_by_panel", title, by_panel, note, heads, formats)))

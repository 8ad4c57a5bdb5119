"""When to mask the prompt, over Rg and the number of rows: section and headlines of the report."""

import pandas as pd

from analysis.questions.when_to_mask import figure as figures
from analysis.questions.when_to_mask.estimate import (
    CHANGES,
    RATIO,
    ROWS,
    Mask,
    changes,
    summaries,
    surfaces,
)
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import Headline, of_row
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "when-to-mask"
TITLE = "When to mask the prompt"
HEADS = words.HEADS | {
    RATIO: "Rg", ROWS: "rows", "all_low": "all: low", "all_high": "all: high",
    "observed": "plain mean", "pairs": "pairs", "over": "change",
}  # fmt: skip
POINTS = dict.fromkeys(
    ("estimate", "low", "high", "mde", "all_low", "all_high", "observed"), ".2f"
) | {"p": P_VALUE, "p_holm": P_VALUE, RATIO: ".3g"}
NOTE = (
    "The gain is the score of a run that trains on its prompts less that of the run at weight 0 "
    "with the same data, base model, adapter and seed, in points. It is a quadratic surface over "
    "log2 Rg and log2 rows with a random effect of the data set on its base model; a change is "
    "that from the smallest to the largest value, the other number at its middle. Degrees of "
    "freedom by Kenward and Roger."
)


def section(study: Study) -> Section | None:
    """Return the section; None without three values of Rg and of the number of rows."""
    found = _found(study)
    if not found:
        return None
    table = _changes(study)
    said = summaries(table)
    blocks: list[Block] = [Text(_lead(said)), Sheet(_change_sheet(table), open=True)]
    for mode, plw in dict.fromkeys((m.labels["mode"], m.labels["plw"]) for m in found):
        own = [m for m in found if (m.labels["mode"], m.labels["plw"]) == (mode, plw)]
        caption = (
            f"Gain of masking={mode} at PLW {plw} over PLW 0, in points, as fitted, over the ratio "
            "of completion to prompt tokens and the number of training rows. Line: no gain. "
            "Numbers: the gain at every data set that was run; bold with a sign where the 95 % "
            "interval for all of them at once excludes zero, in brackets where it does not."
        )
        blocks.append(Plate(f"when_to_mask_{mode}_{plw}", figures.maps(own), caption))
    blocks.append(Sheet(Table("when_to_mask_summaries", "Two summaries, each held against both "
                              "changes", said, _ABOUT, HEADS)))  # fmt: skip
    blocks.append(Sheet(_effect_sheet(found)))
    return Section(KEY, TITLE, tuple(blocks), _lead(said))


_ABOUT = (
    "Two summaries of arXiv 2405.14394 are in use: that training on the prompt pays where "
    "completions are short and rows few, and that it pays where completions are long and rows "
    "many. A summary is supported where both changes are distinguishable and as it says, "
    "contradicted where one is distinguishable and the other way round."
)


def headlines(study: Study) -> list[Headline]:
    """Return the changes over Rg and over rows, for every group of tasks, mode and weight."""
    found = _found(study)
    if not found:
        return []
    several = len({(m.labels["mode"], m.labels["plw"]) for m in found}) > 1
    made = []
    for row in _changes(study).to_dict("records"):
        dose = f"{row['mode']} at PLW {row['plw']}, " if several else ""
        label = f"{dose}{words.group_text(str(row['task_group']))}"
        made.append(of_row(row, label=label, group=CHANGES[row["over"]], question=KEY))
    return made


def _found(study: Study) -> list[Mask]:
    return study.once("when to mask", lambda: surfaces(study))


def _changes(study: Study) -> pd.DataFrame:
    return changes(_found(study), study.margin, questions=study.questions)


def _lead(said: pd.DataFrame) -> str:
    parts = []
    for name, own in said.groupby("summary", sort=False):
        counts = own["verdict"].value_counts()
        split = ", ".join(f"{verdict} {n}" for verdict, n in counts.items())
        parts.append(f"“{name}” is {split} of {len(own)} times")
    return (
        "Training on the prompt is said to pay for short completions and few rows, and for long "
        f"completions and many rows. Over groups of tasks and weights: {'; '.join(parts)}."
    )


def _change_sheet(table: pd.DataFrame) -> Table:
    shown = table.assign(over=table["over"].map(CHANGES))
    title = "How the gain of training on the prompt changes with the data"
    return Table("when_to_mask_changes", title, shown, NOTE, HEADS, POINTS)


def _effect_sheet(found: list[Mask]) -> Table:
    parts = [mask.effects.assign(**mask.labels) for mask in found]
    table = pd.concat(parts, ignore_index=True)
    labels = list(found[0].labels)
    table = table[[*labels, *(n for n in table if n not in labels)]]
    title = "The gain of training on the prompt at every data set"
    note = "low, high: each for itself; all: for all data sets of the panel at once (max |t|)."
    return Table("when_to_mask_gains", title, table, note, HEADS, POINTS)

"""What a weight does: step size, completion down-weighting, prompt information."""

import pandas as pd

from analysis.inference.estimates import holm
from analysis.questions.decomposition import figure as figures
from analysis.questions.decomposition.estimate import (
    PROMPT,
    TOTAL,
    Decomposition,
    decomposition_table,
    decompositions,
)
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "decomposition"


def section(study: Study) -> Section | None:
    """Return the section; None without cells under another normaliser or completion weight."""
    found = decompositions(study.frame)
    known = [one for one in found if one.parts[PROMPT] is not None]
    if not known:
        return None
    table = decomposition_table(found)
    caption = (
        "The effect of a prompt loss weight against weight 0, and its parts, in points with 95 % "
        "intervals. Filled: distinguishable from zero at the 5 % level after Holm's adjustment "
        "over all of them."
    )
    blocks: list[Block] = [
        Text(_method()),
        Plate("decomposition", figures.parts(_parts(known)), caption),
        Sheet(_sheet(table)),
    ]
    return Section(KEY, "What the weight acts through", tuple(blocks))


def _method() -> str:
    return (
        "Weighting the prompt adds the prompt's gradient, and under the usual normaliser lets the "
        "completion's part of the gradient fall. The cell whose normaliser holds the completion's "
        "part fixed is on the way: what it differs by from weight 0 is the prompt's, what the "
        "weighted cell differs by from it is a smaller gradient of the same direction. That "
        "second part is split between the norm of the whole gradient (step size) and the "
        "completion's share of it (down-weighting) in proportion to the logarithms of both, as if "
        "scores were linear in the log of the scale; Adam hardly minds the scale, so both are "
        "expected to be small."
    )


def _parts(found: list[Decomposition]) -> pd.DataFrame:
    table = decomposition_table(found).dropna(subset=["estimate"])
    clear = pd.Series(holm(table["p"].tolist()), table.index) < 0.05
    tasks = table["task_group"].map(words.group_text)
    weight = "PLW " + table["plw"].map(words.plw_text)
    if table["masking"].nunique() > 1:
        weight = table["masking"] + ", " + weight
    return table.assign(
        panel=table["dataset"] + ":\n" + tasks,
        weight=weight,
        verdict=clear.map({True: "distinguishable", False: "not distinguishable"}),
    )


def _sheet(table: pd.DataFrame) -> Table:
    frame = table.assign(task_group=table["task_group"].map(words.group_text))
    note = (
        f"Points against weight 0. The parts add up to the {TOTAL}. Identified by: cells at the "
        "same weight whose normaliser holds the completion's gradient."
    )
    heads = words.HEADS | {"identified_by": "identified by"}
    formats = dict.fromkeys(("estimate", "low", "high"), ".2f") | {"p": P_VALUE}
    return Table("decomposition", "Parts of the effect", frame, note, heads, formats)

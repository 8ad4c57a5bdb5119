"""Learning against forgetting, with the Pareto front: section of the report."""

import pandas as pd

from analysis.questions.tradeoff import figure as figures
from analysis.questions.tradeoff.estimate import OFF, ON, OUTCOMES, arms, cells
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.cells import ARM, arm_text

KEY = "trade-off"
FEWEST = 3  # levels of a stratum from which there is a Pareto front
LARGEST = 4  # strata that are drawn, those of most levels
ENDS = tuple(f"{name}{end}" for name in OUTCOMES for end in ("", "_low", "_high"))
FORMATS = dict.fromkeys(ENDS, ".2f") | {"chance": ".3f"}
HEADS = words.HEADS | {
    "learning_low": "95 % low", "learning_high": "95 % high", "forgetting_low": "95 % low",
    "forgetting_high": "95 % high", "undominated": "undominated as estimated",
    "chance": "chance, Pareto optimal",
}  # fmt: skip
NOTE = (
    "Learning: points gained on target tasks over the untouched base; forgetting: points lost on "
    "source tasks; 95 % intervals for other seeds. The base is one model: its own score carries "
    "item noise that these intervals do not hold. Chance: share of draws in which no other one "
    "dominates."
)


def section(study: Study) -> Section | None:
    """Return the section; None without a base, target tasks and source tasks."""
    table = cells(study)
    if not len(table):
        return None
    table = table.assign(stratum=stratum_text(table))
    counts = table.groupby("stratum")["stratum"].transform("size")
    large = table[counts >= FEWEST]
    blocks: list[Block] = []
    if len(large):
        largest = large["stratum"].value_counts(sort=True).index[:LARGEST]
        drawn = large[large["stratum"].isin(largest)].assign(label=level_labels)
        caption = (
            "Learning against forgetting, a marker per cell, with 95 % intervals; up and to the "
            "left is better. Filled: Pareto optimal in at least 95 % of draws from the joint "
            "distribution of all means; hollow: undecided; small and pale: dominated. Grey: the "
            "Pareto front of the estimates, by name."
        )
        blocks += [Text(_lead(large)), Plate("learning_forgetting", figures.front(drawn), caption)]
    by_arm = arms(study)
    if len(by_arm) < len(table):
        blocks.append(Sheet(_sheet(by_arm, "arms", "over all their cells"), open=True))
    blocks.append(Sheet(_sheet(table.drop(columns="stratum"), "cells", "cell by cell")))
    return Section(KEY, "Learning against forgetting", tuple(blocks))


def stratum_text(table: pd.DataFrame) -> "pd.Series[str]":
    """Return the data set, and the base model where there are several, of every row."""
    dataset = table["dataset"].astype(str)
    several = "model" in table and table["model"].nunique() > 1
    return dataset + ", " + table["model"].astype(str) if several else dataset


def level_labels(table: pd.DataFrame) -> "pd.Series[str]":
    """Return the name of every cell: its arm, and its weight and masking where they vary."""
    text = pd.Series([arm_text(*pair) for pair in table[list(ARM)].itertuples(index=False)],
                     table.index)  # fmt: skip
    if "plw" in table and table["plw"].nunique() > 1:
        text = text + ", PLW " + table["plw"].map(words.plw_text)
    if "masking" in table and table.loc[table["plw"] > 0, "masking"].nunique() > 1:
        usual = table.loc[table["plw"] > 0, "masking"].astype(str).mode()[0]
        plain = (table["plw"] == 0) | (table["masking"].astype(str) == usual)
        text = text + (" " + table["masking"].astype(str)).mask(plain, "")
    return text


def _lead(table: pd.DataFrame) -> str:
    on, off = (int((table["verdict"] == verdict).sum()) for verdict in (ON, OFF))
    return (
        f"A cell is Pareto optimal if no other learns as much and forgets less. Of "
        f"{words.count(len(table), 'cell')}, {on} {'is' if on == 1 else 'are'} so in at least 95 % "
        f"of draws from the means' joint distribution, {off} in at most 5 %, and "
        f"{len(table) - on - off} are undecided. These shares are no p-values, and cells that are "
        "truly alike share the front between them."
    )


def _sheet(table: pd.DataFrame, name: str, title: str) -> Table:
    frame = table.drop(columns=[f"{outcome}_se" for outcome in OUTCOMES])
    if "rank" in frame:
        frame = frame.assign(rank=frame["rank"].mask(frame["adapter"].astype(str) == "full"))
    name, title = f"learning_forgetting_{name}", f"Learning and forgetting, {title}"
    return Table(name, title, frame, NOTE, HEADS, FORMATS)

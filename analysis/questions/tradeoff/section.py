"""Learning against forgetting by cell: who is on the front, and forgetting at equal learning."""

import pandas as pd

from analysis.questions.plw import figure as figures
from analysis.questions.tradeoff.estimate import OFF, ON, fronts, matched_table
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

FEWEST = 3  # cells of a place from which there is a front to speak of
FIGURES = ("learning", "learning_se", "forgetting", "forgetting_se")


def section(study: Study) -> Section | None:
    """Return the section; None without a base, target tasks and source tasks."""
    table = fronts(study.frame)
    if not len(table):
        return None
    place = table["dataset"] + (", " + table["model"] if "model" in table else "")
    table = table.assign(place=place)
    table = table[table.groupby("place")["place"].transform("size") >= FEWEST]
    if not len(table):
        return None
    largest = table["place"].value_counts(sort=True).index[:4]
    drawn = table[table["place"].isin(largest)].assign(label=_labels)
    caption = (
        "Learning against forgetting, a marker per cell, with one standard error. Filled: on the "
        "front in at least 95 % of draws from the joint distribution of all means; hollow: "
        "undecided; small and pale: off the front. Grey: the front of the estimates, by name."
    )
    blocks: list[Block] = [
        Text(_lead(table)),
        Plate("front", figures.front(drawn), caption),
        Sheet(_sheet(table.drop(columns="place"))),
        *_matched(study),
    ]
    return Section("front", "The front of learning and forgetting", tuple(blocks))


def _labels(table: pd.DataFrame) -> "pd.Series[str]":
    rank = table["rank"].map(lambda r: f" r{r:g}" if r else "")
    text = table["adapter"].astype(str) + rank
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
        f"A cell is on the front if no other learns as much and forgets less. Of "
        f"{words.count(len(table), 'cell')}, {on} {'is' if on == 1 else 'are'} on it beyond doubt, "
        f"{off} off it, and for {len(table) - on - off} the table does not say. Chances are shares "
        "of draws from the means' joint distribution: no p-values, and cells that are truly alike "
        "share the front between them."
    )


def _sheet(table: pd.DataFrame) -> Table:
    note = (
        "Learning: points gained on target tasks over the untouched base; forgetting: points lost "
        "on source tasks. Chance: share of draws in which no other cell dominates this one."
    )
    heads = words.HEADS | {
        "learning_se": "s.e.", "forgetting_se": "s.e.", "front_now": "on the front as estimated",
        "chance": "chance of the front",
    }  # fmt: skip
    formats = dict.fromkeys(FIGURES, ".2f") | {"chance": ".3f"}
    return Table("front", "Learning, forgetting and the front", table, note, heads, formats)


def _matched(study: Study) -> list[Block]:
    table = matched_table(study.frame)
    if not len(table):
        return []
    formats = dict.fromkeys(("learning", "estimate", "low", "high"), ".2f") | {"p": P_VALUE}
    note = (
        "What an arm forgets more than another at one level of learning: forgetting is "
        "interpolated along each arm's cells over the weight. 95 % percentile intervals. Reached: "
        "share of draws in which both arms reach that learning; below 95 % there is no interval."
    )
    heads = words.HEADS | {"estimate": "forgets more by", "learning": "at learning"}
    sheet = Sheet(
        Table("matched_learning", "Forgetting at equal learning", table, note, heads, formats)
    )
    known = table.dropna(subset=["low"])
    if not len(known):
        return [sheet]
    place = known["dataset"] + (", " + known["model"] if "model" in known else "")
    label = known["arm"] + " − " + known["against"]
    verdict = known["verdict"].where(known["verdict"] == "not distinguishable", "distinguishable")
    rows = known.assign(group=place, label=label, verdict=verdict)
    caption = (
        "Forgetting at equal learning: points that an arm loses on source tasks more than the "
        "other, read off both arms' curves at one level of learning, with 95 % intervals."
    )
    return [Plate("matched_learning", plots.forest(rows), caption), sheet]

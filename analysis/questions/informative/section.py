"""Items that see more: section of the report."""

import pandas as pd

from analysis.questions.informative.estimate import items_table, response_table, telling_items
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.margins import margins_of

KEY, TITLE = "telling-items", "Items that see more"
HEADS = words.HEADS | {
    "factor": "seeds for one", "scale": "scale of differences", "scale_low": "scale, low",
    "scale_high": "scale, high", "agree": "correlation", "agree_all": "correlation, all items",
    "doc_id": "item",
}  # fmt: skip
FORMATS = dict.fromkeys(
    ("factor", "low", "high", "scale", "scale_low", "scale_high", "agree", "agree_all"), ".2f"
)
_RESPONSES = (
    "Seeds that the mean log-likelihood margin of the right option takes for each one that "
    "accuracy takes, at the same certainty about differences of cells; 95 % intervals over "
    "resampled cells. Correlation: of the two over cells. Items that no run answered rightly are "
    "left out of both."
)
_ITEMS = (
    "The items whose score goes most with that of the others, chosen on the first half of the "
    "seeds from a random half of the items, and tried on the other seeds. Seeds for one: that they "
    "take for each one of all items of their half. Scale: a difference on them over one on all, "
    "told by the items that took no part; scores on them are no scores of the benchmark. "
    "Correlation: over cells with those items, beside that of all items of their half; where it is "
    "lower, they see something else."
)
_CHOSEN = (
    "The quarter of all items that goes most with the others over all cells and seeds of its data "
    "set and base model: for a further study, not for this one, on which they were chosen. "
    "evaluate.items=FILE scores them there: FILE is this table, and of its items each task's are "
    "those of all data sets and base models together."
)


def section(study: Study) -> Section | None:
    """Return the section; None without items or with few cells."""
    items = study.items
    if items is None or study.folder is None:
        return None
    worth = items_table(items)
    margins = margins_of(items, study.folder)
    responses = response_table(items, margins) if margins is not None else pd.DataFrame()
    if not len(worth) and not len(responses):
        return None
    said = " ".join(text for text in (_of_items(worth), _of_responses(responses)) if text)
    blocks: list[Block] = [Text(said)]
    sheets = (
        ("telling_items", "Telling items beside all", worth, _ITEMS),
        ("margins", "Accuracy or margin", responses, _RESPONSES),
        ("telling_items_chosen", "Telling items", telling_items(items), _CHOSEN),
    )
    for name, title, table, note in sheets:
        if len(table):
            blocks.append(Sheet(Table(name, title, table, note, HEADS, FORMATS)))
    return Section(KEY, TITLE, tuple(blocks), said)


def _of_items(table: pd.DataFrame) -> str:
    """Say where telling items save seeds and still see what the others see."""
    known = table.dropna(subset=["factor", "low", "high"]) if len(table) else table
    if not len(known):
        return ""
    fewer = known[(known["high"] < 1) & (known["agree"] >= known["agree_all"])]
    more = known[known["low"] > 1]
    best = fewer["factor"].median() if len(fewer) else float("nan")
    saved = f", to {words.plain(best)} of them (median)" if len(fewer) else ""
    return (
        f"Half or a quarter of the items, chosen on other seeds, take fewer seeds than all in "
        f"{len(fewer)} of {len(known)} combinations of data set, task and share without seeing "
        f"less of what the rest sees{saved}; more in {len(more)}."
    )


def _of_responses(table: pd.DataFrame) -> str:
    """Say where the margin takes fewer seeds than accuracy."""
    known = table.dropna(subset=["factor", "low", "high"]) if len(table) else table
    if not len(known):
        return ""
    return (
        f"The log-likelihood margin takes fewer seeds than accuracy in "
        f"{int((known['high'] < 1).sum())} of {len(known)} combinations of data set and task, more "
        f"in {int((known['low'] > 1).sum())}."
    )

"""The report of results that no model can be fitted to: the scores as they are."""

import pandas as pd

from analysis.report import words
from analysis.report.overview import varied
from analysis.report.page import Section, Sheet
from analysis.report.tables import Table
from analysis.table.factors import own_columns
from analysis.table.frame import SCORED

NOTHING = "There is too little here to compare; the numbers stand below as they are."


def scores(frame: pd.DataFrame) -> Section | None:
    """Return the mean score of every cell on every task, without any inference."""
    rows = frame[frame["task_type"].isin(SCORED)]
    if not len(rows):
        return None
    names = [n for n in own_columns(rows, varied(rows)) if n not in ("rate", "control")]
    grouped = rows.groupby([*names, "task"], observed=True, sort=False, dropna=False)["score"]
    table = grouped.agg(runs="size", mean="mean").reset_index()
    note = "Means over seeds and base models, in points; no interval can be given."
    sheet = Sheet(Table("scores", "Scores", table, note, words.HEADS, {"mean": ".1f"}), open=True)
    return Section("scores", "Scores", (sheet,))

"""Runs that did not end: trackers of experiments keep them beside those that did, with scores."""

import pandas as pd

from analysis.errors import listed

COLUMNS = ("State", "state", "Status", "status")
DONE = ("finished",)
# W&B's and MLflow's, in small letters. A run that still goes on has no last score yet.
NOT_DONE = (
    "crashed", "failed", "killed", "running", "pending", "preempting", "preempted", "scheduled",
)  # fmt: skip


def unfinished(table: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are of runs that did not end.

    A column counts where it holds states of runs and nothing else.
    """
    for name in COLUMNS:
        if name in table:
            words = table[name].astype(str).str.strip().str.lower()
            if words.isin((*DONE, *NOT_DONE)).all():
                return words.isin(NOT_DONE)
    return pd.Series(False, index=table.index)


def said(table: pd.DataFrame, which: "pd.Series[bool]") -> str:
    """Return in words how many rows did not end, and in what state they are."""
    name = next(n for n in COLUMNS if n in table)
    return f"{int(which.sum())} that did not finish ({listed(dict.fromkeys(table[name][which]))})"

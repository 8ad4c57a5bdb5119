"""Benchmarks that ran what a model wrote, and what kept those programs apart."""

import pandas as pd

from analysis.errors import listed

SHOWN = 8  # tasks that are named
MEANING = {
    "namespaces": "in namespaces, without network and without your files to write to",
    "limits": "under limits of time and memory alone, with the account's files and the network "
    "in reach, so that they could change results",
}


def sentence(rows: pd.DataFrame) -> list[str]:
    """Return a sentence for each kind of isolation, for the text on what was run.

    Args:
        rows: of a results table; older ones have no column `isolation`.
    """
    if not {"task", "isolation"} <= set(rows.columns):
        return []
    found = []
    for kind, meaning in MEANING.items():
        tasks = rows.loc[rows["isolation"].eq(kind), "task"].unique()
        if len(tasks):
            found.append(f"Generated programs of {listed(tasks, SHOWN)} were run {meaning}.")
    return found

"""Benchmarks of which chosen items alone were scored, as `evaluate.items` asks."""

import pandas as pd

from analysis.errors import listed

SHOWN = 8  # tasks that are named
NEEDED = {"task", "n", "of", "chosen"}
MEANING = (
    "scores on them are no scores of the benchmark, and sizes of differences are of these items"
)


def chosen_items(rows: pd.DataFrame) -> str:
    """Return the benchmarks that have scores on chosen items; "" where none has.

    Args:
        rows: of a results table or a prepared frame.
    """
    if not set(rows.columns) >= NEEDED:
        return ""
    fewer = pd.to_numeric(rows["n"]) < pd.to_numeric(rows["of"])  # no number: no benchmark
    found = rows[rows["chosen"].astype(str).str.lower().eq("true") & fewer]
    once = found.drop_duplicates(["task", "n"]).itertuples()
    return listed((f"{r.task} ({r.n:,.0f} of {r.of:,.0f} items)" for r in once), SHOWN)


def sentence(rows: pd.DataFrame) -> list[str]:
    """Return the sentence that tells it, for the text on what was run."""
    told = chosen_items(rows)
    return [f"Scored on chosen items alone: {told}; {MEANING}."] if told else []


def warning(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what must be read first where a score is of chosen items."""
    told = chosen_items(rows)
    return [("Chosen items.", f"Of {told} alone: {MEANING}.")] if told else []

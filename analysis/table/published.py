"""Tables quoted from papers, read from `analysis/published` (sources: `SOURCES.md` there)."""

from pathlib import Path

import pandas as pd

from analysis.errors import AnalysisError, listed, nearest

FOLDER = Path(__file__).parents[1] / "published"
TEXT = {"rank": "string"}  # columns of labels that look like numbers


def names() -> list[str]:
    """Return the tables there are."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def read(name: str) -> pd.DataFrame:
    """Return one published table; an empty cell of it is a missing value.

    Raises:
        AnalysisError: there is no such table.
    """
    known = names()
    if name not in known:
        raise AnalysisError(f"published={name}: not one of {listed(known)}.{nearest(name, known)}")
    return pd.read_csv(FOLDER / f"{name}.csv", dtype=TEXT)

"""Factorial ablation studies of LLM instruction fine-tuning.

`ablate.load(folder)` opens the results of a study for notebooks and scripts.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.version import __version__

if TYPE_CHECKING:
    from analysis.facade import LoadedTable

__all__ = ["__version__", "load"]


def load(source: str | Path, **options: Any) -> "LoadedTable":
    """Return the study in a results folder; see `analysis.facade.load`.

    Args:
        source: a folder with results.parquet, or a results table as .parquet, .csv or .tsv.
        options: score, formula, family, weights, df, margin and frozen, as of `ablate report`.

    Raises:
        analysis.errors.AnalysisError: no table, or an option that is not as it must be.
    """
    from analysis import facade  # here, for every module of ablate imports this file first

    return facade.load(source, **options)

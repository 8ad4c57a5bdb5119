"""Where the runs of a comparison lie: paths, patterns of paths, beginnings of the keys of cells.

Nothing that takes time is imported here, so that a command refuses at once what is not there.
"""

import glob
from pathlib import Path

from analysis.errors import AnalysisError, told

RECORD = "record.json"
KINDS = (
    "a recorded cell (OUT/cells/KEY), a folder of results, results of lm-eval (results_*.json, "
    "samples_*.jsonl, or their folder), logs of Inspect (.eval, .json), files of Every Eval Ever, "
    "runs of W&B or MLflow (a CSV, wandb/, mlruns/, mlflow.db)"
)


def is_cell(folder: Path) -> bool:
    """Return whether a folder holds the record of a cell."""
    return (folder / RECORD).is_file()


def is_folder(folder: Path) -> bool:
    """Return whether a folder holds recorded cells."""
    return (folder / "cells").is_dir()


def places(words: str) -> list[Path]:
    """Return the paths that one side of a comparison names.

    Args:
        words: a path, a pattern of paths, or several with commas between them.

    Raises:
        AnalysisError: one is not there.
    """
    return [place for word in words.split(",") for place in _places(word.strip())]


def _places(word: str) -> list[Path]:
    if not word:
        raise AnalysisError("compare: a side is empty; name a path on both")
    if any(c in word for c in "*?[") and not Path(word).exists():
        matched = sorted(map(Path, glob.glob(word)))
        if not matched:
            raise AnalysisError(f"{told(word)}: no path is of this pattern")
        return matched
    path = Path(word)
    if path.exists():
        return [path]
    begun = sorted(path.parent.glob(f"{glob.escape(path.name)}*")) if path.name else []
    cells = [p for p in begun if is_cell(p)]
    if len(cells) == 1:
        return cells
    if cells:
        raise AnalysisError(f"{told(word)}: {len(cells)} cells begin so; write more of the key")
    raise AnalysisError(
        f"{told(word)}: no such file or folder; name {KINDS}; arms of one folder are named by "
        f"`ablate compare ARM ARM --in DIR`"
    )

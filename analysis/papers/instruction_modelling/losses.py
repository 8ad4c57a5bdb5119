"""The loss of single held-out rows on their outputs: what figures 3, 8 and 9 draw."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.papers.instruction_modelling.arms import IT, Runs
from analysis.papers.instruction_modelling.claims import main_mode
from analysis.table.items import FILE

METRIC, TASK = "loss_completion", "heldout_test"


def row_losses(runs: Runs, folder: Path | None) -> pd.DataFrame:
    """Return arm (IT, IM) and loss in nats a token, a row per held-out row and run at the usual
    place; no row where the runs' items are not there.
    """
    empty = pd.DataFrame({"arm": pd.Series(dtype=str), "loss": pd.Series(dtype=float)})
    if folder is None:
        return empty
    arms, found = {IT: IT, main_mode(runs): "IM"}, [empty]
    table = runs.at()
    for run, arm in zip(table["run"].astype(str), table["arm"], strict=True):
        file = folder / "cells" / run / FILE
        if arm in arms and file.is_file():
            found.append(pd.DataFrame({"arm": arms[arm], "loss": _read(file)}))
    return pd.concat(found[1:] or found, ignore_index=True)


def _read(file: Path) -> "pd.Series[float]":
    wanted = [("task", "==", TASK), ("metric", "==", METRIC)]
    try:
        own = pq.read_table(file, columns=["score"], filters=wanted)
    except (pa.ArrowInvalid, OSError):  # damaged: the next sweep sees to it
        return pd.Series(dtype=float)
    return own.to_pandas()["score"].astype(float).dropna().reset_index(drop=True)

"""The loss of training over steps, of every arm's runs at its own rate: what figure 4 draws.

Of the rates that an arm tried it is the one of lowest validation loss: between two of them there is
no run to draw. A point is the mean of the losses of the steps within a tenth of it, a window of
constant width on a logarithmic axis.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.engine.linalg import Array
from analysis.papers.mora.measures import levels
from analysis.questions.own_rate.curves import RateCurve, best_tried
from analysis.questions.own_rate.estimate import OWN_OR_GIVEN, Compared

FILE = "history.parquet"
WINDOW = 1.1  # a point holds the steps from step / WINDOW to step * WINDOW
POINTS = 60  # of each axis


def loss_curves(found: Compared, folder: Path | None) -> pd.DataFrame:
    """Return step and the columns of `measures.levels`, in nats a token; no row without histories.

    Args:
        found: the comparison of a group's arms, whose validation losses choose the rates.
        folder: of results, with cells/<run>/history.parquet.
    """
    if folder is None:
        return pd.DataFrame()
    runs = {c.arm: _at_best(c, folder) for c in found.curves}
    read = {arm: own for arm, own in runs.items() if own}
    if not read:
        return pd.DataFrame()
    last = min(int(h["step"].iloc[-1]) for own in read.values() for h in own.values())
    parts = [levels(one).assign(step=step) for step, one in _by_step(found, read, last)]
    return pd.concat(parts, ignore_index=True)


def _at_best(curve: RateCurve, folder: Path) -> dict[str, pd.DataFrame]:
    """Return the histories of an arm's runs at the best rate tried, by seed."""
    k = int(best_tried(curve).weights_K.argmax())
    found = {}
    for seed, runs in zip(curve.seeds, curve.run_SK, strict=True):
        history = _read(folder / "cells" / runs[k] / FILE)
        if history is not None:
            found[seed] = history
    return found


def _read(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=["step", "loss"]).to_pandas().dropna()
    except (pa.ArrowInvalid, OSError, KeyError):  # damaged: the next sweep sees to it
        return None
    return table.sort_values("step", kind="stable") if len(table) else None


def _by_step(
    found: Compared, read: Mapping[str, Mapping[str, pd.DataFrame]], last: int
) -> Iterator[tuple[int, Compared]]:
    """Yield the steps of the curves and, as a comparison, what every arm's loss was there."""
    steps = np.unique(np.rint([*np.geomspace(1, last, POINTS), *np.linspace(1, last, POINTS)]))
    smooth = {
        arm: np.array([smoothed(h["step"].to_numpy(float), h["loss"].to_numpy(float), steps)
                       for h in own.values()])
        for arm, own in read.items()
    }  # fmt: skip
    for number, step in enumerate(steps.astype(int).tolist()):
        curves = tuple(
            RateCurve(arm, "step", np.ones(1), tuple(own), np.zeros((len(own), 1)),
                      smooth[arm][:, [number]], tuple((seed,) for seed in own))
            for arm, own in read.items()
        )  # fmt: skip
        yield step, Compared(found.labels, curves, None, found.reference, OWN_OR_GIVEN)


def smoothed(step_N: Array, loss_N: Array, at_P: Array) -> Array:
    """Return the mean loss of the steps within `WINDOW` of each of some steps.

    Args:
        step_N: ascending.
        loss_N: at these steps.
        at_P: where it is wanted, each within the steps.
    """
    total = np.concatenate([[0.0], np.cumsum(loss_N)])
    first = np.searchsorted(step_N, at_P / WINDOW - 1e-9, side="left")
    end = np.searchsorted(step_N, at_P * WINDOW + 1e-9, side="right")
    return np.asarray((total[end] - total[first]) / np.maximum(end - first, 1))

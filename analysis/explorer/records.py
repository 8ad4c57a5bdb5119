"""What lies beside a table for each run: its settings, its loss curve and the end of its log.

A page has room for so much: curves are means over equal stretches of steps, in 16 bits between the
least and the largest value of a run, and the ends of logs are cut to a share of `LOG_TEXT`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.explorer.packing import Packer
from analysis.table.records import read_record, settings_of

SERIES = {"loss": "training loss", "loss_completion": "loss on the completion"}
POINTS = (24, 100)  # of a curve: the fewest and the most
CURVE_VALUES = 60_000  # of one series over all runs, before the fewest points are reached
LOG_TEXT = 1_000_000  # characters over all runs
LOG_SHARE = (240, 1_600)  # characters of one run: the fewest and the most
STEPS = 2**16 - 1


def settings_data(folder: Path, keys: Sequence[str], pack: Packer) -> dict[str, Any]:
    """Return the settings of every run: those that are the same once, others with a code a run."""
    found = [settings_of(read_record(folder, key)) for key in keys]
    there = [own for own in found if own]
    same, varied = [], []
    for path in dict.fromkeys(path for own in there for path in own):
        texts = [own.get(path, "") for own in found]
        levels = list(dict.fromkeys(t for t, own in zip(texts, found, strict=True) if own))
        if len(levels) == 1:
            same.append([path, levels[0]])
            continue
        place = {level: i for i, level in enumerate(levels)}
        codes = [place.get(text, len(levels)) for text in texts]
        varied.append({"path": path, "levels": [*levels, ""], "codes": pack.codes(codes)})
    return {"same": same, "varied": varied}


def curves_data(folder: Path, keys: Sequence[str], pack: Packer) -> dict[str, Any]:
    """Return the loss curves of all runs; a run without one has no points."""
    most = int(np.clip(CURVE_VALUES // max(len(keys), 1), *POINTS))
    found = [_curves(folder / "cells" / key / "history.parquet", most) for key in keys]
    data: dict[str, Any] = {
        "points": pack.codes([len(steps) for steps, _ in found]),
        "steps": pack.codes(np.concatenate([steps for steps, _ in found] or [np.zeros(0)])),
        "series": [],
    }
    for name, title in SERIES.items():
        own = [values[name] for _, values in found]
        if not any(np.isfinite(values).any() for values in own):
            continue
        ends = np.array([_ends(values) for values in own])
        scaled = [_scaled(v, *e) for v, e in zip(own, ends, strict=True)]
        data["series"].append({
            "name": name, "title": title, "low": pack.array(ends[:, 0], "f64"),
            "high": pack.array(ends[:, 1], "f64"),
            "values": pack.array(np.concatenate(scaled), "u16"),
        })  # fmt: skip
    return data


def _curves(path: Path, most: int) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """Return the last step of every stretch, and the mean of every series over it."""
    nothing = np.zeros(0), {name: np.zeros(0) for name in SERIES}
    try:
        with pq.ParquetFile(path) as file:
            names = [n for n in ("step", *SERIES) if n in file.schema_arrow.names]
            table = file.read(names)
    except (OSError, pa.ArrowInvalid):
        return nothing
    if "step" not in names or not table.num_rows:
        return nothing
    step = table["step"].to_numpy()
    edges = np.unique(np.linspace(0, len(step), min(most, len(step)) + 1).astype(int))
    values = {}
    for name in SERIES:
        if name not in names:
            values[name] = np.full(len(edges) - 1, np.nan)
            continue
        own = table[name].to_numpy().astype(float)
        there = np.isfinite(own)
        sums = np.add.reduceat(np.where(there, own, 0.0), edges[:-1])
        counts = np.add.reduceat(there.astype(int), edges[:-1])
        values[name] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return step[edges[1:] - 1], values


def _ends(values: npt.NDArray[Any]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def _scaled(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[Any]:
    """Return values between their ends as 0 to STEPS - 1, STEPS where there is none."""
    span = (high - low) or 1.0
    scaled = np.rint((values - low) / span * (STEPS - 1))
    return np.where(np.isfinite(values), scaled, STEPS)


def logs_data(folder: Path, keys: Sequence[str]) -> list[str]:
    """Return the last lines of every run's log, whole lines as far as there is room."""
    room = int(np.clip(LOG_TEXT // max(len(keys), 1), *LOG_SHARE))
    return [_tail(folder / "cells" / key / "log.txt", room) for key in keys]


def _tail(path: Path, room: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - room))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    whole = text if size <= room else text.partition("\n")[2]
    return whole.rstrip("\n")

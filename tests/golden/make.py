"""Makes the golden values: `python tests/golden/make.py keys` or `... curves`.

keys.json    the identity of many cells: train_key, score keys and the whole description
curves.json  the loss and gradient norm of every step of a few short runs, as exact numbers
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))  # the package of this checkout, whatever is installed

from ablate.config import grid  # noqa: E402
from ablate.config.compose import expand  # noqa: E402
from ablate.config.composer import config_loader  # noqa: E402
from ablate.experiment.design import Named, design  # noqa: E402
from tests.golden import cells  # noqa: E402

KEYS, CURVES = HERE / "keys.json", HERE / "curves.json"
# Variables by which the libraries are told to take other code than the processor's best.
SWITCHES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_MAX_CPU_ISA")
Table = dict[str, Any]


def designed(grids: Iterable[str], data: Path) -> dict[str, Named]:
    """Return the checked cells of each of `grids` by their overrides, as a sweep makes them."""
    loader = config_loader()
    points = []
    for line in grids:
        words = [word.replace("DATA", str(data)) for word in line.split()]
        points += grid.cells(expand([*cells.COMMON, *words], loader=loader))
    named = design(points, study="none").cells[-len(points) :]  # behind the bases
    return {_label(p, data): cell for p, cell in zip(points, named, strict=True)}


def _label(point: grid.GridCell, data: Path) -> str:
    words = [word for word in point.overrides if word not in cells.COMMON]
    return " ".join(words).replace(str(data), "DATA")


def identities(data: Path) -> Table:
    """Return the identity of every cell of `cells.GRIDS`, by its overrides."""
    return {label: _identity(named) for label, named in designed(cells.GRIDS, data).items()}


def _identity(named: Named) -> Table:
    found = named.identity
    return {
        "train_key": found.train_key,
        "score_keys": {f"{unit.kind} {unit.name}": unit.key for unit in found.units},
        "effective_plw": found.effective_plw,
        "description": found.description,
    }


def curve(name: str, data: Path, out: Path) -> Table:
    """Return the course of one of `cells.CURVES`, trained and recorded as in a sweep."""
    import pandas as pd

    from ablate.results.store import Store
    from ablate.run import run_cells

    [named] = designed([f"{cells.SHORT} {cells.CURVES[name]}"], data).values()
    store = Store(out)
    store.prepare()
    run_cells([named.cell], named.key, store)
    record = store.record(named.key)
    assert record is not None
    steps = pd.read_parquet(store.folder(named.key) / "history.parquet")
    scores = {f"{score['task']} {score['metric']}": score["value"] for score in record["scores"]}
    return {
        "loss": [float(x).hex() for x in steps["loss"]],
        "grad_norm": [float(x).hex() for x in steps["grad_norm"]],
        "scores": {name: float(value).hex() for name, value in scores.items()},
    }


def kernel() -> Table:
    """Return what decides the last bits of a run: where all of it is equal, so are they."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    built = torch.__config__.show().splitlines()
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": [x.strip(" -") for x in built if "Math Kernel" in x or "MKL-DNN" in x],
        "blas": [x.strip() for x in " ".join(built).split(",") if x.strip().startswith("BLAS")],
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "environment": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        "numpy": np.__version__,
        **{name: metadata.version(name) for name in ("transformers", "peft", "accelerate")},
    }


def _processor() -> Table:
    """Return the model of the processor, and its cache, by which libraries split their work."""
    told = ("model name", "cpu family", "model", "stepping", "cache size")
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {"model name": platform.processor() or platform.machine()}
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines if name.strip() in told}


def stored(file: Path) -> Table:
    """Return what a golden file says."""
    found: Table = json.loads(file.read_text(encoding="utf-8"))
    return found


def write(file: Path, head: Table, rows: Table) -> None:
    """Write a golden file, one line a cell, so that a change shows which cells it touches."""
    lines = [f" {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in rows.items()]
    body = ",\n".join(lines)
    shown = "".join(f'"{k}": {json.dumps(v, sort_keys=True)},\n' for k, v in head.items())
    file.write_text(f'{{\n{shown}"cells": {{\n{body}\n}}\n}}\n', encoding="utf-8")


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Return one line for each place where two JSON values differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{place}: stored {old}, now {new}"]
    found = [f"{place}{name}: no longer there" for name in old if name not in new]
    found += [f"{place}{name}: not stored" for name in new if name not in old]
    for name in [name for name in old if name in new]:
        inner = isinstance(old[name], dict) and isinstance(new[name], dict)
        found += differences(old[name], new[name], f"{place}{name}{' > ' if inner else ''}")
    return found


def main(what: str) -> None:
    """Write one golden file anew and print what changed in it."""
    file = {"keys": KEYS, "curves": CURVES}[what]
    before = stored(file)["cells"] if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = cells.write_data(Path(folder) / "data")
        if what == "keys":
            write(file, {}, identities(data))
        else:
            rows = {name: curve(name, data, Path(folder) / name) for name in cells.CURVES}
            write(file, {"kernel": kernel()}, rows)
    print("\n".join(differences(before, stored(file)["cells"])) or "nothing changed")


if __name__ == "__main__":
    main(*sys.argv[1:])

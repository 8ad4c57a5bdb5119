"""Tuned learning rates: where `train.lr=tuned` finds its number.

A single learning rate would confound the adapter with its rate, so each adapter and rank has its
own on each data set: the one with the lowest loss on the completions of the validation split,
averaged over base models, on a seed that no report uses (conf/study/tuning.yaml). Tables are
conf/tuned/*.csv with the columns model, dataset, adapter, rank, lr and, where they are not the
default, init and optimizer; `model` is a family, the name without its number (micro_0, micro_1 and
micro_2 are micro).

A cell that has no row of its own takes, in this order, the data set's shorter name
(micro_designed -> micro), the adapter's kind where it is named after it (mora_rotation -> mora),
and of the ranks tuned the nearest one on the scale of log2. What has no rank (full fine-tuning) is
one run under every rank, so it takes the rate that did best under any. A cell that finds no row
takes `default_lr`, and the plan, the record and the report call its rate untuned.
"""

import csv
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ablate.adapters.registry import method
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.models.files import ModelFiles
from ablate.paths import conf_dir

COLUMNS = ("model", "dataset", "adapter", "rank", "lr")
FULL_RATE, FULL_WIDTH = 5e-5, 2000  # of full fine-tuning, at this width of a model
EXPONENT = {"Llama": 0.781, "Qwen": 0.0775}
ADAPTER_FACTOR = 10
AROUND = {"init": "default", "optimizer": "adamw"}  # further columns, and their defaults


@dataclass(frozen=True, slots=True)
class Tuned:
    """One row of a table: the learning rate of an adapter at a rank on a data set."""

    model: str
    dataset: str
    adapter: str
    rank: int
    lr: float
    loss: float | None = None  # on the validation split, at this rate
    tried: int | None = None  # how many rates were
    init: str = AROUND["init"]
    optimizer: str = AROUND["optimizer"]


def tuned_lr(cell: Cell, folder: Path | None = None) -> float:
    """Return the learning rate tuned for `cell`; arguments and errors as of `tuned_row`."""
    return tuned_row(cell, folder).lr


def tuned_row(cell: Cell, folder: Path | None = None) -> Tuned:
    """Return the row of the tables that gives `cell` its learning rate.

    Args:
        cell: the cell; its `train.lr` is not looked at.
        folder: where the tables are, instead of conf/tuned.

    Raises:
        UserError: nothing was tuned for this model family, data set and adapter.
    """
    rows = [row for path in _tables(folder) for row in _read(path)]
    rows = [row for row in rows if row.model in (cell.model.name, family(cell.model.name))]
    around = cell.init.name, cell.optimizer.name
    rows = [row for row in rows if (row.init, row.optimizer) == around]
    for dataset in _shorter(cell.dataset.name):
        for adapter in _names(cell):
            fitting = [r for r in rows if (r.dataset, r.adapter) == (dataset, adapter)]
            if fitting:
                return min(fitting, key=lambda row: _order(row, cell))
    raise UserError(
        f"train.lr=tuned: no learning rate is tuned for model={cell.model.name} "
        f"dataset={cell.dataset.name} adapter={cell.adapter.name}{_around(cell)}; give "
        f"train.lr=NUMBER or run ablate tune model={cell.model.name} dataset={cell.dataset.name} "
        f"adapter={cell.adapter.name}{_around(cell)}"
    )


def default_lr(cell: Cell, files: ModelFiles) -> float:
    """Return a learning rate for what nobody tuned, by adapter, model family and width.

    The rule is that of "LoRA Without Regret" (Schulman and Thinking Machines Lab, 2025), fitted on
    14 Llama and Qwen models: an adapter's best rate is ten times that of full fine-tuning, which is
    5e-5 (2000 / width)^p with p 0.0775 for Qwen and 0.781 for Llama; other families take Llama's.
    It is about LoRA; of adapters that train other things than low-rank matrices it is a guess.
    """
    power = EXPONENT["Qwen"] if files.architecture.startswith("Qwen") else EXPONENT["Llama"]
    full = FULL_RATE * (FULL_WIDTH / files.width) ** power
    return float(f"{full * (ADAPTER_FACTOR if method(cell.adapter).adapts else 1):.2g}")


def _around(cell: Cell) -> str:
    """Return init and optimizer as overrides, where they are not the defaults."""
    levels = {"init": cell.init.name, "optimizer": cell.optimizer.name}
    return "".join(f" {key}={level}" for key, level in levels.items() if level != AROUND[key])


def _names(cell: Cell) -> Iterator[str]:
    """Yield the names under which a cell's adapter may have been tuned."""
    yield cell.adapter.name
    if cell.adapter.name.startswith(f"{cell.adapter.kind}_"):
        yield cell.adapter.kind


def write_used(cells: Iterable[Cell], path: Path) -> None:
    """Write the rows of the tables that gave `cells` their learning rates; nothing if none did."""
    used: dict[Tuned, None] = {}
    for cell in cells:
        try:
            row = tuned_row(cell)
        except UserError:
            continue
        if row.lr == cell.train.lr:
            used[row] = None
    if not used:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow((*COLUMNS, "loss", "tried", *AROUND))
        table.writerows(dataclasses.astuple(row) for row in sorted(used, key=repr))


def family(model: str) -> str:
    """Return a model's name without its number."""
    return re.sub(r"_\d+$", "", model)


def _shorter(name: str) -> Iterator[str]:
    """Yield `name`, then the same without its last words."""
    yield name
    while "_" in name:
        name = name.rpartition("_")[0]
        yield name


def _order(row: Tuned, cell: Cell) -> tuple[float, bool]:
    """Return what is least for the row to take: distance in rank, or the loss where it has none."""
    kind = method(cell.adapter)
    if kind.adapts and (kind.size or kind.arguments):
        return abs(math.log2(row.rank / cell.rank)), row.model != cell.model.name
    return math.inf if row.loss is None else row.loss, row.model != cell.model.name


def _tables(folder: Path | None) -> list[Path]:
    return sorted((folder or conf_dir() / "tuned").glob("*.csv"))


_read_before: dict[tuple[Path, int], list[Tuned]] = {}


def _read(path: Path) -> list[Tuned]:
    """Return the rows of a table; a plan asks thousands of times, so they are remembered."""
    mark = (path, path.stat().st_mtime_ns)
    if mark not in _read_before:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        try:
            _read_before[mark] = [
                Tuned(
                    **{name: r[name] for name in ("model", "dataset", "adapter")},
                    rank=int(r["rank"]),
                    lr=float(r["lr"]),
                    loss=float(r["loss"]) if r.get("loss") else None,
                    tried=int(r["tried"]) if r.get("tried") else None,
                    **{name: r.get(name) or usual for name, usual in AROUND.items()},
                )
                for r in lines
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: needs the columns {', '.join(COLUMNS)}") from error
    return _read_before[mark]

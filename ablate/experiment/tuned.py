"""Tuned learning rates: where `train.lr=tuned` finds its number.

A single learning rate would confound the adapter with its rate, so each adapter and rank has its
own on each data set: the one with the lowest loss on the completions of the validation split,
averaged over the base models of the micro world, on a seed that no report uses
(conf/study/tuning.yaml). The tables (`ablate.experiment.tuned_table`) are conf/tuned/*.csv and,
before those, the user's own, which `ablate tune --save` writes: tuned.csv of the working folder, or
the file that the setting `rates` names.

A cell that has no row of its own takes, in this order, the data set's shorter name
(micro_designed -> micro), the adapter's kind where it is named after it (mora_rotation -> mora),
and of the ranks tuned the nearest one on the scale of log2. What has no rank (full fine-tuning) is
one run under every rank, so it takes the rate that did best under any. A cell that finds no row
takes `default_lr`, and the plan, the record and the report call its rate untuned. A rate that was
given to an adapter and suits full fine-tuning (`is_full_rate`) they call that.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablate.adapters.optimizers import optimizer_of
from ablate.adapters.registry import method
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.experiment.tuned_table import Arm, Tuned, arm_of, read
from ablate.models.files import ModelFiles
from ablate.paths import check_file, check_name, conf_dir

FULL_RATE, FULL_WIDTH = 5e-5, 2000  # of full fine-tuning, at this width of a model
EXPONENT = {"Llama": 0.781, "Qwen": 0.0775}
ADAPTER_FACTOR = 10
OWN = Path("tuned.csv")  # the user's own table, in the working folder


class Rates:
    """The tables that give cells their rates, and what they gave."""

    def __init__(self, own: Path | None = None, *, folder: Path | None = None) -> None:
        """Take the user's own table, and the folder of the others instead of conf/tuned."""
        self.own = own
        self.folder = folder or conf_dir() / "tuned"
        self.used: dict[Tuned, None] = {}  # rows that gave a cell its rate

    def row(self, cell: Cell) -> Tuned | None:
        """Return the row that gives `cell` its learning rate; None where nothing was tuned for it.

        Raises:
            UserError: a table, or the cell's local model or data set, cannot be read.
        """
        tables = [*sorted(self.folder.glob("*.csv")), *([self.own] if self.own else [])]
        found = _fitting(read(tables), cell)
        if found is not None:
            self.used[found] = None
        return found

    def from_own(self) -> list[Tuned]:
        """Return the rows used that are the user's own."""
        mine = set(read([self.own])) if self.own else set()
        return [row for row in self.used if row in mine]


def own_table(setting: str | None) -> Path | None:
    """Return the user's own table: the file that `rates` names or tuned.csv, where there is one.

    Raises:
        UserError: the file that was named is not there.
    """
    if setting is None:
        return OWN if OWN.is_file() else None
    check_name("rates", setting)
    if not os.path.exists(setting):
        raise UserError(f"rates={setting}: no such file; ablate tune --save makes one")
    check_file("rates", setting)
    return Path(setting)


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


def is_full_rate(cell: Cell, files: ModelFiles) -> bool:
    """Return whether an adapter's rate is nearer to the default of full tuning than to its own.

    On a logarithmic scale, as rates are compared. The defaults are AdamW's: under an optimizer
    whose rates are others (Lion's are lower by a factor of 3 to 10) nothing is said.
    """
    if cell.is_base or not method(cell.adapter).adapts or not isinstance(cell.train.lr, float):
        return False
    if not optimizer_of(cell.optimizer)[0].adamw_rates:
        return False
    return cell.train.lr * math.sqrt(ADAPTER_FACTOR) < default_lr(cell, files)


def _fitting(rows: Sequence[Tuned], cell: Cell) -> Tuned | None:
    """Return the row for a cell: of its own name first, then of the nearest ones."""
    arm = arm_of(cell)
    models = cell.model.name, arm.model
    same = [r for r in rows if r.model in models and _content(r) == _content(arm)]
    same = [r for r in same if (r.init, r.optimizer) == (arm.init, arm.optimizer)]
    for dataset in _shorter(arm.dataset):
        for adapter in _names(cell):
            fitting = [r for r in same if (r.dataset, r.adapter) == (dataset, adapter)]
            if fitting:
                return min(fitting, key=lambda row: _order(row, cell))
    return None


def _content(of: Tuned | Arm) -> tuple[str, str]:
    return of.model_content, of.dataset_content


def _names(cell: Cell) -> Iterator[str]:
    """Yield the names under which a cell's adapter may have been tuned."""
    yield cell.adapter.name
    if cell.adapter.name.startswith(f"{cell.adapter.kind}_"):
        yield cell.adapter.kind


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

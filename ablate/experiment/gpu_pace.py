"""How long a run takes on a GPU: seconds of an H100, from speeds measured there. No torch.

    a forward pass          2 operations a parameter and token
    its backward pass       2 more, and 2 for each parameter of the base that trains
    recomputed blocks       2 more (`execution.gradient_checkpointing`)
    launching kernels       a step waits for the processor that launches them: small models do
    the optimizer           by its kind, a trained parameter; offloaded ones wait for the CPU
    scoring                 the operations of `pace.eval_flops`, in the precision of the weights

The constants are those of docs/benchmarks.md, measured with 16 rows a step at 1.1 billion
parameters and with 64 at 7 billion; the tests hold the four figures of 7 billion to a fifth. What
is far from these sizes, or in fp32, is an estimate, and so is all scoring: how long items are is
not known.
"""

import math
from dataclasses import dataclass

from ablate.adapters import registry
from ablate.config.schema import Cell
from ablate.experiment.amounts import tokens
from ablate.experiment.design import Named
from ablate.experiment.gpu_memory import computed_in, side_by_side
from ablate.experiment.known import about_steps

CARD = "H100"
RATE = {2: 360e12, 4: 40e12}  # operations a second, by the bytes of a number
LAUNCH = {True: 0.0045, False: 0.006}  # seconds a block and pass; by whether the base trains
LANES = 2.0  # times as long where cells train side by side
# Seconds of a step of the optimizer, a billion parameters of the base that train.
OPTIMIZER = {
    "adamw_8bit": 0.126, "adafactor": 0.037, "adamw_bnb_8bit": 0.035, "paged_adamw": 0.028,
    "paged_adamw_8bit": 0.037,
}  # fmt: skip
USUAL_OPTIMIZER = 0.016
OFFLOADED = 0.32  # with 16 threads
MEASURED = (0.8e9, 9e9)  # parameters between which training was measured, in bf16


@dataclass(frozen=True, slots=True)
class GpuSeconds:
    """What a run takes on one GPU, in seconds."""

    train: float = 0.0
    score: float = 0.0

    @property
    def total(self) -> float:
        """Training and scoring together."""
        return self.train + self.score


def gpu_seconds(named: Named, scoring: float, *, rows: int, trains: bool = True) -> GpuSeconds:
    """Return what a run takes on one GPU.

    Args:
        named: the run.
        scoring: the operations of its scoring.
        rows: examples of a micro-batch.
        trains: whether it is trained, or only scored.
    """
    score = scoring / RATE[scored_in(named.cell)]
    return GpuSeconds(_training(named, rows) if trains else 0.0, score)


def is_measured(named: Named) -> bool:
    """Return whether training was measured at about the size and precision of a run."""
    low, high = MEASURED
    near = low <= named.identity.files.parameters <= high
    return named.cell.is_base or (near and computed_in(named.cell) == 2)


def scored_in(cell: Cell) -> int:
    """Return the bytes of a number that a cell is scored in: 2 or 4."""
    return 2 if cell.evaluate.precision == "bf16" or cell.base_precision == "bf16" else 4


def _training(named: Named, rows: int) -> float:
    cell, files, data = named.cell, named.identity.files, named.identity.data
    if cell.is_base:
        return 0.0
    steps = max(1, about_steps(cell, data))
    again = cell.execution.gradient_checkpointing
    trained = registry.trained_of_base(cell, files)
    operations = (2 * files.parameters * (2 + again) + 2 * trained) * tokens(cell, data) / steps
    computing = operations / RATE[computed_in(cell)]
    cells = side_by_side(cell)
    every = cell.train.batch_size if cell.train.batch_unit == "examples" else rows
    passes = math.ceil(every / max(1, rows)) * (1 + again / 3)
    launching = LAUNCH[bool(trained)] * files.blocks * passes
    launching *= LANES / cells if cells > 1 else 1.0
    return steps * (max(computing, launching) + _updating(cell, trained))


def _updating(cell: Cell, trained: int) -> float:
    """Return the seconds of one step of the optimizer."""
    away = cell.execution.offload_optimizer
    rate = OFFLOADED if away else OPTIMIZER.get(cell.optimizer.kind, USUAL_OPTIMIZER)
    return rate * trained / 1e9

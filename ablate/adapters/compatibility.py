"""Which levels of init, optimizer, precision and layout an adapter supports. No torch.

PEFT falls back silently where a combination has no meaning: KaSA on 4-bit weights becomes plain
LoRA, LoRA-FA on VeRA becomes plain AdamW. A cell whose name promises more than it does is worse
than a missing one, so `check` refuses it with the reason, before anything is trained.
"""

import importlib.util
from collections.abc import Iterable

from ablate.adapters import registry
from ablate.adapters.init import spec as init
from ablate.adapters.method import UNQUANTISED, Shapes
from ablate.adapters.optimizers import check_offload, optimizer_of
from ablate.config.schema import Cell
from ablate.errors import UserError


def check(cell: Cell, *, architecture: str, shapes: Shapes | None = None) -> None:
    """Refuse a combination of factor levels that the cell's adapter does not support.

    Args:
        cell: the cell; its adapter's options are checked by `registry.check`.
        architecture: of the base model, as transformers names it.
        shapes: of its linear layers; without them, conditions on sizes are not checked.

    Raises:
        UserError: one line with the setting, the reason and what is allowed.
    """
    init.init_of(cell)
    optimizer_of(cell.optimizer)
    if not cell.is_base:
        row = registry.method(cell.adapter)
        _check_level(cell, "init", cell.init.kind, row.inits)
        _check_level(cell, "optimizer", cell.optimizer.kind, row.optimizers)
        _check_level(cell, "base_precision", cell.base_precision, row.precisions)
        adapted = None if shapes is None else registry.adapted(cell, shapes)
        init.check(cell, architecture=architecture, adapted=adapted)
        _check_method(cell, architecture)
    _check_quantised(cell)
    _check_optimizer(cell)


def _check_level(cell: Cell, factor: str, level: str, allowed: tuple[str, ...]) -> None:
    if level not in allowed:
        raise UserError(
            f"{factor}={level}: adapter={cell.adapter.name} does not support it; with it "
            f"{factor} must be {' or '.join(allowed)}"
        )


def _check_method(cell: Cell, architecture: str) -> None:
    row = registry.method(cell.adapter)
    if architecture.startswith("GPT2") and not row.conv1d:
        raise UserError(
            f"adapter={cell.adapter.name}: does not support GPT-2's transposed layers "
            f"(model={cell.model.name})"
        )
    if cell.execution.layout == "packed" and not row.packs:
        raise UserError(
            f"execution.layout=packed: with adapter={cell.adapter.name} packed examples would see "
            "each other; use padded or auto"
        )
    if row.refuses and (reason := row.refuses(cell, registry.settings(cell.adapter))):
        raise UserError(reason)


def _check_quantised(cell: Cell) -> None:
    if cell.base_precision not in UNQUANTISED:
        _check_bitsandbytes(cell, f"base_precision={cell.base_precision}", UNQUANTISED)


def _check_optimizer(cell: Cell) -> None:
    row = optimizer_of(cell.optimizer)[0]
    if row.bitsandbytes and not cell.is_base:
        _check_bitsandbytes(cell, f"optimizer={cell.optimizer.name}", ("adamw", "adamw_8bit"))
    if cell.execution.offload_optimizer and not cell.is_base:
        check_offload(cell.optimizer)


def _check_bitsandbytes(cell: Cell, setting: str, others: Iterable[str]) -> None:
    if cell.execution.device == "cpu":
        raise UserError(
            f"{setting}: needs a GPU, and execution.device=cpu; use {' or '.join(others)}"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f'{setting}: needs bitsandbytes, which is not installed; pip install "ablate[gpu]"'
        )


def merges(cell: Cell) -> bool:
    """Return whether the trained change can be merged into the base's weights exactly."""
    return registry.method(cell.adapter).merges and cell.base_precision in UNQUANTISED

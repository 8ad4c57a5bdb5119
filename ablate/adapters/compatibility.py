"""Which levels of init, optimizer, precision and layout an adapter supports. No torch.

PEFT falls back silently where a combination has no meaning: KaSA on 4-bit weights becomes plain
LoRA, LoRA-FA on VeRA becomes plain AdamW. A cell whose name promises more than it does is worse
than a missing one, so `check` refuses it with the reason, before anything is trained.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterable

from ablate.adapters import devices, registry
from ablate.adapters.init import spec as init
from ablate.adapters.method import UNQUANTISED, Shapes
from ablate.adapters.optimizers import check_offload, optimizer_of
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.models.gpu import has_driver
from ablate.models.gpu_slots import check_devices

COMPILERS = ("g++", "clang++")


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
    _check_device(cell)
    devices.check(cell)
    if cell.execution.offload_optimizer and not cell.is_base:
        check_offload(cell.optimizer)


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


def bitsandbytes_for(cell: Cell) -> str:
    """Return the setting because of which a cell needs bitsandbytes and a GPU; "" for none."""
    if cell.base_precision not in UNQUANTISED:
        return f"base_precision={cell.base_precision}"
    needs = optimizer_of(cell.optimizer)[0].bitsandbytes and not cell.is_base
    return f"optimizer={cell.optimizer.name}" if needs else ""


def lacking_here(cells: Iterable[Cell]) -> list[str]:
    """Return what this machine lacks for cells, a line for each setting that needs it.

    Cells can be planned on a machine that lacks something; `sweep` and `run` refuse them.
    """
    settings: dict[str, None] = {}
    compiled = False
    most = 1  # devices of a cell that may use GPUs
    for cell in cells:
        most = max(most, cell.execution.devices if cell.execution.device != "cpu" else 1)
        settings[bitsandbytes_for(cell)] = None
        compiled = compiled or (cell.execution.compile and not cell.is_base)
    found = list(filter(None, map(_lacking, settings)))
    try:
        check_devices(most)
    except UserError as error:
        found.append(str(error))
    if compiled and not any(map(shutil.which, (os.environ.get("CXX", "g++"), *COMPILERS))):
        found.append(
            f"execution.compile=true: needs a C++ compiler, and there is none here; install "
            f"{' or '.join(COMPILERS)}"
        )
    return found


def _lacking(setting: str) -> str:
    if setting and importlib.util.find_spec("bitsandbytes") is None:
        return (
            f'{setting}: needs bitsandbytes, which is not installed here; pip install "ablate[gpu]"'
        )
    if setting and not has_driver():
        return f"{setting}: needs a GPU, and there is none here"
    return ""


def _check_device(cell: Cell) -> None:
    setting = bitsandbytes_for(cell)
    if setting and cell.execution.device == "cpu":
        others = UNQUANTISED if setting.startswith("base") else ("adamw", "adamw_8bit")
        raise UserError(
            f"{setting}: needs a GPU, and execution.device=cpu; use {' or '.join(others)}"
        )


def merges(cell: Cell) -> bool:
    """Return whether the trained change can be merged into the base's weights exactly."""
    return registry.method(cell.adapter).merges and cell.base_precision in UNQUANTISED

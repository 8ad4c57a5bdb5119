"""Which cells can be computed on several devices, and which then draw other numbers. No torch.

With `execution.sharding=none` every device has the whole model and the same gradient, so whatever a
method does with them it does alike everywhere. With full a device has a part of every weight: what
looks at a whole weight between steps cannot be done.
"""

from ablate.adapters import registry
from ablate.adapters.init.spec import init_of
from ablate.adapters.method import UNQUANTISED
from ablate.adapters.optimizers import optimizer_of
from ablate.config.schema import Cell
from ablate.errors import UserError

ACTING = ("rank_dropout", "neftune", "minkowski", "kl")  # between or inside the blocks of a model


def check(cell: Cell) -> None:
    """Refuse a cell that cannot be computed on the devices that it asks for.

    Raises:
        UserError: one line with the setting, the reason and what is allowed.
    """
    run = cell.execution
    if run.devices == 1 or cell.is_base:
        return
    if cell.loss.scope == "microbatch":
        raise UserError(
            f"execution.devices={run.devices}: not with loss.scope=microbatch, whose loss depends "
            "on the split; use scope batch or example"
        )
    if run.sharding == "full" and (setting := _uncut(cell)):
        raise UserError(
            f"execution.sharding=full: not with {setting}, which needs whole weights; use "
            "execution.sharding=none or another level"
        )


def _uncut(cell: Cell) -> str:
    """Return the setting because of which a cell needs whole weights while it trains."""
    method, init, run = registry.method(cell.adapter), init_of(cell)[0], cell.execution
    acting = [name for name in ACTING if getattr(cell.regulariser, name)]
    found = {
        f"adapter={cell.adapter.name}": bool(method.hooks) or not method.shards,
        f"init={cell.init.name}": method.adapts and not init.shards,
        f"optimizer={cell.optimizer.name}": not optimizer_of(cell.optimizer)[0].shards,
        f"regulariser={cell.regulariser.name}": bool(acting),
        f"base_precision={cell.base_precision}": cell.base_precision not in UNQUANTISED,
        "execution.offload_optimizer=true": run.offload_optimizer,
        "execution.compile=true": run.compile,
    }
    return next((setting for setting, holds in found.items() if holds), "")


def draws_by_device(cell: Cell, *, base_drops: bool) -> bool:
    """Return whether each device draws random numbers of its own for its share of the rows.

    The numbers are then other ones than those of one device, so it is another run. Masks over the
    rank are drawn for all rows at once, and are the same on all.

    Args:
        cell: the cell.
        base_drops: whether the configuration of its base asks for dropout.
    """
    if cell.execution.devices == 1 or cell.is_base:
        return False
    own = registry.settings(cell.adapter).get("dropout")
    return bool(own or cell.regulariser.attention_dropout or cell.regulariser.neftune or base_drops)

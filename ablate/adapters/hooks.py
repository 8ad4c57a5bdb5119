"""The training hooks of a cell's adapter, as its row of the registry names them."""

from ablate.adapters import registry
from ablate.adapters.method import load_attribute
from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.hooks import NO_HOOKS, Hooks


def hooks(cell: Cell, *, streams: Streams) -> Hooks:
    """Return the hooks of the cell's adapter; most methods have none."""
    row = registry.method(cell.adapter)
    if not row.hooks:
        return NO_HOOKS
    made: Hooks = load_attribute(row.hooks)(registry.settings(cell.adapter), streams)
    return made

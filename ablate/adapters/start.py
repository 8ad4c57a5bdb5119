"""What the start of a cell's adapter is, from its method and its init. No torch."""

from ablate.adapters import registry
from ablate.adapters.init.spec import init_of
from ablate.adapters.method import holds
from ablate.config.schema import Cell


def at_base(cell: Cell) -> bool:
    """Return whether the first outputs equal the base's."""
    init, options = init_of(cell)
    return registry.method(cell.adapter).starts_at_base and holds(init.starts_at_base, options)


def changes_base(cell: Cell) -> bool:
    """Return whether a component is removed from the base's weights."""
    init, options = init_of(cell)
    return registry.method(cell.adapter).changes_base or holds(init.changes_base, options)


def decays_to_start(cell: Cell) -> bool:
    """Return whether weight decay acts on the distance of the adapter from its start.

    It does where the trained matrices of a model at its base are not zero: decay towards zero would
    pull the model away from the base, at zero gradient too.
    """
    if not cell.train.weight_decay:
        return False
    method, init = registry.method(cell.adapter), init_of(cell)[0]
    starts_nonzero = holds(method.starts_nonzero, registry.settings(cell.adapter))
    return starts_nonzero or init.starts_nonzero or (changes_base(cell) and at_base(cell))

"""How large a cell's trained weights and checkpoints are on disk, in closed form. No torch."""

from ablate.adapters import registry
from ablate.adapters.optimizers import optimizer_of
from ablate.adapters.registry import Sizes
from ablate.adapters.start import changes_base
from ablate.config.schema import Cell


def weights_bytes(cell: Cell, sizes: Sizes) -> int:
    """Return the size of what `adapters.weights` writes for a cell.

    An adapter is stored with the numbers that it needs beside the trained ones, and twice as large
    where a component of the base's weights was moved into it; a model whose own weights trained is
    stored whole.
    """
    row = registry.method(cell.adapter)
    if cell.is_base:
        return 0
    if row.trains_base:
        return sizes.parameters * (2 if cell.base_precision == "bf16" else 4)
    shapes, options = registry.adapted(cell, sizes.linear_shapes), registry.settings(cell.adapter)
    own = row.parameters_at(cell.rank, shapes, options)  # of both factors, whichever train
    own += row.stored(cell.rank, shapes, options) if row.stored else 0
    own += sizes.norm_parameters if row.trains_norms else 0
    ends = sizes.embedding_parameters if cell.embeddings == "trained" else 0
    return 4 * (own * (2 if changes_base(cell) else 1) + ends)


def checkpoints_bytes(cell: Cell, sizes: Sizes) -> float:
    """Return the most that the checkpoints of a run take while it trains, one being written.

    A checkpoint holds what trains, the optimizer's moments and, of 16-bit weights that have them,
    fp32 masters; `execution.checkpoints_kept` of them stay.
    """
    if cell.is_base or cell.execution.checkpoint_minutes is None:
        return 0.0
    row, base = optimizer_of(cell.optimizer)[0], registry.trained_of_base(cell, sizes)
    half = cell.base_precision == "bf16"
    masters = 4 if half and row.rounding == "master" else 0
    of_base = (2 if half else 4) + masters + row.state
    own = (4 + row.state) * (registry.trainable_parameters(cell, sizes) - base)
    return (cell.execution.checkpoints_kept + 1) * (of_base * base + own)

"""How large a cell's trained weights are on disk, in closed form. No torch."""

from ablate.adapters import registry
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

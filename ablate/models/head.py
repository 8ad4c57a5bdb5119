"""The output layer at chosen positions alone: the logits of all others are never made.

Shapes: B rows, L positions, K chosen positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def head_at(model: Any, index_K: Tensor, length: int) -> Iterator[None]:
    """Pass only the flat positions `index_K` of (B, L) to the output layer, as one row (1, K, D).

    The positions are selected at the input of the output layer, inside the model's own forward, so
    that whatever a model does to its logits afterwards (softcap, scaling) still applies.

    Args:
        model: its logits, made in the block, are those of `index_K`; see `chosen`.
        index_K: into the flattened ids.
        length: L; of a longer row, behind virtual tokens, the last L positions count.
    """

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BLD = args[0][:, -length:]
        return (hidden_BLD.flatten(0, 1)[index_K].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def chosen(logits_BLV: Tensor, index_K: Tensor, length: int) -> Tensor:
    """Return the logits (K, V) of the positions from what a model returned under `head_at`."""
    if logits_BLV.shape[:2] == (1, len(index_K)):
        return logits_BLV[0]
    return logits_BLV[:, -length:].flatten(0, 1)[index_K]  # of a model without a head of its own

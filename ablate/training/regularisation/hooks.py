"""The regularisers of a cell as hooks of the training loop.

    minkowski          weight * (sum |w - w0|^p)^(1/p)              once per step
    kl                 weight * sum_t u_t KL_t(base || model) / W   with u and W of `training.loss`
    neftune            embedded tokens + U(-1, 1) alpha / sqrt(L D)
    rank_dropout       B diag(mask) A, one mask per matrix and step
    attention_dropout  the model's own dropout of attention weights

For all but the last, training does not depend on how a step is split or laid out. Changes of a
module apply in training mode only and are removed at the end, so a score is that of the clean
model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn

from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.hooks import Hooks, combine
from ablate.training.regularisation.base_kl import kl
from ablate.training.regularisation.dropout import attention_dropout, rank_dropout
from ablate.training.regularisation.embedding_noise import neftune
from ablate.training.regularisation.weight_distance import minkowski

# By the regulariser's setting. `kl` comes first: it may copy the model, before it is changed.
REGULARISERS: Mapping[str, Callable[[Any, Cell, Streams], AbstractContextManager[Hooks]]] = {
    "kl": kl,
    "minkowski": minkowski,
    "neftune": neftune,
    "rank_dropout": rank_dropout,
    "attention_dropout": attention_dropout,
}


@contextmanager
def regularised(model: nn.Module, cell: Cell, *, streams: Streams) -> Iterator[Hooks]:
    """Run a block with the cell's regularisers on `model`; yields the hooks to train with.

    Args:
        model: the base with its adapter, not yet trained.
        cell: the cell, with its regulariser's settings resolved.
        streams: noise and masks draw from them.

    Raises:
        UserError: the model does not support a regulariser.
    """
    with ExitStack() as stack:
        chosen = [
            stack.enter_context(make(model, cell, streams))
            for name, make in REGULARISERS.items()
            if getattr(cell.regulariser, name)
        ]
        yield combine(*chosen)

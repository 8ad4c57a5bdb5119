"""Which regularisers an adapter supports, and which are a setting of another part. No torch.

Weight decay, label smoothing and adapter dropout are settings of the optimizer, the loss and the
adapter; `left` returns a regulariser without them. The others act during training and are in
`training.regularisation`.
"""

import functools
from dataclasses import replace
from typing import Any

from ablate.adapters import registry
from ablate.adapters.method import Condition, holds
from ablate.config.schema import Cell, Regulariser
from ablate.errors import UserError


@functools.lru_cache(maxsize=256)
def left(asked: Regulariser) -> Regulariser:
    """Return what acts during training: `asked` itself, if it names no other part's setting."""
    power = asked.minkowski_p if asked.minkowski else Regulariser().minkowski_p
    bare = replace(
        asked, weight_decay=None, label_smoothing=None, adapter_dropout=None, minkowski_p=power
    )
    return asked if bare == asked else bare


def options_with_dropout(cell: Cell, share: float) -> dict[str, Any]:
    """Return the options of the cell's adapter under a dropout of `share`.

    Raises:
        UserError: the adapter has no dropout.
    """
    if "dropout" not in registry.method(cell.adapter).options:
        raise _refusal(cell, "adapter_dropout", "has no dropout of its own", "null")
    return {**cell.adapter.options, "dropout": share}


def check(cell: Cell) -> None:
    """Refuse a regulariser that the cell's adapter would leave without effect.

    Raises:
        UserError: one line with the setting, the reason and what is allowed.
    """
    asked, row = cell.regulariser, registry.method(cell.adapter)
    if asked.rank_dropout and not row.has_factors:
        raise _refusal(cell, "rank_dropout", "has no factors A and B with a rank between them")
    if asked.minkowski and not (row.trains_base or _condition(cell, row.has_delta)):
        raise _refusal(cell, "minkowski", "adds no matrix whose size can be measured")
    if asked.weight_decay and trains_vectors(cell):
        raise _refusal(cell, "weight_decay", "trains vectors only, which do not decay", "0 or null")


def trains_vectors(cell: Cell) -> bool:
    """Return whether all that trains is stored as vectors, which have no weight decay."""
    return cell.embeddings == "frozen" and _condition(
        cell, registry.method(cell.adapter).vectors_only
    )


def _condition(cell: Cell, condition: Condition) -> bool:
    return holds(condition, registry.settings(cell.adapter))


def _refusal(cell: Cell, setting: str, reason: str, allowed: str = "0") -> UserError:
    return UserError(
        f"regulariser.{setting}={getattr(cell.regulariser, setting)}: "
        f"adapter={cell.adapter.name} {reason}; with it {setting} must be {allowed}"
    )

"""What an adapter does during training beside being trained: penalties, restarts, schedules."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ablate.adapters import registry
from ablate.adapters.lora import adalora
from ablate.adapters.method import Options
from ablate.adapters.mora import restarts
from ablate.adapters.three_factor import lamda
from ablate.config.schema import Cell
from ablate.streams import Streams
from ablate.training.hooks import NO_HOOKS, Hooks, Moment

Acting = Callable[[Options, Streams], Hooks]


def _kasa(options: Options, streams: Streams) -> Hooks:
    """Return KaSA's two penalties as a term of the loss (arXiv 2412.06071, equations 9 to 12)."""

    def extra_loss(moment: Moment) -> Tensor | float:
        if not moment.last:
            return 0.0
        penalty: Tensor | float = moment.model.base_model._get_kasa_loss()  # type: ignore
        return penalty

    return Hooks(extra_loss=extra_loss)


# By kind; a kind that is not here needs no hook.
ACTING: Mapping[str, Acting] = {
    "remora": restarts.hooks,
    "relora": restarts.hooks,
    "lamda": lamda.hooks,
    "adalora": adalora.hooks,
    "kasa": _kasa,
}


def hooks(cell: Cell, *, streams: Streams) -> Hooks:
    """Return the hooks of the cell's adapter."""
    acting = ACTING.get(cell.adapter.kind)
    return acting(registry.settings(cell.adapter), streams) if acting else NO_HOOKS

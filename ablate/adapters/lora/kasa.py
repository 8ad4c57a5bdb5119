"""KaSA (arXiv 2412.06071) during training: its two penalties as a term of the loss."""

from typing import Any

from torch import Tensor

from ablate.adapters.options import Options
from ablate.streams import Streams
from ablate.training.hooks import Hooks, StepContext


def hooks(options: Options, streams: Streams) -> Hooks:
    """Return the hooks that add KaSA's penalties (equations 9 to 12) once per step.

    Args:
        options: of the method; PEFT reads `beta` and `gamma` from its configuration.
        streams: not used, nothing is drawn.
    """

    def extra_loss(context: StepContext) -> Tensor | float:
        if not context.last:
            return 0.0
        base_model: Any = context.model.base_model
        penalty: Tensor | float = base_model._get_kasa_loss()
        return penalty

    return Hooks(extra_loss=extra_loss)

"""KaSA (arXiv 2412.06071) during training: its two penalties as a term of the loss."""

from typing import Any

from torch import Tensor

from ablate.adapters.options import Options
from ablate.streams import Streams
from ablate.training.hooks import Hooks, weight_penalty


def hooks(options: Options, streams: Streams) -> Hooks:
    """Return the hooks that add KaSA's penalties (equations 9 to 12) once per step.

    Args:
        options: of the method; PEFT reads `beta` and `gamma` from its configuration.
        streams: not used, nothing is drawn.
    """

    def penalty(model: Any) -> Tensor | float:
        found: Tensor | float = model.base_model._get_kasa_loss()
        return found

    return weight_penalty(penalty)

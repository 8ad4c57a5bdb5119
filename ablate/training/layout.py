"""How rows are laid out in training, and by which attention: the fastest that is right."""

from dataclasses import replace
from typing import Any

from ablate.config.schema import Execution, Train
from ablate.errors import UserError
from ablate.models.load import device_of
from ablate.models.packed import keeps_packed_apart, kernel_serves, takes_segments
from ablate.objective import Objective
from ablate.training.regularisation.dropout import draws, drops_attention


def chosen(
    model: Any, objective: Objective, execution: Execution, *, settings: Train, longest: int
) -> tuple[Execution, bool]:
    """Return `execution` with its layout chosen, and whether attention is by segments.

    `auto` packs on a GPU where one kernel computes the attention of all examples (in 16 bits), and
    on a CPU where nothing is dropped (draws would be others): with lengths like Alpaca's a step
    takes 0.6 to 0.8 of the time of padded rows. On a GPU padded rows take attention by segments
    too, which makes no mask.

    Args:
        model: the model with its adapter, on its device.
        objective: the objective.
        execution: layout and device as asked for.
        settings: what is computed in.
        longest: length of the longest example.

    Raises:
        UserError: packed rows are asked for, and would change the loss.
    """
    cuda = device_of(execution.device).type == "cuda"
    if not cuda and execution.layout == "padded":
        return execution, False
    segments = takes_segments(model, longest=longest, precision=settings.precision)
    if execution.layout == "packed":
        if problem := _problem(model, objective, segments):
            raise UserError(f"execution.layout=packed: {problem}; use padded or auto")
        return execution, segments
    fast = kernel_serves(model, settings.precision) if cuda else not draws(model)
    may = segments and not drops_attention(model) and objective.scope != "microbatch"
    packed = execution.layout == "auto" and fast and may
    return replace(execution, layout="packed" if packed else "padded"), segments and (
        cuda or packed
    )


def _problem(model: Any, objective: Objective, segments: bool) -> str | None:
    if objective.scope == "microbatch":
        return "not with loss.scope=microbatch, the mean over micro-batches of padded rows"
    if not (segments or keeps_packed_apart(model)):
        return "with this model and adapter, packed examples would see each other"
    return None

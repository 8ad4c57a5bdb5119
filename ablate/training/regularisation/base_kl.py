"""Distance to the base's predictions: weight * sum_t u_t KL_t(base || model) / W.

Shapes: K targets with a weight, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.config.schema import Cell
from ablate.models.attention import attends_by_segments, by_segments
from ablate.streams import Streams
from ablate.training.distributed import processes
from ablate.training.head import weighted_sum
from ablate.training.head_terms import Divergence
from ablate.training.hooks import Hooks, StepContext
from ablate.training.parameters import base_parameters
from ablate.training.predict import HeadInput, Predicted, observed, predict
from ablate.training.regularisation.weight_distance import exact


@contextmanager
def kl(model: Any, cell: Cell, streams: Streams) -> Iterator[Hooks]:
    """Yield hooks that add `weight * sum_t u_t KL_t(base || model) / W`, over the whole vocabulary.

    The weights u_t and the divisor W are those of the loss. The model's logits are those of its
    loss. The base's need one more forward pass without dropout, noise or gradient: of the model
    with its adapter disabled, or, where the base itself trains, of a copy with its start, which
    shares all weights that do not train.

    Args:
        model: the base with its adapter, at its start.
        cell: the cell; `kl` (the weight) of its regulariser is read.
        streams: not used, nothing is drawn.
    """
    base = model
    if base_parameters(model):
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        base = copy.deepcopy(model, shared).requires_grad_(False)
    kept: list[Predicted] = []

    def keep(found: Predicted) -> None:
        kept[:] = [found]

    def extra_loss(context: StepContext) -> Tensor:
        attention = by_segments(base) if attends_by_segments(model) else nullcontext()
        with torch.no_grad(), _untuned(base), attention:
            from_base = predict(base, context.work)
        # Devices average their gradients, but this is a part of a sum over devices.
        share = cell.regulariser.kl * processes() / context.divisor
        return share * divergence(from_base, kept.pop(), context.work.weights_K)

    with observed(model, keep):
        # What a pass that ran out of memory left here would hold all of its activations.
        yield Hooks(extra_loss=extra_loss, before_forward=lambda context: kept.clear())


def divergence(base: Predicted, tuned: Predicted, weights_K: Tensor) -> Tensor:
    """Return sum_t u_t KL_t(base || model) (), differentiable in what the tuned model predicts."""
    if isinstance(base, Tensor) and isinstance(tuned, Tensor):
        return (divergences(base, tuned) * weights_K).sum()
    # A copy's head is of the same kind as its original's.
    assert isinstance(base, HeadInput)
    assert isinstance(tuned, HeadInput)
    term = Divergence(base.hidden_KD, base.head)
    return weighted_sum(tuned.hidden_KD, tuned.head, term=term, weights_K=weights_K).total


def divergences(base_KV: Tensor, logits_KV: Tensor) -> Tensor:
    """Return KL(base || model) (K,) of logits (K, V), in nats, computed in at least 32 bits."""
    logs_KV = F.log_softmax(exact(logits_KV), dim=-1)
    base_logs_KV = F.log_softmax(exact(base_KV), dim=-1)
    return F.kl_div(logs_KV, base_logs_KV, reduction="none", log_target=True).sum(-1)


@contextmanager
def _untuned(model: Any) -> Iterator[None]:
    """Run a block with `model` in evaluation mode and its adapter disabled; restore both after."""
    modes = {module: module.training for module in model.modules()}
    trains = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    try:
        with model.disable_adapter() if hasattr(model, "peft_config") else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        model.requires_grad_(
            False
        )  # PEFT enables an adapter with a gradient for all of its parameters
        for parameter in trains:
            parameter.requires_grad_(True)

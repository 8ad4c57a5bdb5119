"""What a model predicts at the targets: its logits there, or what its output layer would get.

A model of which logits = scale * head(hidden states) needs no logits (K, V): `training.head` makes
the loss from the hidden states. Whether a model is one is found out on its first forward pass: its
head returns numbers known beforehand, and the model must return their multiple. A model that does
more (softcap) or whose head is no plain linear layer (an adapter on it) predicts logits.

Shapes: B rows, L positions, K targets with a weight, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ablate.models.head import chosen, head_at
from ablate.models.packed import inputs
from ablate.training.head_terms import Head
from ablate.training.weighed import Weighed

# From this many logits (K * V) on, they are not kept. Tiles take 0.6 to 1.0 of the time on a CPU,
# but micro models stay below: their numbers stay those of `F.cross_entropy` over all targets.
TILED_FROM = 2**24

_scales: WeakKeyDictionary[nn.Module, float | None] = WeakKeyDictionary()
_observers: WeakKeyDictionary[nn.Module, Callable[["Predicted"], None]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class HeadInput:
    """The hidden states at the targets, differentiable, and the head that they are the input of."""

    hidden_KD: Tensor
    head: Head


Predicted = Tensor | HeadInput  # logits (K, V), or what gives them


@contextmanager
def observed(model: nn.Module, observer: Callable[[Predicted], None]) -> Iterator[None]:
    """Call `observer` with each prediction of `model` in training, while this block runs."""
    _observers[model] = observer
    try:
        yield
    finally:
        del _observers[model]


def predict(model: Any, work: Weighed) -> Predicted:
    """Return the logits of the targets with a weight or, where they are many, the head's input."""
    found: Predicted | None = head_input(model, work) if _large(model, work) else None
    if found is None:
        found = logits_of(model, work)
    observer = _observers.get(model)
    if observer and model.training and torch.is_grad_enabled():
        observer(found)
    return found


def logits_of(model: Any, work: Weighed) -> Tensor:
    """Return the logits (K, V) of the targets with a weight, and of no other position.

    The positions are selected at the input of the output layer, inside the model's own forward, so
    that whatever a model does to its logits afterwards (softcap, scaling) still applies, and the
    hooks of adapters and of sharding run. Rows are padded on the right and attention is causal, so
    no token sees padding and no mask is given; with a mask or a cache, packed examples would see
    each other.
    """
    with head_at(model, work.index_K, work.ids_BL.shape[1]):
        logits_BLV = _forward(model, work)
    return chosen(logits_BLV, work.index_K, work.ids_BL.shape[1])


def head_input(model: Any, work: Weighed) -> HeadInput | None:
    """Return the input of the head at the targets; None if the logits are not a multiple of it.

    The model's own forward runs as in `logits_of`, but its head multiplies nothing.
    """
    head = _plain_head(model)
    if head is None or _scales.get(model, 1.0) is None:
        return None
    known_11V = _known_logits(head)
    with head_at(model, work.index_K, work.ids_BL.shape[1]), _returning(head, known_11V) as seen:
        logits_11V = _forward(model, work)
    if model not in _scales:
        _scales[model] = _scale(known_11V, logits_11V) if len(seen) == 1 else None
    scale = _scales[model]
    return None if scale is None else HeadInput(seen[0], Head(head.weight, head.bias, scale))


def _large(model: Any, work: Weighed) -> bool:
    """Return whether the targets' logits are too many to be kept."""
    head = model.get_output_embeddings()
    return isinstance(head, nn.Linear) and len(work.index_K) * head.out_features >= TILED_FROM


def _forward(model: Any, work: Weighed) -> Tensor:
    output = model(**inputs(model, work.ids_BL, work.positions_BL, work.bounds))
    logits: Tensor = output.logits
    return logits


def _plain_head(model: Any) -> nn.Linear | None:
    """Return the output layer if it is a linear layer whose weight is an ordinary tensor.

    A subclass (an adapter, a parametrisation, a quantised layer), a forward that something has put
    in the place of its own, and a sharded weight do more than one product.
    """
    head = model.get_output_embeddings()
    plain = type(head) is nn.Linear and "forward" not in vars(head)
    return head if plain and type(head.weight) is nn.Parameter else None


@contextmanager
def _returning(head: nn.Linear, known_11V: Tensor) -> Iterator[list[Tensor]]:
    """Let `head` return `known_11V`; yield the list of the inputs (K, D) that it is called with."""
    seen: list[Tensor] = []

    def forward(hidden_1KD: Tensor) -> Tensor:
        seen.append(hidden_1KD[0])
        return known_11V

    head.forward = forward  # type: ignore[assignment,method-assign]
    try:
        yield seen
    finally:
        del head.forward


def _known_logits(head: nn.Linear) -> Tensor:
    """Return one row of logits (1, 1, V): powers of two of both signs, from 1/2 to 1,024.

    A multiple of them is exact in any precision, and a softcap would change the large ones.
    """
    number_V = torch.arange(head.out_features, device=head.weight.device)
    sizes_V = torch.exp2(number_V.remainder(12).double() - 1)
    return torch.where(number_V.remainder(5) < 2, -sizes_V, sizes_V)[None, None]


def _scale(known_11V: Tensor, logits_11V: Tensor) -> float | None:
    """Return s where `logits_11V` is s times `known_11V`, else None."""
    if logits_11V.shape != known_11V.shape:
        return None
    scale = float(logits_11V[0, 0, 0]) / float(known_11V[0, 0, 0])
    expected_11V = (known_11V * scale).to(logits_11V.dtype)
    return scale if scale and torch.equal(logits_11V, expected_11V) else None

"""The losses that `training.head` sums, as functions of a tile of logits, and the output layer.

Shapes: K targets with a weight, C targets of a tile, V vocabulary, D hidden size.
"""

import functools
import importlib.util
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.training.token_rules import Ruling

# What turns a tile of logits into losses and gradient. Triton reads and writes it in place, in two
# passes; PyTorch's operations need two more tiles in 32 bits. Liger's tiles (V / D of them) are so
# small that its products are slow where a vocabulary is large.
TRITON_ON = ("cuda",)


@dataclass(frozen=True, slots=True)
class Head:
    """An output layer: logits = scale * (hidden weight^T + bias)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0

    def to(self, dtype: torch.dtype) -> "Head":
        """Return it, detached, in another precision."""
        bias_V = None if self.bias_V is None else self.bias_V.detach().to(dtype)
        return replace(self, weight_VD=self.weight_VD.detach().to(dtype), bias_V=bias_V)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Return the logits (C, V) of hidden states in the head's precision."""
        logits_CV = F.linear(hidden_CD, self.weight_VD, self.bias_V)
        return logits_CV if self.scale == 1.0 else logits_CV.mul_(self.scale)


class Tile(NamedTuple):
    """What a term makes of a tile of logits."""

    losses_C: Tensor
    gradient_CV: Tensor  # times the factors; without factors it has no meaning
    norms_C: Tensor | None = None  # of each target's gradient, without its factor; if asked for
    values_C: Tensor | None = None  # what is summed, where a token rule makes it of the losses


class Term(Protocol):
    """A loss per target that is a function of its logits alone."""

    def to(self, dtype: torch.dtype) -> "Term":
        """Return it with what it holds of a head in another precision."""

    def tile(self, logits_CV: Tensor, rows: slice, factors_C: Tensor | None) -> Tile:
        """Return what is made of a tile's logits, which may be overwritten.

        `factors_C` is what each target's gradient is multiplied by; None if none is wanted.
        """


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The cross entropy of each target in nats, with label smoothing as in `token_losses`.

    Under a token rule the losses are still the cross entropies; what is summed is the rule's, and
    gradient and norms are those of the sum.
    """

    targets_K: Tensor
    label_smoothing: float = 0.0
    norms: bool = False  # whether to measure |d loss / d logits|
    ruling: Ruling | None = None

    def to(self, dtype: torch.dtype) -> "CrossEntropy":
        """Return it: it holds nothing of a head."""
        return self

    def tile(self, logits_CV: Tensor, rows: slice, factors_C: Tensor | None) -> Tile:
        """Return what is made of a tile's logits."""
        if logits_CV.device.type in TRITON_ON and logits_CV.dtype != torch.float64 and _triton():
            return self._in_place(logits_CV, rows, factors_C)
        targets_C, smoothing = self.targets_K[rows], self.label_smoothing
        logs_CV = _log_softmax(logits_CV)
        losses_C = logs_CV.gather(1, targets_C[:, None]).squeeze(1).mul_(smoothing - 1)
        if smoothing:
            losses_C -= smoothing * logs_CV.mean(-1)
        values_C, gates_C = self._ruled(losses_C, logits_CV, rows)
        if factors_C is None and not self.norms:
            return Tile(losses_C, logs_CV, None, values_C)
        gradient_CV = logs_CV.exp_()
        if smoothing:
            gradient_CV -= smoothing / gradient_CV.shape[1]
        gradient_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= (
            1 - smoothing
        )
        norms_C = _product(gradient_CV.norm(dim=-1), gates_C) if self.norms else None
        gradient_CV = _times(gradient_CV, _product(factors_C, gates_C), out_CV=logits_CV)
        return Tile(losses_C, gradient_CV, norms_C, values_C)

    def _in_place(self, logits_CV: Tensor, rows: slice, factors_C: Tensor | None) -> Tile:
        """Return what Triton's kernel makes of a tile's logits.

        Under a token rule it runs twice, for the losses that the gradient's factors depend on, and
        for the gradient.
        """
        from ablate.training.head_kernel import cross_entropy_

        targets_C, smoothing = self.targets_K[rows], self.label_smoothing
        values_C = gates_C = None
        if self.ruling is not None:
            plain_C, _ = cross_entropy_(logits_CV, targets_C, None, label_smoothing=smoothing)
            values_C, gates_C = self._ruled(plain_C, logits_CV, rows)
        losses_C, norms_C = cross_entropy_(
            logits_CV,
            targets_C,
            _product(factors_C, gates_C),
            label_smoothing=smoothing,
            norms=self.norms,
        )
        return Tile(losses_C, logits_CV, _product(norms_C, gates_C), values_C)

    def _ruled(
        self, losses_C: Tensor, logits_CV: Tensor, rows: slice
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what is summed and the gradient's gates under a token rule; else neither."""
        return (None, None) if self.ruling is None else self.ruling(losses_C, logits_CV, rows)


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(base || model) of each target in nats, over the whole vocabulary."""

    base_KD: Tensor  # hidden states of the base
    base: Head

    def to(self, dtype: torch.dtype) -> "Divergence":
        """Return it with the base's hidden states and head in another precision."""
        return Divergence(self.base_KD.to(dtype), self.base.to(dtype))

    def tile(self, logits_CV: Tensor, rows: slice, factors_C: Tensor | None) -> Tile:
        """Return a tile's divergences and the gradient times `factors_C`."""
        logs_CV = _log_softmax(logits_CV)
        base_CV = _log_softmax(self.base.logits(self.base_KD[rows]))
        losses_C = F.kl_div(logs_CV, base_CV, reduction="none", log_target=True).sum(-1)
        gradient_CV = logs_CV.exp_().sub_(base_CV.exp_())
        return Tile(losses_C, _times(gradient_CV, factors_C, out_CV=logits_CV))


def _product(numbers_C: Tensor | None, gates_C: Tensor | None) -> Tensor | None:
    """Return the product of what there is; None where there are no numbers."""
    return numbers_C if numbers_C is None or gates_C is None else numbers_C * gates_C


def _times(gradient_CV: Tensor, factors_C: Tensor | None, *, out_CV: Tensor) -> Tensor:
    """Return the gradient times `factors_C` in the precision of `out_CV`, in one of the two."""
    if factors_C is not None:
        gradient_CV.mul_(factors_C[:, None])
    return gradient_CV if gradient_CV.dtype == out_CV.dtype else out_CV.copy_(gradient_CV)


def _log_softmax(logits_CV: Tensor) -> Tensor:
    return F.log_softmax(
        logits_CV, dim=-1, dtype=torch.promote_types(logits_CV.dtype, torch.float32)
    )


@functools.cache
def _triton() -> bool:
    """Return whether Triton is installed; PyTorch's CUDA builds bring it."""
    return importlib.util.find_spec("triton") is not None

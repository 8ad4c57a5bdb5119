"""The output layer and the loss in one pass over tiles of targets, never all logits at once.

For each tile of C targets the logits (C, V) are made, turned into the gradient of the weighted loss
and multiplied into the gradients of hidden states and head; then the next tile takes their place.
The gradient is computed in the forward pass because making the logits again in the backward pass
would cost four matrix products where three are enough (as in arXiv 2410.10989).

Products run in the precision of the hidden states, or of autocast; softmax, losses and their sums
in at least 32 bits, as where all logits are kept (`training.loss`).

Shapes: K targets with a weight, C targets of a tile, V vocabulary, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ablate.models.autocast import product_dtype
from ablate.training.head_terms import Head, Term

# Logits of a tile, and its fewest rows: fewer would make the products slow, more is only memory.
# Measured by `python -m benchmarks.gpu.head`.
TILE = {"cpu": 2**22, "cuda": 2**26}
FEWEST_ROWS = 256


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """A weighted sum of losses, and the losses it is made of."""

    total: Tensor  # () sum of u_t loss_t, differentiable in hidden states, weight and bias
    losses_K: Tensor  # detached; under a token rule the cross entropies
    norms_K: Tensor  # |d loss_t / d logits_t|_2 where the term was asked for it, else zero
    ruled_K: Tensor | None = None  # detached loss_t, where a token rule makes it of `losses_K`

    @property
    def values_K(self) -> Tensor:
        """What is weighted and summed, detached."""
        return self.losses_K if self.ruled_K is None else self.ruled_K


def weighted_sum(
    hidden_KD: Tensor, head: Head, *, term: Term, weights_K: Tensor, rows: int | None = None
) -> HeadLoss:
    """Return the weighted sum of a term over all targets, differentiable, and its parts.

    Args:
        hidden_KD: the input of the head at each target.
        head: the head; its weight gets a gradient if it requires one.
        term: the loss of each target.
        weights_K: u_t, any numbers; a weight of zero costs as much as any other.
        rows: targets per tile; by default by `TILE`.
    """
    shape = (len(hidden_KD), head.weight_VD.shape[0])
    job = _Job(
        scale=head.scale,
        dtype=product_dtype(hidden_KD),
        term=term,
        weights_K=weights_K,
        rows=rows or tile_rows(*shape, kind=hidden_KD.device.type),
        gradients=torch.is_grad_enabled(),
    )
    return HeadLoss(*_Tiled.apply(hidden_KD, head.weight_VD, head.bias_V, job))


def tile_rows(targets: int, vocabulary: int, *, kind: str) -> int:
    """Return how many targets share a tile on this kind of device: tiles of equal size."""
    most = max(FEWEST_ROWS, TILE.get(kind, TILE["cpu"]) // vocabulary)
    tiles = max(1, -(-targets // most))
    return max(1, -(-targets // tiles))


@dataclass(frozen=True, slots=True)
class _Job:
    """What `_Tiled` needs beside the tensors that it is differentiated in."""

    scale: float
    dtype: torch.dtype  # of the products
    term: Term
    weights_K: Tensor
    rows: int
    gradients: bool


class _Tiled(torch.autograd.Function):
    """Sums a term over tiles; the backward pass multiplies gradients that the forward pass made."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the fields of `HeadLoss`."""
        with torch.autocast(hidden_KD.device.type, enabled=False):
            needs = [job.gradients and need for need in ctx.needs_input_grad[:3]]
            head = Head(weight_VD, bias_V, job.scale).to(job.dtype)
            sums = _over_tiles(hidden_KD.detach().to(job.dtype), head, job, needs)
        found, ctx.gradients = sums
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_KD, weight_VD, bias_V)]
        ctx.mark_non_differentiable(*(t for t in found[1:] if t is not None))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients in hidden states, weight and bias."""
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated before without retain_graph=True")
        made, keep = ctx.gradients, _graph_is_kept()
        if not keep:  # nothing refers to them any longer, so no copy of (V, D) is needed
            ctx.gradients = None
        multiply = torch.mul if keep else Tensor.mul_
        found = [
            None if gradient is None else multiply(gradient, gradients[0]).to(dtype)
            for gradient, dtype in zip(made, ctx.dtypes, strict=True)
        ]
        return (*found, None)


def _over_tiles(
    hidden_KD: Tensor, head: Head, job: _Job, needs: list[bool]
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], list[Tensor | None]]:
    """Return `HeadLoss`, and the gradients in hidden states, weight and bias if needed."""
    term, precise = job.term.to(job.dtype), torch.promote_types(job.dtype, torch.float32)
    weights_K = job.weights_K.to(precise)
    losses_K, norms_K = (torch.zeros_like(weights_K) for _ in range(2))
    ruled_K: Tensor | None = None
    empty = torch.empty_like if len(hidden_KD) else torch.zeros_like
    hidden_grad = empty(hidden_KD) if needs[0] else None
    weight_grad = empty(head.weight_VD) if needs[1] else None
    bias_grad = weights_K.new_zeros(len(head.weight_VD)) if needs[2] else None
    for start in range(0, len(hidden_KD), job.rows):
        rows = slice(start, start + job.rows)
        hidden_CD = hidden_KD[rows]
        factors_C = weights_K[rows] * job.scale if any(needs) else None
        losses_C, gradient_CV, norms_C, values_C = term.tile(
            head.logits(hidden_CD), rows, factors_C
        )
        losses_K[rows] = losses_C
        if norms_C is not None:
            norms_K[rows] = norms_C
        if values_C is not None:
            ruled_K = torch.zeros_like(losses_K) if ruled_K is None else ruled_K
            ruled_K[rows] = values_C
        if hidden_grad is not None:
            torch.mm(gradient_CV, head.weight_VD, out=hidden_grad[rows])
        if weight_grad is not None:
            weight_grad.addmm_(gradient_CV.T, hidden_CD, beta=float(start > 0))
        if bias_grad is not None:
            bias_grad += gradient_CV.sum(0, dtype=precise)
        del gradient_CV  # before the next tile's logits are made
    total = ((losses_K if ruled_K is None else ruled_K) * weights_K).sum()
    return (total, losses_K, norms_K, ruled_K), [hidden_grad, weight_grad, bias_grad]


def _graph_is_kept() -> bool:
    """Return whether the running backward pass retains the graph; True if it cannot be known."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())

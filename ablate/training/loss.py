"""The weighted token loss: summed in the forward pass, divided once per optimizer step.

Every normaliser and scope is expressed by one weight per target and one divisor W per step,

    L = sum over the step's targets t of  u_t * loss_t  /  W,

known from the data before the first forward pass (`weigh`). The forward pass computes a weighted
sum, so the result does not depend on micro-batches, layout or number of devices.

Shapes: B rows, L positions, K targets with a weight, V vocabulary, R roles, D hidden size.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.data.batches import Batch
from ablate.models.packed import Bounds, inputs
from ablate.objective import Objective
from ablate.roles import Role


@dataclass(frozen=True, slots=True)
class Weighed:
    """A micro-batch with the targets that have a weight: all inputs of a forward pass."""

    ids_BL: Tensor
    positions_BL: (
        Tensor | None
    )  # positions that restart at each example; None if each row is one example
    index_K: Tensor  # into the flattened (B, L): the position that predicts target k
    targets_K: Tensor
    weights_K: Tensor  # u_t in the module's formula
    roles_K: Tensor
    divisor: float  # this micro-batch's part of W
    supervised: float  # sum of the objective's weights before any division
    tokens: int  # without padding
    examples: int
    lengths: tuple[int, ...]  # of its examples, in order
    bounds: Bounds | None = None  # of its examples, where they are packed

    @property
    def sums_C(self) -> Tensor:
        """The additive counts (divisor, supervised weight, tokens, examples) (4,)."""
        counts = (self.divisor, self.supervised, self.tokens, self.examples)
        return torch.tensor(counts, dtype=torch.float64)

    def silent(self) -> "Weighed":
        """Return a copy without targets, for a device that has no row in this step."""
        nothing = self.index_K[:0]
        return replace(
            self,
            index_K=nothing,
            targets_K=nothing,
            weights_K=self.weights_K[:0],
            roles_K=nothing,
            divisor=0.0,
            supervised=0.0,
            tokens=0,
            examples=0,
        )

    def to(self, device: torch.device) -> "Weighed":
        """Return a copy on `device`; what is sent to a GPU is sent without waiting for it."""
        move = functools.partial(sent, device=device)
        return replace(
            self,
            ids_BL=move(self.ids_BL),
            positions_BL=None if self.positions_BL is None else move(self.positions_BL),
            index_K=move(self.index_K),
            targets_K=move(self.targets_K),
            weights_K=move(self.weights_K),
            roles_K=move(self.roles_K),
            bounds=None if self.bounds is None else self.bounds.moved(move),
        )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; to a GPU through pinned memory, which nothing waits for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Weighted and plain sums over the targets with a weight, before the division by W."""

    total: Tensor  # () sum of u_t loss_t, differentiable
    by_role_R: Tensor  # sum of loss_t, unweighted
    count_R: Tensor
    grad_norm_R: Tensor  # sum of u_t |d loss_t / d logits_t|_2; zero if it was not requested

    @property
    def sums_S(self) -> Tensor:
        """All sums in one vector (1 + 3R,): total, by role, counts, gradient norms; detached."""
        parts = (self.total.detach()[None], self.by_role_R, self.count_R, self.grad_norm_R)
        return torch.cat(parts).double()


def weigh(batch: Batch, objective: Objective) -> Weighed:
    """Return `batch` with its targets' final weights and its part of the step's divisor.

    Scopes, with n and d the sums of `num * loss` and of `den` over a set of targets:

        batch       sum n / sum d                       over the whole optimizer step
        example     mean over examples of n_i / d_i     (IM's released code)
        microbatch  mean over micro-batches of n_m / d_m    (older trainers)

    Under the normaliser `examples`, d is the number of examples. An example or micro-batch whose
    divisor is zero has no target with a weight: it adds zero and still counts in the mean.
    """
    num_BL, divisor_E = batch.num_BL.double(), _divisors(batch, objective)
    if objective.scope == "example":
        weights_BL = num_BL / _one_if_zero(divisor_E)[batch.example_BL]
        return _gathered(batch, weights_BL, float(batch.examples))
    if objective.scope == "microbatch":
        return _gathered(batch, num_BL / _one_if_zero(divisor_E.sum()), 1.0)
    return _gathered(batch, num_BL, float(divisor_E.sum()))


def _divisors(batch: Batch, objective: Objective) -> Tensor:
    """Return each example's share of the divisor (E,)."""
    if objective.per_example:
        return torch.ones(batch.examples, dtype=torch.float64)
    shares_E = torch.zeros(batch.examples, dtype=torch.float64)
    return shares_E.index_add_(0, batch.example_BL.flatten(), batch.den_BL.double().flatten())


def _one_if_zero(sums: Tensor) -> Tensor:
    return torch.where(sums == 0, torch.ones_like(sums), sums)


def _gathered(batch: Batch, weights_BL: Tensor, divisor: float) -> Weighed:
    target_K = weights_BL.flatten().nonzero().squeeze(1)
    lengths = tuple(batch.lengths_E.tolist())
    return Weighed(
        ids_BL=batch.ids_BL,
        positions_BL=batch.positions_BL,
        index_K=target_K - 1,  # position 0 never has a weight, so target - 1 is in the same row
        targets_K=batch.ids_BL.flatten()[target_K],
        weights_K=weights_BL.flatten()[target_K],
        roles_K=batch.roles_BL.flatten()[target_K].long(),
        divisor=divisor,
        supervised=float(batch.num_BL.double().sum()),
        tokens=batch.tokens,
        examples=batch.examples,
        lengths=lengths,
        bounds=None if batch.positions_BL is None else Bounds.of(lengths),
    )


class TokenLossModel(nn.Module):
    """A causal language model whose forward pass returns the token loss.

    It is one module for accelerate: DDP and FSDP attach their hooks to the outermost forward.
    """

    def __init__(self, model: Any, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, work: Weighed, with_grad_norm: bool = False) -> TokenLoss:
        """Return the sums over `work`; `with_grad_norm` adds the gradient norms by role."""
        logits_KV = predict(self.model, work)
        losses_K = token_losses(logits_KV, work.targets_K, self.label_smoothing)
        weights_K = work.weights_K.to(losses_K.dtype)
        role_KR = F.one_hot(work.roles_K, len(Role)).to(losses_K.dtype)
        grad_norm_R = torch.zeros_like(role_KR.sum(0))
        if with_grad_norm:
            norm_K = logit_gradient_norms(logits_KV, work.targets_K, self.label_smoothing)
            grad_norm_R = ((weights_K * norm_K)[:, None] * role_KR).sum(0)
        return TokenLoss(
            total=(losses_K * weights_K).sum(),
            by_role_R=(losses_K.detach()[:, None] * role_KR).sum(0),
            count_R=role_KR.sum(0),
            grad_norm_R=grad_norm_R,
        )


def predict(model: Any, work: Weighed) -> Tensor:
    """Return the logits (K, V) of the targets with a weight, and of no other position.

    The positions are selected at the input of the output layer, inside the model's own forward, so
    that whatever a model does to its logits afterwards (softcap, scaling) still applies, and the
    hooks of adapters and of sharding run. Rows are padded on the right and attention is causal, so
    no token sees padding and no mask is given; with a mask or a cache, packed examples would see
    each other.
    """
    with _head_at(model, work.index_K, work.ids_BL.shape[1]):
        output = model(**inputs(model, work.ids_BL, work.positions_BL, work.bounds))
    return at_targets(output.logits, work)


def at_targets(logits_BLV: Tensor, work: Weighed) -> Tensor:
    """Return the targets' logits (K, V) from the logits that a model returned in `predict`."""
    if logits_BLV.shape[:2] == (1, len(work.index_K)):
        return logits_BLV[0]
    logits_BLV = logits_BLV[
        :, -work.ids_BL.shape[1] :
    ]  # drops the positions of virtual tokens in front
    return logits_BLV.flatten(0, 1)[work.index_K]


@contextmanager
def _head_at(model: Any, index_K: Tensor, length: int) -> Iterator[None]:
    """Pass only the flat positions `index_K` to the output layer, as one row (1, K, D)."""

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BLD = args[0][:, -length:]
        return (hidden_BLD.flatten(0, 1)[index_K].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_losses(logits_KV: Tensor, targets_K: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of each target in nats, computed in at least 32 bits.

    With `label_smoothing` e the target is 1 - e on the token and e / V on every token of the
    vocabulary (arXiv 1512.00567).
    """
    return F.cross_entropy(
        _precise(logits_KV), targets_K, reduction="none", label_smoothing=label_smoothing
    )


@torch.no_grad()
def logit_gradient_norms(
    logits_KV: Tensor, targets_K: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Return the 2-norm (K,) of each token loss's gradient in its logits, |softmax - target|."""
    gradient_KV = _precise(logits_KV).softmax(-1).sub_(label_smoothing / logits_KV.shape[-1])
    gradient_KV[torch.arange(len(targets_K)), targets_K] -= 1 - label_smoothing
    return gradient_KV.norm(dim=-1)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

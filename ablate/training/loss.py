"""The weighted token loss: summed in the forward pass, divided once per optimizer step.

Every normaliser and scope is expressed by one weight per target and one divisor W per step,

    L = sum over the step's targets t of  u_t * loss_t  /  W,

known from the data before the first forward pass (`training.weighed`). The forward pass computes a
weighted sum, so the result does not depend on micro-batches, layout or number of devices. A token
rule changes loss_t alone (`training.token_rules`): u_t and W are what they are without it.

Shapes: K targets with a weight, V vocabulary, R roles.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.objective import Objective
from ablate.roles import Role
from ablate.training.head import HeadLoss, weighted_sum
from ablate.training.head_terms import CrossEntropy
from ablate.training.predict import HeadInput, predict
from ablate.training.token_rules import ruling
from ablate.training.weighed import Weighed


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Weighted and plain sums over the targets with a weight, before the division by W."""

    total: Tensor  # () sum of u_t loss_t, differentiable
    by_role_R: Tensor  # sum of the cross entropies, unweighted, whatever the token rule
    count_R: Tensor
    grad_norm_R: Tensor  # sum of u_t |d loss_t / d logits_t|_2; zero if it was not requested

    @property
    def sums_S(self) -> Tensor:
        """All sums in one vector (1 + 3R,): total, by role, counts, gradient norms; detached."""
        parts = (self.total.detach()[None], self.by_role_R, self.count_R, self.grad_norm_R)
        return torch.cat(parts).double()


class TokenLossModel(nn.Module):
    """A causal language model whose forward pass returns the token loss.

    It is one module for accelerate: DDP and FSDP attach their hooks to the outermost forward.
    """

    def __init__(self, model: Any, objective: Objective | None = None) -> None:
        """Wrap `model`; label smoothing and token rule are the objective's, by default none."""
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, work: Weighed, with_grad_norm: bool = False) -> TokenLoss:
        """Return the sums over `work`; `with_grad_norm` adds the gradient norms by role."""
        found = target_losses(self.model, work, self.objective, with_norms=with_grad_norm)
        role_KR = F.one_hot(work.roles_K, len(Role)).to(found.losses_K.dtype)
        weights_K = work.weights_K.to(found.losses_K.dtype)
        return TokenLoss(
            total=found.total,
            by_role_R=(found.losses_K[:, None] * role_KR).sum(0),
            count_R=role_KR.sum(0),
            grad_norm_R=((weights_K * found.norms_K)[:, None] * role_KR).sum(0),
        )


def target_losses(
    model: Any, work: Weighed, objective: Objective | None = None, *, with_norms: bool = False
) -> HeadLoss:
    """Return the weighted sum over the targets, their losses and, if asked for, gradient norms.

    Of the objective label smoothing and token rule are read; by default there are none.
    """
    smoothing = 0.0 if objective is None else objective.label_smoothing
    rule = ruling(None if objective is None else objective.token_rule, work.roles_K)
    found, targets_K = predict(model, work), work.targets_K
    if isinstance(found, HeadInput):
        term = CrossEntropy(targets_K, smoothing, norms=with_norms, ruling=rule)
        return weighted_sum(found.hidden_KD, found.head, term=term, weights_K=work.weights_K)
    losses_K = token_losses(found, targets_K, smoothing)
    norms_K = torch.zeros_like(losses_K.detach())
    if with_norms:
        norms_K = logit_gradient_norms(found, targets_K, smoothing)
    weights_K = work.weights_K.to(losses_K.dtype)
    if rule is None:
        return HeadLoss((losses_K * weights_K).sum(), losses_K.detach(), norms_K)
    ruled_K, gates_K = rule(losses_K.detach(), found.detach())
    summed_K = ruled_K + gates_K * (losses_K - losses_K.detach())  # the rule's value and gradient
    return HeadLoss((summed_K * weights_K).sum(), losses_K.detach(), norms_K * gates_K, ruled_K)


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
    gradient_KV[torch.arange(len(targets_K), device=targets_K.device), targets_K] -= (
        1 - label_smoothing
    )
    return gradient_KV.norm(dim=-1)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

"""Token rules: a token's loss as another function of its own probability, or of the entropy there.

With p the probability of the right token, n = -log p its cross entropy, a the rule's exponent and H
the entropy of the model's prediction, what is summed and the gate that multiplies the gradient of n
are

    rule            loss             gate                  source
    dft             n [p^a]          p^a                   arXiv 2508.05629, a = 1
    power           (1 - p^a) / a    p^a                   arXiv 2510.00526, a = 10
    focal           n (1 - p)^a      (1 - p)^a + a n p (1 - p)^(a - 1)    arXiv 1708.02002, a = 2
    focal_detached  n [(1 - p)^a]    (1 - p)^a             focal, its weight held constant
    eaft            n [h^a]          h^a                   arXiv 2601.02151, a = 1

where brackets stand around what is held constant, and h = H_20 / log 20 with H_20 the entropy of
the 20 likeliest tokens, their probabilities scaled to a sum of 1. dft and power have one gradient.
Every path of training takes value and gate from here: none differentiates a rule itself.

Shapes: K targets with a weight, C of them, V vocabulary, N likeliest tokens.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.objective import TokenRule
from ablate.roles import ANSWERS

LIKELIEST = 20  # tokens whose entropy the rule `eaft` takes; all of a smaller vocabulary


@dataclass(frozen=True, slots=True)
class Ruling:
    """A token rule, and the targets that it acts on."""

    rule: TokenRule
    acts_K: Tensor  # whether it does

    def __call__(
        self, losses_C: Tensor, logits_CV: Tensor, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Return what is summed, and the gate of each target's gradient.

        Args:
            losses_C: cross entropies in nats, in at least 32 bits, detached.
            logits_CV: what they were made of; they are left as they are.
            rows: which of the K targets these are.
        """
        values_C, gates_C = value_and_gate(self.rule, losses_C.clamp(min=0), logits_CV)
        acts_C, ones_C = self.acts_K[rows], torch.ones_like(losses_C)
        return torch.where(acts_C, values_C, losses_C), torch.where(acts_C, gates_C, ones_C)


def ruling(rule: TokenRule | None, roles_K: Tensor) -> Ruling | None:
    """Return a rule over targets of these roles; None where there is no rule."""
    if rule is None:
        return None
    acts_K = torch.ones_like(roles_K, dtype=torch.bool)
    if rule.scope == "completion":
        acts_K = functools.reduce(torch.logical_or, (roles_K == role for role in ANSWERS))
    return Ruling(rule, acts_K)


@torch.no_grad()
def value_and_gate(rule: TokenRule, losses_C: Tensor, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is summed and the gates where a rule acts, of cross entropies of at least 0.

    1 - p is computed as -expm1(-n), which is exact where p is near 1.
    """
    a = rule.exponent
    if rule.kind in ("dft", "power"):
        gates_C = torch.exp(-a * losses_C)
        values_C = -torch.expm1(-a * losses_C) / a
        return (values_C if rule.kind == "power" else losses_C * gates_C), gates_C
    if rule.kind == "eaft":
        gates_C = _entropy_share(logits_CV).to(losses_C.dtype).pow(a)
        return losses_C * gates_C, gates_C
    wrong_C = -torch.expm1(-losses_C)
    weights_C = wrong_C.pow(a)
    values_C = losses_C * weights_C
    if rule.kind == "focal_detached":
        return values_C, weights_C
    # n / (1 - p) goes to 1 as p does.
    ratio_C = torch.where(wrong_C > 0, losses_C / wrong_C, torch.ones_like(losses_C))
    return values_C, weights_C * (1 + a * torch.exp(-losses_C) * ratio_C)


def _entropy_share(logits_CV: Tensor) -> Tensor:
    """Return the entropy (C,) over the likeliest tokens, as a share of the largest possible."""
    count = min(LIKELIEST, logits_CV.shape[-1])
    top_CN = logits_CV.topk(count, sorted=False).values
    shares_CN = top_CN.to(torch.promote_types(top_CN.dtype, torch.float32)).softmax(-1)
    return (torch.special.entr(shares_CN).sum(-1) / math.log(count)).clamp(0, 1)

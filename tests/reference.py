"""Naive float64 versions of the numeric code, written from the definitions and nothing else.

One example at a time, one token at a time, unpadded; slow and easy to read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ablate.roles import Role

Example = tuple[Sequence[int], Sequence[Role]]  # ids and roles of one row


def token_losses(model: Any, ids: Sequence[int], label_smoothing: float = 0.0) -> list[Any]:
    """Return the loss of predicting each token from those before it; the first has none."""
    logits_LV = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    losses: list[Any] = [None]
    for t in range(1, len(ids)):
        exps = torch.exp(logits_LV[t - 1] - logits_LV[t - 1].max())
        logs = torch.log(exps / exps.sum())
        losses.append(-(1 - label_smoothing) * logs[ids[t]] - label_smoothing * logs.mean())
    return losses


def ruled_losses(
    model: Any, example: Example, rule: str, exponent: float, *, scope: str = "all"
) -> list[Any]:
    """Return each token's loss under a token rule, as its source writes it, for autograd.

    DFT (arXiv 2508.05629, equation 9), -p^a (2510.00526, equation 4), the focal loss (1708.02002,
    equation 4) with and without a gradient through its weight, and EAFT (2601.02151).
    """
    ids, roles = example
    logits_LV = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    losses: list[Any] = [None]
    for t in range(1, len(ids)):
        probs = torch.softmax(logits_LV[t - 1], 0)
        p = probs[ids[t]]
        top = probs.sort(descending=True).values[:20]
        top = top / top.sum()
        share = (-top * top.log()).sum() / math.log(len(top))
        ruled = {
            "none": -p.log(),
            "dft": -(p**exponent).detach() * p.log(),
            "power": (1 - p**exponent) / exponent,
            "focal": -((1 - p) ** exponent) * p.log(),
            "focal_detached": -((1 - p) ** exponent).detach() * p.log(),
            "eaft": -(share**exponent).detach() * p.log(),
        }
        answer = roles[t] in (Role.COMPLETION, Role.TEXT)
        losses.append(ruled[rule if scope == "all" or answer else "none"])
    return losses


def divisor_weight(role: Role, weight: float, normaliser: str) -> float:
    """Return what one target adds to the divisor."""
    if normaliser == "weight":
        return weight
    if normaliser == "completion":
        return 1.0 if role in (Role.COMPLETION, Role.TEXT) else 0.0
    if normaliser == "nonzero":
        return 1.0 if weight > 0 else 0.0
    assert normaliser == "tokens"
    return 1.0


def example_sums(
    losses: Sequence[Any], roles: Sequence[Role], weights: Mapping[Role, float], normaliser: str
) -> tuple[Any, float]:
    """Return the weighted loss sum and the divisor of one example from its token losses."""
    total: Any = 0.0
    divisor = 1.0 if normaliser == "examples" else 0.0
    for t in range(1, len(roles)):
        weight = weights[roles[t]]
        total = total + weight * losses[t]
        if normaliser != "examples":
            divisor += divisor_weight(roles[t], weight, normaliser)
    return total, divisor


def step_loss(groups: Sequence[Sequence[tuple[Any, float]]], scope: str) -> Any:
    """Return an optimizer step's loss from the sums of its examples, grouped by micro-batch."""
    everything = [sums for group in groups for sums in group]
    if scope == "batch":
        return sum(t for t, _ in everything) / sum(d for _, d in everything)
    if scope == "example":
        return sum(t / d for t, d in everything) / len(everything)
    ratios = [sum(t for t, _ in group) / sum(d for _, d in group) for group in groups]
    return sum(ratios) / len(ratios)

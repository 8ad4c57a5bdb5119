"""What the forward passes of scoring have in common: which rows share one, and what is read off it.

Shapes: B rows, L length, N scored tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ablate.models.head import chosen, head_at

TOKENS = 2**15  # of a batch, padding included
LOGITS = 2**30  # of a batch whose every token is scored: 4 GiB in fp32
TILE = 2**26  # logits that are turned into log-probabilities at once


def batches(lengths: Sequence[int], *, rows: int, tokens: int = TOKENS) -> Iterator[list[int]]:
    """Yield the numbers of the rows that share a batch, long ones first.

    Rows of like length waste little on padding.

    Args:
        lengths: tokens of each row.
        rows: the most of a batch.
        tokens: the most of a batch after padding; a longer row is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, min(rows, tokens // max(1, lengths[order[0]])))
        yield order[:size]
        order = order[size:]


def likelihoods(
    model: Any, inputs: dict[str, Any], index_N: Tensor, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each target's log-probability (N,) in nats, in fp32, and whether it is the likeliest.

    Args:
        model: a causal language model.
        inputs: of its forward pass, `input_ids` (B, L) among them.
        index_N: into the flattened ids: the position that predicts each target.
        targets_N: the targets.
    """
    length = inputs["input_ids"].shape[1]
    with head_at(model, index_N, length):
        logits_BLV = model(**inputs, use_cache=False).logits
    logits_NV = chosen(logits_BLV, index_N, length)
    parts = max(1, -(-logits_NV.numel() // TILE))
    pairs = zip(logits_NV.chunk(parts), targets_N.chunk(parts), strict=True)
    logs, first = zip(*(_read(*pair) for pair in pairs), strict=True)
    return torch.cat(logs), torch.cat(first)


def of_lanes(
    inputs: dict[str, Tensor], index_N: Tensor, targets_N: Tensor, *, lanes: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return what `likelihoods` takes for as many lanes that are asked the same, lane 0 first."""
    if lanes == 1:
        return inputs, index_N, targets_N
    starts = torch.arange(lanes, device=index_N.device)[:, None] * inputs["input_ids"].numel()
    rows = {name: each.repeat(lanes, *[1] * (each.ndim - 1)) for name, each in inputs.items()}
    return rows, (starts + index_N).flatten(), targets_N.repeat(lanes)


def _read(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    logs_NV = logits_NV.float().log_softmax(-1)
    return logs_NV.gather(1, targets_N[:, None])[:, 0], logits_NV.argmax(-1) == targets_N

"""The cross entropy of a tile of logits and its gradient, in place: a Triton kernel.

One program per row reads the row twice: for the sum of exponentials, and to put its gradient in its
place. All arithmetic is in 32 bits. Import this module only where Triton is installed.

Shapes: C targets of a tile, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192  # logits that a program holds at once
_WARPS = 16


def cross_entropy_(
    logits_CV: Tensor,
    targets_C: Tensor,
    factors_C: Tensor | None,
    *,
    label_smoothing: float = 0.0,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    """Replace `logits_CV` by the gradient of `sum factors loss`; return losses and gradient norms.

    Args:
        logits_CV: contiguous, in 16 or 32 bits; without factors they stay as they are.
        targets_C: the token of each row.
        factors_C: what each row's gradient is multiplied by; its norm is that without the factor.
        label_smoothing: as in `training.loss.token_losses`.
        norms: whether to measure the norms; else they are zero.
    """
    rows, vocabulary = logits_CV.shape
    losses_C, norms_C = torch.zeros(2, rows, dtype=torch.float32, device=logits_CV.device)
    with torch.cuda.device_of(logits_CV):  # Triton starts a kernel on the current device
        _row[(rows,)](
            logits_CV,
            targets_C,
            losses_C if factors_C is None else factors_C.float(),
            losses_C,
            norms_C,
            float(label_smoothing),
            VOCABULARY=vocabulary,
            WRITE=factors_C is not None,
            NORMS=norms,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return losses_C, norms_C


@triton.jit
def _row(  # type: ignore[no-untyped-def]
    logits_ptr,
    targets_ptr,
    factors_ptr,
    losses_ptr,
    norms_ptr,
    smoothing,
    VOCABULARY: tl.constexpr,
    WRITE: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a row's loss and, as asked, its gradient's norm and its gradient over its logits."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * VOCABULARY
    target = tl.load(targets_ptr + row)
    at_target = tl.load(logits_ptr + target).to(tl.float32)
    top = -1e30  # finite: a block of logits that are all -inf adds nothing
    mass = 0.0  # sum of exp(logit - top)
    plain = 0.0  # sum of the logits
    for start in range(0, VOCABULARY, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < VOCABULARY
        x = tl.load(logits_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, 0))
        mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
        plain += tl.sum(tl.where(inside, x, 0.0), 0)
    log_mass = top + tl.log(mass)
    loss = log_mass - (1 - smoothing) * at_target
    if smoothing > 0:
        loss -= smoothing * plain / VOCABULARY
    tl.store(losses_ptr + row, loss)
    if WRITE or NORMS:
        factor = tl.load(factors_ptr + row)
        squares = 0.0
        for start in range(0, VOCABULARY, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < VOCABULARY
            x = tl.load(logits_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
            wanted = tl.where(column == target, 1 - smoothing, 0.0) + smoothing / VOCABULARY
            gradient = tl.where(inside, tl.exp(x - log_mass) - wanted, 0.0)
            squares += tl.sum(gradient * gradient, 0)
            if WRITE:
                value = (gradient * factor).to(logits_ptr.dtype.element_ty)
                tl.store(logits_ptr + column, value, mask=inside)
        if NORMS:
            tl.store(norms_ptr + row, tl.sqrt(squares))

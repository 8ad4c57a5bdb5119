"""Packed rows: where their examples end, and whether a model keeps them apart.

`inputs` makes the arguments of every forward pass in training, and `keeps_packed_apart` tries the
way of separating examples that training would take.

Shapes: B rows, T tokens of a row, E examples.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ablate.models.attention import (
    Segments,
    Unsupported,
    attends_by_segments,
    by_segments,
    find_kernels,
    kernel_for,
)

WINDOWS = ("sliding_window", "attention_chunk_size")  # settings that limit how far attention sees
# Largest difference that rounding may cause, relative to the largest logit; a real leak gives 0.3.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
COARSE = 0.05  # in 16 bits and below


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where the examples of a packed row end, on the host and on the device."""

    lengths: tuple[int, ...]  # of the examples, in order
    ends_E1: Tensor  # int32: 0 and the cumulative lengths

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Bounds":
        """Return the bounds of examples of `lengths`, in order."""
        ends = list(itertools.accumulate(lengths, initial=0))
        return cls(tuple(lengths), torch.tensor(ends, dtype=torch.int32))

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Bounds":
        """Return a copy whose tensor went through `move`."""
        return replace(self, ends_E1=move(self.ends_E1))

    def arguments(self, longest: int = 0) -> dict[str, Any]:
        """Return transformers' FlashAttentionKwargs and the lengths; `longest` is still to come."""
        longest = max(longest, *self.lengths)
        return {
            "cu_seq_lens_q": self.ends_E1,
            "cu_seq_lens_k": self.ends_E1,
            "max_length_q": longest,
            "max_length_k": longest,
            "segments": Segments(self.lengths),
        }


def inputs(
    model: Any,
    ids_BT: Tensor,
    positions_BT: Tensor | None,
    bounds: Bounds | None,
    *,
    longest: int = 0,
) -> dict[str, Any]:
    """Return the arguments of `model`'s forward pass: no mask, no cache, and where examples end.

    Args:
        model: a causal language model.
        ids_BT: token ids.
        positions_BT: positions that restart at each packed example; None if rows are not packed.
        bounds: of a packed row's examples, else None; not passed to a model that is not inside
            `by_segments`, which separates examples by the positions.
        longest: length of the longest example that is still to come.
    """
    given = {"input_ids": ids_BT, "position_ids": positions_BT, "use_cache": False}
    if bounds is None or not attends_by_segments(model):
        return given
    return given | bounds.arguments(longest)


def kernel_serves(model: Any, precision: str) -> bool:
    """Return whether one kernel computes the attention of packed rows: on a GPU in 16 bits.

    Args:
        model: a causal language model on its device.
        precision: what is computed in, as `train.precision` has it.
    """
    find_kernels()
    config, device = model.config, next(model.parameters()).device
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return kernel_for(device, dtype, size) is not None


def takes_segments(model: Any, *, longest: int, precision: str = "fp32") -> bool:
    """Return whether attention by segments is that of `model`, for examples up to `longest`.

    False for a model whose attention does not go through transformers' interface, whose window is
    shorter than `longest`, or which does more than scaled dot-product attention.
    """
    configs = [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
    if not configs or any(c._attn_implementation != "sdpa" for c in configs):
        return False
    windows = (getattr(c, name, None) for c in configs for name in WINDOWS)
    if any(isinstance(w, int) and w < longest for w in windows):
        return False
    try:
        with by_segments(model):
            return keeps_packed_apart(model, longest=longest, precision=precision)
    except (Unsupported, TypeError, ValueError):
        return False


@torch.no_grad()
def keeps_packed_apart(model: Any, *, longest: int = 0, precision: str = "fp32") -> bool:
    """Return whether `model` gives an example packed behind another the logits it gives it alone.

    Most architectures do, because positions restart; some (OPT) ignore positions, and the second
    example would silently see the first. It is tried in the way that training would take: the
    logits must not depend on the example in front, and be those of the example alone.

    Args:
        model: a causal language model, inside `by_segments` where it is to be used so.
        longest: length of the longest example to come.
        precision: what is computed in, as `train.precision` has it.
    """
    if not getattr(model, "adapter_packs", True):
        return False  # set by `adapters.build` from the method's row
    front, other = [[3, 1, 2, 5, 4], [2, 5, 4, 1, 3]], [2, 4, 1, 3]
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        packed, swapped = (_last_logits(model, [one, other], longest) for one in front)
        alone = _last_logits(model, [other], longest)
    model.train(was_training)
    apart, same = _tolerances(model, precision)
    largest = alone.abs().max()
    kept = (packed - swapped).abs().max() < apart * largest
    return bool(kept and (packed - alone).abs().max() < same * largest)


def _last_logits(model: Any, examples: Sequence[Sequence[int]], longest: int) -> Tensor:
    """Return the logits of the last of `examples`, packed into one row."""
    device = next(model.parameters()).device
    lengths = [len(one) for one in examples]
    ids = torch.tensor([[token for one in examples for token in one]], device=device)
    places = torch.tensor([[at for size in lengths for at in range(size)]], device=device)
    bounds = Bounds.of(lengths).moved(lambda tensor: tensor.to(device))
    logits: Tensor = model(**inputs(model, ids, places, bounds, longest=longest)).logits
    return logits[:, -lengths[-1] :].float()


def _tolerances(model: nn.Module, precision: str) -> tuple[float, float]:
    """Return what rounding may change in shapes that are the same, and in others.

    With 8 bits and fewer, what a batch contains decides how an example of it is rounded.
    """
    sizes = {p.dtype.itemsize for p in model.parameters()}
    if min(sizes) == 1:
        return COARSE, COARSE
    dtype = next(model.parameters()).dtype
    exact = ROUNDING.get(dtype, COARSE) if min(sizes) > 2 and precision != "bf16" else COARSE
    return min(ROUNDING.values()), exact

"""Attention inside the examples of a packed row, without a mask.

transformers separates packed examples by a mask of (tokens of the row) x (tokens of the row), of
which autograd keeps a copy in every layer. Here an attention function of its own is registered
instead, which gets the examples' lengths and never attends across a boundary; the memory is linear
in the tokens. It is in use inside a `by_segments` block only, and is chosen by the loop after
`keeps_packed_apart` has tried it on the model at hand.

    CUDA, 16 bits, no dropout    one kernel for all examples: torch's `varlen_attn`, or flash-attn
    otherwise                    scaled dot-product attention, once per run of equal lengths

Rows that are not packed take the ordinary causal attention. No mask is built for them either, which
on a GPU saves transformers' test for packed rows: it waits for the device in every forward pass.

Shapes: B rows, T tokens of a row, H heads, G heads of keys and values, D head size, E examples.
"""

import functools
import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from ablate.models.autocast import product_dtype

# Not among the functions that transformers makes masks for: it then makes none.
NAME = "by_segments"
# Arguments of an attention function that do not change what it computes. Any other that is given,
# such as a softcap, sinks or a position bias, is refused, not ignored.
HARMLESS = frozenset(
    {
        "cache_position", "cu_seq_lens_k", "layer_idx", "max_length_k", "output_attentions",
        "output_hidden_states", "position_embeddings", "position_ids", "return_dict", "use_cache",
    }
)  # fmt: skip
KERNEL_DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD = 256  # largest head size of the kernels


class Unsupported(NotImplementedError):
    """A model's attention does something that attention by segments does not."""


class Segments:
    """The lengths of a packed row's examples, in order.

    In an object of their own, so that `torch.compile` compiles for any number of them.
    """

    __slots__ = ("lengths",)

    def __init__(self, lengths: Sequence[int]) -> None:
        """Keep the `lengths`."""
        self.lengths = tuple(lengths)


@contextmanager
def by_segments(model: nn.Module) -> Iterator[None]:
    """Run a block with the attention of `model` inside segments; restore its own after."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    find_kernels()
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def attends_by_segments(model: Any) -> bool:
    """Return whether `model` is inside a `by_segments` block."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == NAME


# -- the function -----------------------------------------------------------------------------


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Return the causal attention (B, T, H, D) inside segments, as transformers calls it.

    Args:
        module: the layer; its `is_causal` is read.
        query: (B, H, T, D).
        key: (B, G, T, D).
        value: (B, G, T, D).
        attention_mask: of a caller who made one itself, for rows that are not packed.
        dropout: of the attention weights.
        scaling: of the products; None: 1 / sqrt(D).
        segments: the examples of the one packed row; None if rows are not packed.
        given: see `HARMLESS`.

    Raises:
        Unsupported: the layer asks for more than this.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
    _check(module, query, key, attention_mask, given)
    query, key, value = (x.to(product_dtype(x)) for x in (query, key, value))
    kernel = kernel_for(query.device, query.dtype, query.shape[-1])
    if kernel is None or dropout or value.shape[-1] != query.shape[-1]:
        return _by_length(query, key, value, segments, dropout, scaling), None
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    return kernel(q, k, v, given["cu_seq_lens_q"], given["max_length_q"], scaling)[None], None


AttentionInterface.register(NAME, attention)


def _check(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, given: dict[str, Any]
) -> None:
    known = HARMLESS | {"cu_seq_lens_q", "max_length_q", "sliding_window", "is_causal"}
    more = sorted(k for k, v in given.items() if k not in known and not (v is None or v is False))
    if more:
        raise Unsupported(f"attention with {', '.join(more)}")
    causal = given.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise Unsupported("attention in both directions")
    if mask is not None or len(query) != 1 or query.shape[2] != key.shape[2]:
        raise Unsupported("attention over more than the row itself")
    window = given.get("sliding_window")
    if window is not None and window < given.get("max_length_q", query.shape[2]):
        raise Unsupported(f"a window of {window}")


@torch.compiler.disable
def _by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Return the attention (1, T, H, D), neighbours of equal length computed as one batch.

    Rows of a step are sorted by length, so equal lengths are neighbours.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    found, start = [], 0
    for size, same in itertools.groupby(segments.lengths):
        count = len(list(same))
        q, k, v = (_batched(x, start, count, size) for x in (query, key, value))
        out_EHLD = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling
        )
        found.append(out_EHLD.transpose(1, 2).flatten(0, 1))
        start += count * size
    return torch.cat(found)[None]


def _batched(states: Tensor, start: int, count: int, size: int) -> Tensor:
    """Return `count` examples of `size` tokens from (1, H, T, D), as (count, H, size, D)."""
    _, H, _, D = states.shape
    part = states[0, :, start : start + count * size]
    return part.reshape(H, count, size, D).transpose(0, 1)


# -- kernels ----------------------------------------------------------------------------------

# From query (T, H, D), key and value (T, G, D), the ends of the examples (E + 1,), the length of
# the longest and the factor of the products, to the attention (T, H, D).
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None], Tensor]
_KERNELS: dict[str, Kernel] = {}  # by type of device; looked up in compiled code, so filled before


def kernel_for(device: torch.device, dtype: torch.dtype, size: int) -> Kernel | None:
    """Return what computes all examples of a packed row at once, with heads of `size`, if any."""
    fits = size % 8 == 0 and size <= MAX_HEAD and dtype in KERNEL_DTYPES
    return _KERNELS.get(device.type) if fits else None


@functools.cache
def find_kernels() -> None:
    """Find out which kernels there are, once in a process."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):  # Ampere
        return
    if kernel := _varlen() or _flash_attn():
        _KERNELS["cuda"] = kernel


def _varlen() -> Kernel | None:
    """Return torch's own attention of variable lengths, for the arguments of this version of it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before 2.10
        return None
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"is_causal": True}
    if "window_size" in known:
        causal = {"window_size": (-1, 0)}
    takes_groups, takes_scale = "enable_gqa" in known, "scale" in known

    def kernel(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, scale: Any) -> Tensor:
        more = dict(causal)
        if takes_groups:  # versions without it share keys among heads without being told
            more["enable_gqa"] = q.shape[1] != k.shape[1]
        if takes_scale:
            more["scale"] = scale
        elif scale is not None:  # torch 2.10 divides by sqrt(D)
            q = q * (scale * q.shape[-1] ** 0.5)
        return varlen_attn(q, k, v, ends, ends, longest, longest, **more)  # type: ignore[return-value]

    return kernel


def _flash_attn() -> Kernel | None:
    if importlib.util.find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func

    def kernel(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, scale: Any) -> Tensor:
        bounds = (ends, ends, longest, longest)
        out: Tensor = flash_attn_varlen_func(q, k, v, *bounds, softmax_scale=scale, causal=True)
        return out

    return kernel

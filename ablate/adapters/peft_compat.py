"""PEFT's methods that do not run as they come: BOFT, SHiRA and virtual tokens.

BOFT (arXiv 2311.06243): PEFT has butterfly factors for a compiled CUDA kernel alone; without it it
falls back to one factor, in silence, and BOFT is OFT. All the kernel does is to lay blocks out on a
diagonal; importing this module puts it there in plain torch, for every device.

SHiRA (arXiv 2406.13175): its forward makes a sparse tensor, at which torch warns unless it is told
whether to check the indices. PEFT makes them from a mask; they need no check.

Prompt tuning (arXiv 2104.08691) and P-tuning (2103.10385): PEFT drops the positions that it is
given, so in a batch padded on the left, as generation has it, how far a prompt is from its virtual
tokens would depend on the longest prompt beside it. Here positions are kept, behind theirs.

Shapes: N butterfly factors, D blocks of H x H each, K = D H inputs; B rows, L positions.
"""

from typing import Any

import torch
from peft import (
    BOFTConfig,
    PeftModelForCausalLM,
    PeftType,
    PromptEncoderConfig,
    PromptTuningConfig,
    ShiraConfig,
)
from peft.tuners.boft import layer
from torch import Tensor

__all__ = ["BOFTConfig", "PromptEncoderConfig", "PromptTuningConfig", "ShiraConfig"]


class BlockDiagonal:
    """PEFT's kernel interface: each direction takes tensors and returns a list of one."""

    @staticmethod
    def forward(blocks_NDHH: Tensor) -> list[Tensor]:
        """Return block-diagonal matrices (N, K, K)."""
        return [torch.stack([torch.block_diag(*blocks_DHH) for blocks_DHH in blocks_NDHH])]

    @staticmethod
    def backward(grad_NKK: Tensor, blocks_NDHH: Tensor) -> list[Tensor]:
        """Return the gradient of the blocks (N, D, H, H): what lies on the diagonal."""
        n, d, h, _ = blocks_NDHH.shape
        parts_NDHDH = grad_NKK.reshape(n, d, h, d, h)
        return [parts_NDHDH.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()]


_adjusted = PeftModelForCausalLM._adjust_prompt_learning_kwargs


def _keep_positions(model: Any, config: Any, *, kwargs: dict[str, Any], **options: Any) -> None:
    """Move the positions in `kwargs` behind the virtual tokens, which get the first ones."""
    positions_BL = kwargs.get("position_ids")
    if positions_BL is None or config.peft_type == PeftType.PREFIX_TUNING:
        _adjusted(model, config, kwargs=kwargs, **options)
        return
    cache, tokens = kwargs.get("past_key_values"), config.num_virtual_tokens
    positions_BL = positions_BL + tokens
    if cache is None or not cache.get_seq_length():  # the virtual tokens come with this call
        virtual_L = torch.arange(tokens, device=positions_BL.device)
        virtual_BL = virtual_L.expand(len(positions_BL), -1)
        positions_BL = torch.cat([virtual_BL, positions_BL], dim=1)
    kwargs["position_ids"] = positions_BL


layer._FBD_CUDA = BlockDiagonal
PeftModelForCausalLM._adjust_prompt_learning_kwargs = _keep_positions
torch.sparse.check_sparse_tensor_invariants.disable()

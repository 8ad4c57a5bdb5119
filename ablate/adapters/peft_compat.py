"""Corrections of PEFT methods that do not run correctly unchanged: BOFT, SHiRA, virtual tokens.

Importing this module changes PEFT.

BOFT (arXiv 2311.06243): PEFT needs a compiled CUDA kernel for more than one butterfly factor;
without it, it silently uses one factor, which makes BOFT OFT. The kernel only builds block-diagonal
matrices; this module replaces it by plain torch, on every device.

SHiRA (arXiv 2406.13175): its forward pass makes a sparse tensor, for which torch warns unless the
check of its indices is switched on or off. PEFT takes them from a mask, so they need no check.

Prompt tuning (arXiv 2104.08691) and P-tuning (2103.10385): PEFT ignores given positions, so in a
batch padded on the left, as in generation, the distance of a prompt from its virtual tokens would
depend on the longest prompt in the batch. Here given positions are used, shifted by the number of
virtual tokens.

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
        n, d, h, _ = blocks_NDHH.shape
        whole_NDHDH = blocks_NDHH.new_zeros(n, d, h, d, h)
        whole_NDHDH.diagonal(dim1=1, dim2=3).copy_(blocks_NDHH.permute(0, 2, 3, 1))
        return [whole_NDHDH.view(n, d * h, d * h)]

    @staticmethod
    def backward(grad_NKK: Tensor, blocks_NDHH: Tensor) -> list[Tensor]:
        """Return the gradient of the blocks (N, D, H, H): what lies on the diagonal."""
        n, d, h, _ = blocks_NDHH.shape
        parts_NDHDH = grad_NKK.reshape(n, d, h, d, h)
        return [parts_NDHDH.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()]


_adjusted = PeftModelForCausalLM._adjust_prompt_learning_kwargs


def _keep_positions(model: Any, config: Any, *, kwargs: dict[str, Any], **options: Any) -> None:
    """Shift the positions in `kwargs` by the virtual tokens, which get the first positions."""
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

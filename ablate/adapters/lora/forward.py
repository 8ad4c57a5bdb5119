"""LoRA's forward and backward pass in fewer and smaller operations than PEFT's, equal to rounding.

PEFT computes x W' + scale * (x A') B' as six operations under autograd, of which the cast of x to
the factors' float32, the scaling and the addition each read and write a whole activation. On a GPU
a step of few tokens waits for such launches, not for arithmetic. Here the forward pass is three
products, the backward pass five, and only x and x A' are kept.

Letters: T tokens, K inputs, D outputs, R rank; X' is the transpose of X.
"""

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.models.autocast import product_dtype

NO_GRADIENT = (None, None, None)  # of the fixed weight, the fixed bias and the scale


class _Adapted(torch.autograd.Function):
    """x W' + b + scale * (x A') B', where W and b are fixed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A_RK: Tensor, B_DR: Tensor, weight_DK: Tensor,
        bias_D: Tensor | None, scale: float,
    ) -> Tensor:  # fmt: skip
        dtype = product_dtype(x)
        x_TK = x.reshape(-1, x.shape[-1]).to(dtype)
        weight_DK, A, B = weight_DK.to(dtype), A_RK.to(dtype), B_DR.to(dtype)
        down_TR = x_TK @ A.T
        out_TD = F.linear(x_TK, weight_DK, None if bias_D is None else bias_D.to(dtype))
        out_TD.addmm_(down_TR, B.T, alpha=scale)
        ctx.save_for_backward(x_TK, down_TR, A, B, weight_DK)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, A_RK.dtype, B_DR.dtype)
        return out_TD.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, down_TR, A, B, weight_DK = ctx.saved_tensors
        grad_TD = grads[0].reshape(-1, grads[0].shape[-1]).to(x_TK.dtype)
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        back_TR = grad_TD @ B
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_TK = grad_TD @ weight_DK
            grad_x = grad_TK.addmm_(back_TR, A, alpha=ctx.scale).view(ctx.shape).to(x_dtype)
        grad_A = (back_TR.T @ x_TK).to(a_dtype).mul_(ctx.scale)
        grad_B = (grad_TD.T @ down_TR).to(b_dtype).mul_(ctx.scale)
        return grad_x, grad_A, grad_B, *NO_GRADIENT


class Linear(lora.Linear):
    """PEFT's LoRA layer, computed by `_Adapted` wherever that is the same function."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output (..., D)."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        if args or kwargs or not self._is_plain(name):
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        base, factors = self.base_layer, (self.lora_A[name].weight, self.lora_B[name].weight)
        out = _Adapted.apply(x, *factors, base.weight, base.bias, float(self.scaling[name]))
        return out

    def _is_plain(self, name: str) -> bool:
        """Return whether nothing but the two factors acts: no dropout, variant, bias or hook."""
        if self.disable_adapters or self.merged or name not in self.lora_A or self.lora_variant:
            return False
        down, up = self.lora_A[name], self.lora_B[name]
        parts = (self.base_layer, down, up)
        return (
            isinstance(self.lora_dropout[name], nn.Identity)
            and up.bias is None
            and not self.base_layer.weight.requires_grad
            and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        )


def lighten(module: nn.Module) -> None:
    """Let PEFT's LoRA layers over linear layers in `module` compute as `Linear` does."""
    for layer in module.modules():
        if type(layer) is lora.Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = Linear
